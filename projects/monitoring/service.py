"""A small service that reads digits, writes down what it answered, measures its own drift, and says so.

    make serve            or    uvicorn --factory service:create --port 8000
    http://127.0.0.1:8000/docs  to try it,  http://127.0.0.1:8000/metrics  for Prometheus

It needs `model.npz` and `reference.npz`, which the notebook writes (also: python prepare.py), and your answers in
drift.py and journal.py. One process: the window of the last predictions is kept in it.

    MONITOR_FOLDER    where model.npz and reference.npz lie         (default: this folder)
    JOURNAL_URL       the database of predictions                   (default: sqlite:///journal.db)
"""

import logging
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Annotated

import journal
import numpy as np
from detector import Detector
from drift import Alarm
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from features import CLASSES, WATCHED
from model import Model
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

log = logging.getLogger("monitoring")

Pixel = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Row = Annotated[list[Pixel], Field(min_length=8, max_length=8)]
Image = Annotated[list[Row], Field(min_length=8, max_length=8)]


class Question(BaseModel):
    """Images of digits: 8 rows of 8 pixels, 0 for paper to 1 for ink."""

    images: Annotated[list[Image], Field(min_length=1, max_length=256)]


class Prediction(BaseModel):
    """The digit that an image shows, and how probable the model finds it."""

    digit: int
    confidence: float


class Answer(BaseModel):
    """The predictions, in the order of the images, and the id under which the journal holds them."""

    request: str
    predictions: list[Prediction]


class Metrics:
    """Everything that the service tells Prometheus."""

    def __init__(self) -> None:
        """Begin at 0."""
        disable_created_metrics()
        own = self.registry = CollectorRegistry()
        seconds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
        shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
        self.requests = Counter("model_requests", "Requests to /predict", ["status"], registry=own)
        self.latency = Histogram("model_latency_seconds", "Time of an answer", buckets=seconds, registry=own)
        self.predictions = Counter("model_predictions", "Images, by the class given", ["digit"], registry=own)
        self.confidence = Histogram("model_confidence", "Confidence", buckets=shares, registry=own)
        self.rows = Gauge("model_journal_rows", "Predictions in the journal", registry=own)
        self.ratio = Gauge(
            "model_drift_ratio", "Drift of the last window; above 1 is over the limit", ["quantity"], registry=own
        )
        self.windows = Counter("model_drift_windows", "Windows measured", ["drifted"], registry=own)
        self.alarm = Gauge("model_drift_alarm", "1 while drift persists", registry=own)
        for digit in range(CLASSES):
            self.predictions.labels(str(digit))  # a counter that is there from the start has a rate from the start
        for drifted in ("yes", "no"):
            self.windows.labels(drifted)
        for status in ("200", "422", "500"):
            self.requests.labels(status)


class Monitor:
    """Writes predictions down, and measures drift with every window that is full."""

    def __init__(self, detector: Detector, metrics: Metrics) -> None:
        """Take up the window where the last process left it."""
        self.detector, self.metrics = detector, metrics
        self.engine = journal.open_journal()
        self.alarm, self.lock = Alarm(), threading.Lock()
        rows = journal.count_rows(self.engine)
        begun = rows % detector.size
        replayed = begun + detector.size * min(6, rows // detector.size)  # for the alarm, some whole windows too
        self.window: list[list[float]] = []
        self._measure(journal.recent(self.engine, replayed) if replayed else [], count=False)
        metrics.rows.set(rows)

    def note(self, request: str, watched: np.ndarray) -> None:
        """Write predictions down before they are answered; then measure."""
        with self.lock:  # one writer at a time, so that windows have the order of the journal
            journal.record(self.engine, request, time.time(), watched)
            self.metrics.rows.inc(len(watched))
            self._measure(watched.tolist(), count=True)

    def _measure(self, rows: list[list[float]], *, count: bool) -> None:
        for row in rows:
            self.window.append(row)
            if len(self.window) < self.detector.size:
                continue
            ratios = self.detector.ratios(np.array(self.window))
            self.window = []
            drifted = bool((ratios > 1).any())
            change = self.alarm.update(drifted)
            for name, ratio in zip(WATCHED, ratios, strict=True):
                self.metrics.ratio.labels(name).set(ratio)
            self.metrics.alarm.set(self.alarm.active)
            if count:
                self.metrics.windows.labels("yes" if drifted else "no").inc()
            if change:
                worst = WATCHED[int(ratios.argmax())]
                log.warning("the drift alarm %s; largest: %s, %.2f of its limit", change, worst, ratios.max())


def create() -> FastAPI:
    """Build the service from the files that the notebook has written."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    folder = Path(os.environ.get("MONITOR_FOLDER", Path(__file__).parent))
    model, detector = Model.load(folder / "model.npz"), Detector.load(folder / "reference.npz")
    metrics = Metrics()
    monitor = Monitor(detector, metrics)
    app = FastAPI(title="Digits, monitored")

    @app.middleware("http")
    async def watch(request: Request, call_next):
        if request.url.path != "/predict":
            return await call_next(request)
        begin, status = time.perf_counter(), 500
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            metrics.requests.labels(str(status)).inc()
            metrics.latency.observe(time.perf_counter() - begin)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, and NaN in it cannot be written as JSON.
        wrong = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()[:5]]
        return JSONResponse({"detail": wrong}, status_code=422)

    @app.post("/predict")
    async def predict(question: Question) -> Answer:
        images = np.array(question.images)
        digits, confidence, watched = model.answer(images)
        name = uuid.uuid4().hex
        try:
            await run_in_threadpool(monitor.note, name, watched)
        except Exception:  # what cannot be written down is not answered
            log.exception("the journal failed")
            raise HTTPException(500, "the prediction could not be written down; try again") from None
        for digit, sure in zip(digits.tolist(), confidence.tolist(), strict=True):
            metrics.predictions.labels(str(digit)).inc()
            metrics.confidence.observe(sure)
        pairs = zip(digits.tolist(), confidence.tolist(), strict=True)
        return Answer(request=name, predictions=[Prediction(digit=d, confidence=c) for d, c in pairs])

    @app.get("/metrics")
    def expose() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
