"""The service: HTTP outside, batches inside. `python service.py` starts it; `make serve` makes a model first.

Complete the TODOs in this order, after those of batching.py; inference_api.ipynb explains each of them and checks it.

    POST /predict   a picture, and what it shows          GET /health   the process lives
    POST /reload    serve the model file as it is now     GET /ready    it can take requests now
    GET  /model     what is served                        GET /metrics  counters, for Prometheus
    GET  /docs      all of this, described                GET /         a page to draw on

Settings come from environment variables: see `Settings`.
"""

import asyncio
import contextlib
import gc
import hashlib
import hmac
import inspect
import itertools
import json
import logging
import math  # noqa: F401 (for your answers)
import os
import re
import secrets
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, fields
from datetime import UTC, datetime  # noqa: F401
from pathlib import Path
from typing import Annotated  # noqa: F401

import numpy as np
import onnxruntime
import prometheus_client as prometheus
import uvicorn
from batching import Batcher, Closed, Full  # noqa: F401
from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model  # noqa: F401
from starlette.exceptions import HTTPException as AnyHTTPException

HERE = Path(__file__).parent
log = logging.getLogger("service")
request_id: ContextVar[str] = ContextVar("request_id", default="")
given_id = re.compile(r"[\w.-]{1,64}", re.ASCII)  # what may be taken over from a caller's header


@dataclass(frozen=True)
class Settings:
    """How the service works; each is set by the environment variable of the same name in capitals."""

    model: str = str(HERE / "models" / "digits.onnx")
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 1  # of one inference
    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_queue: int = 256
    timeout_s: float = 2.0
    max_bytes: int = 65_536  # of a request's body
    api_key: str = ""  # none is asked for when empty
    log_requests: bool = True

    @classmethod
    def from_environment(cls):
        """Read the settings; a value that cannot be read ends the program with a sentence."""
        found = {}
        for field in fields(cls):
            text = os.environ.get(field.name.upper(), "")
            try:
                kind = {"int": int, "float": float}.get(getattr(field.type, "__name__", field.type), str)
                if text:
                    found[field.name] = text.lower() in ("1", "true", "yes") if field.type is bool else kind(text)
            except ValueError:
                raise SystemExit(f"{field.name.upper()}={text!r}: expected a number") from None
        return cls(**found)


# -- what goes in and out ---------------------------------------------------------------------------------


# TODO image-request  (10 points, ~25 min)
def image_request(shape):
    """Make the type of a request: one picture, as nested lists of whole numbers.

    The type refuses everything else, so that no wrong input ever reaches the model: a value below 0 or above 255, a
    fraction (1.5, but also 1.0), a text, true and false, null, NaN; a list that is too short or too long, at each
    depth; a missing `image`; any field besides it. Its JSON schema, which the page /docs shows, says all of this:
    `integer`, `minimum` and `maximum`, `minItems` and `maxItems`, `additionalProperties: false`.

    Args:
        shape: sizes of a picture, outermost first, such as (28, 28) or (3, 32, 32).

    Returns:
        A subclass of pydantic's BaseModel, called ImageRequest, with the one field `image`.
    """
    raise NotImplementedError("image-request")


class Prediction(BaseModel):
    """What a picture shows."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"label": "1", "confidence": 0.9, "probabilities": [0.1, 0.9], "model": "5e1f0c3a"}
        }
    )

    label: str = Field(description="the most probable class")
    confidence: float = Field(description="its probability")
    probabilities: list[float] = Field(description="of all classes, in the order of GET /model")
    model: str = Field(description="which model answered: the beginning of the SHA-256 of its file")


class ModelInfo(BaseModel):
    """What is served."""

    model: str
    labels: list[str]
    shape: list[int]


class Status(BaseModel):
    """How the service is."""

    status: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
    request_id: str


def as_bytes(image):
    """Return nested lists of numbers from 0 to 255 as bytes, the last axis running fastest."""
    if not isinstance(image[0], list):
        return bytes(image)
    while isinstance(image[0][0], list):
        image = [row for part in image for row in part]
    return b"".join(map(bytes, image))


# -- the model --------------------------------------------------------------------------------------------


class Model:
    """An ONNX file as `model.export` writes them, opened.

    Attributes:
        shape: of one picture.
        labels: names of the C classes.
        version: beginning of the SHA-256 of the file.

    Args:
        path: of the file.
        threads: of one inference.
    """

    def __init__(self, path, threads=1):
        """Open the file."""
        content = Path(path).read_bytes()
        onnxruntime.disable_telemetry_events()  # some builds report to their maker how they are used
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # it raises what goes wrong; lines of its own would stand among those of JSON
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores have other work
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.shape = tuple(self.session.get_inputs()[0].shape[1:])
        self.labels = json.loads(self.session.get_modelmeta().custom_metadata_map["labels"])
        self.version = hashlib.sha256(content).hexdigest()[:12]

    def run(self, images):
        """Return probabilities, a list of C for each picture in the list of bytes.

        Raises:
            ValueError: when one of them is no number.
        """
        pictures = np.frombuffer(b"".join(images), np.uint8).reshape(len(images), *self.shape)
        (probabilities,) = self.session.run(None, {"images": pictures})
        if not np.isfinite(probabilities).all():
            raise ValueError("a probability is no number")
        return probabilities.astype(np.float64).round(4).tolist()


class Unfit(Exception):
    """The model file cannot take the place of the one that is served."""


class Served:
    """The model that is served, which can be exchanged between two batches.

    Attributes:
        current: the model. `infer` reads it once for each batch.

    Args:
        load: function without arguments that opens the model file and returns a `Model`; it takes long.
        pool: the executor for inferences, of one thread: a long inference keeps others waiting, but not the event loop.
    """

    def __init__(self, load, pool):
        """Load the first model."""
        self.load, self.pool = load, pool
        self.current = load()
        self.changing = asyncio.Lock()

    async def infer(self, images):
        """Run a batch in the pool; return for each picture its probabilities and the model that gave them."""
        model = self.current
        loop = asyncio.get_running_loop()
        return [(row, model) for row in await loop.run_in_executor(self.pool, model.run, images)]

    # TODO reload  (10 points, ~25 min)
    async def reload(self):
        """Load the model file again, and serve the new model from the next batch on.

        Requests are answered all the while: by the old model until the new one is ready, and no batch by both. Loading
        and trying happen outside the event loop, and not in `pool`, where the batches are waiting. The new model is
        tried on one black picture (bytes of 0) before it is served; it must take pictures of the same shape, and give
        one probability for each of its labels. Two calls at a time: the second waits for the first, and then loads once
        more.

        Returns:
            The version of the model that is served now.

        Raises:
            Unfit: when the file cannot be loaded, or the model not be used; it says why. The old model stays.
        """
        raise NotImplementedError("reload")


# TODO ask  (10 points, ~20 min)
async def ask(batcher, image):
    """Ask the batcher, and say in HTTP's words what went wrong.

    Args:
        batcher: its coroutine method `submit` returns the answer, or raises what its docstring says.
        image: for `submit`.

    Returns:
        What `submit` returned.

    Raises:
        HTTPException: 503 when the queue is full or the batcher is closing, with a header `Retry-After`: the text of a
            whole number of seconds from 1 to 10. 504 when there was no answer in time. 500 for every other error; that
            one is written to `log` with its traceback (`log.exception`). `detail` tells the caller what happened and
            what to do, but nothing of the inside: no text of the error.
        CancelledError: goes through as it is.
    """
    raise NotImplementedError("ask")


# -- logging ----------------------------------------------------------------------------------------------

# What every record of logging has; whatever else a record has was given as `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


# TODO json-log  (8 points, ~20 min)
class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON, for programs to read.

    The line is an object with: `time`, the record's time (`record.created`) in UTC as ISO 8601 with milliseconds, such
    as "2026-03-01T12:00:00.123+00:00"; `level`; `message`, with its arguments filled in; `request_id`, from the
    context variable of that name, only where it is not empty; every attribute that came in by `extra` (those not in
    `STANDARD`) under its own name; and `traceback`, a text, where the record has an exception. A value that JSON does
    not know is written as `str` shows it. No line break ever stands in the line, whatever a message holds.
    """

    def format(self, record):
        """Return the line, without a line break at its end."""
        raise NotImplementedError("json-log")


def log_as_json(stream=sys.stdout):
    """Let all logging of this process go to `stream` as lines of JSON."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # nobody reads them here, and
    logging._srcfile = None  # to find out the line of each call takes longer than all the rest (logging HOWTO)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


# -- the application --------------------------------------------------------------------------------------


class Metrics:
    """What Prometheus reads from /metrics."""

    def __init__(self, batcher):
        """Start counting from 0."""
        self.registry = prometheus.CollectorRegistry()
        self._answers = prometheus.Counter(
            "http_requests_total", "Requests that were answered", ["path", "status"], registry=self.registry
        )
        self._seconds = prometheus.Histogram(
            "http_request_seconds", "From a request's head to the end of its answer", ["path"], registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
        )  # fmt: skip
        self.batch = prometheus.Histogram(
            "inference_batch_size", "Pictures in one inference", registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )  # fmt: skip
        self.inference = prometheus.Histogram(
            "inference_seconds", "Time of one inference", registry=self.registry,
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
        )  # fmt: skip
        waiting = prometheus.Gauge("queue_length", "Requests that wait for a batch", registry=self.registry)
        waiting.set_function(lambda: len(batcher.queue))
        self._children = {}

    def count(self, path, status, seconds):
        """Note an answered request."""
        found = self._children.get((path, status))
        if found is None:
            found = self._answers.labels(path, status), self._seconds.labels(path)
            self._children[path, status] = found
        found[0].inc()
        found[1].observe(seconds)


class Gate:
    """Stands before the application: gives each request an id, measures and logs it, and refuses large bodies early.

    Args:
        app: the ASGI application behind it (https://asgi.readthedocs.io).
        direct: (method, path) of requests that need not find their way through all of it, and what serves them.
        settings: of the service.
        metrics: counts the requests.
        paths: that are counted by name; all others together are "other".
    """

    def __init__(self, app, direct, settings, metrics, paths):
        """Remember what stands behind."""
        self.app, self.direct, self.settings = app, direct, settings
        self.metrics, self.paths = metrics, frozenset(paths)
        self.numbers, self.process = itertools.count(), secrets.token_hex(4)

    async def __call__(self, scope, receive, send):
        """Serve one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, name, length, path = time.perf_counter(), 499, "", 0, scope["path"]
        for header, value in scope["headers"]:
            if header == b"x-request-id":
                name = value.decode("latin-1")
            elif header == b"content-length":
                length = int(value) if value.isdigit() else 0
        if not name or not given_id.fullmatch(name):
            name = f"{self.process}-{next(self.numbers)}"
        request_id.set(name)

        async def send_and_look(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            target = self.direct.get((scope["method"], path), self.app)
            if length > self.settings.max_bytes:
                target = problem(413, f"the body has {length} bytes; {self.settings.max_bytes} are the most")
            await target(scope, receive, send_and_look)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.count(path if path in self.paths else "other", status, seconds)
            if self.settings.log_requests and path not in ("/health", "/ready", "/metrics"):
                log.info("request", extra={"path": path, "status": status, "ms": round(seconds * 1000, 2)})


def problem(status, detail, headers=None):
    """Return the answer that says why there is none."""
    return JSONResponse({"detail": detail, "request_id": request_id.get()}, status, headers)


def unfit_input(errors):
    """Return the answer for a body that does not fit its type, from pydantic's list of errors."""
    told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in errors[:3])
    return problem(422, told + (f"; and {len(errors) - 3} more" if len(errors) > 3 else ""))


async def read_body(receive, most, patience):
    """Return the body of a request.

    Raises:
        HTTPException: 413 when it has more than `most` bytes, 408 when it does not come within `patience` seconds,
            400 when the client leaves before its end.
    """
    message = await receive()
    body = message.get("body", b"")
    try:
        async with asyncio.timeout(patience) if message.get("more_body") else contextlib.nullcontext():
            while len(body) <= most and message["type"] != "http.disconnect" and message["more_body"]:
                message = await receive()
                body += message.get("body", b"")
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None
    if len(body) > most:
        raise HTTPException(413, f"the body has more than {most} bytes")
    if message["type"] == "http.disconnect":
        raise HTTPException(400, "the request ended before its body did")
    return body


def typed_route(settings, busy):
    """Return a kind of FastAPI route with a short way from the body's bytes to the typed object, and back.

    FastAPI's own makes lists of the JSON first, validates these, and opens contexts for dependencies; here pydantic
    reads and validates the bytes in one go. What /docs and the OpenAPI description say is the same. The endpoint takes
    one argument, the typed body.

    While `busy()` says so, requests are refused before anything is read: a refusal has to be cheap, or an overload
    leaves no time for answers.
    """

    class TypedRoute(APIRoute):
        def __init__(self, path, endpoint, **more):
            super().__init__(path, endpoint, **more)
            (parameter,) = inspect.signature(endpoint).parameters.values()
            self.validate = parameter.annotation.model_validate_json
            self.app = self.serve

        async def answer(self, scope, receive):
            headers = dict(scope["headers"])
            check_key(settings, headers.get(b"x-api-key", b""))
            kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
            if busy():
                raise HTTPException(503, "too many requests are waiting; try again", {"Retry-After": "1"})
            body = await read_body(receive, settings.max_bytes, settings.timeout_s)
            return await self.endpoint(self.validate(body))

        async def serve(self, scope, receive, send):
            try:
                body = (await self.answer(scope, receive)).model_dump_json().encode()
            except HTTPException as error:
                return await problem(error.status_code, error.detail, error.headers)(scope, receive, send)
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False, include_context=False)
                return await unfit_input(found)(scope, receive, send)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return TypedRoute


def check_key(settings, given):
    """Raise HTTPException 401 unless `given` (bytes) is the API key that the settings ask for, if they do."""
    if settings.api_key and not hmac.compare_digest(given, settings.api_key.encode()):
        raise HTTPException(401, "a valid API key belongs into the header X-API-Key", {"WWW-Authenticate": "APIKey"})


def example_request(shape):
    """Return a body for /docs to try: a picture with one line of light."""
    picture = np.zeros(shape, int)
    picture[..., shape[-1] // 2] = 255
    return {"requestBody": {"content": {"application/json": {"example": {"image": picture.tolist()}}}}}


def create_app(settings):
    """Return the service as an ASGI application; it works from its start-up on."""
    pool = ThreadPoolExecutor(1, "inference")
    served = Served(lambda: Model(settings.model, settings.threads), pool)

    async def infer(images):
        began = time.perf_counter()
        answers = await served.infer(images)
        metrics.batch.observe(len(images))
        metrics.inference.observe(time.perf_counter() - began)
        return answers

    batcher = Batcher(
        infer, max_batch=settings.max_batch, max_wait=settings.max_wait_ms / 1000,
        max_queue=settings.max_queue, timeout=settings.timeout_s,
    )  # fmt: skip
    metrics = Metrics(batcher)
    reloads = set()

    async def reload_and_say():
        try:
            log.info("model loaded", extra={"model": await served.reload()})
        except Unfit as error:
            log.error("the old model stays", extra={"reason": str(error)})

    def reload_soon():
        task = asyncio.get_running_loop().create_task(reload_and_say())
        reloads.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(reloads.discard)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        batcher.start()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # elsewhere than on Unix, in main
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_soon)
        gc.collect()
        gc.freeze()  # what stays for good need not be looked through again and again
        log.info("ready", extra={"model": served.current.version, "batch": settings.max_batch})
        yield
        await batcher.close()
        pool.shutdown()
        log.info("stopped")

    key = [Security(APIKeyHeader(name="X-API-Key", auto_error=False))] if settings.api_key else []
    app = FastAPI(title="Inference API", version="1.0", lifespan=lifespan, redoc_url=None)
    app.openapi_version = "3.0.3"  # there 1.0 is no integer, as here; in the JSON Schema of 3.1 it is one
    ImageRequest = image_request(served.current.shape)
    refusals = {
        400: "the request ended early",
        401: "no valid API key",
        408: "the body came too slowly",
        413: "too large",
        415: "not JSON",
        422: "not a picture of this shape",
        500: "the model failed",
        503: "overloaded; try again after Retry-After seconds",
        504: "no answer in time",
    }
    refusals = {code: {"model": Problem, "description": text} for code, text in refusals.items()}

    @app.exception_handler(RequestValidationError)
    async def refused_input(request: Request, error: RequestValidationError) -> Response:
        return unfit_input(error.errors())

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return problem(error.status_code, str(error.detail), error.headers)

    async def predict(body: ImageRequest) -> Prediction:
        """Say what a picture shows."""
        row, model = await ask(batcher, as_bytes(body.image))
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction.model_construct(
            label=model.labels[best], confidence=row[best], probabilities=row, model=model.version
        )

    predictions = typed_route(settings, lambda: len(batcher.queue) >= settings.max_queue)(
        "/predict",
        predict,
        methods=["POST"],
        response_model=Prediction,
        responses=refusals,
        dependencies=key,
        openapi_extra=example_request(served.current.shape),
    )
    app.router.routes.append(predictions)

    unfit = {"model": Problem, "description": "the file cannot be served; the old model stays"}

    @app.post("/reload", dependencies=key, responses={401: refusals[401], 409: unfit})
    async def reload(request: Request) -> Status:
        """Serve the model file as it is now."""
        check_key(settings, request.headers.get("x-api-key", "").encode())
        try:
            return Status(status=f"serving {await served.reload()}")
        except Unfit as error:
            log.error("the old model stays", extra={"reason": str(error)})
            raise HTTPException(409, "the model file cannot be served; the old model stays") from None

    @app.get("/health")
    async def health() -> Status:
        """Say that the process lives; who does not get this answer may restart it."""
        return Status(status="alive")

    @app.get("/ready", responses={503: {"model": Problem, "description": "send requests elsewhere"}})
    async def ready() -> Status:
        """Say whether requests may come; who does not get 200 should send them elsewhere."""
        if batcher.closing or batcher.worker.done() or len(batcher.queue) >= settings.max_queue:
            raise HTTPException(503, "not ready to take requests", {"Retry-After": "1"})
        return Status(status="ready")

    @app.get("/model")
    async def model() -> ModelInfo:
        """Say what is served."""
        now = served.current
        return ModelInfo(model=now.version, labels=now.labels, shape=list(now.shape))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Give the counters to Prometheus."""
        return Response(prometheus.generate_latest(metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse((HERE / "index.html").read_text(encoding="utf-8"))

    direct = {("POST", "/predict"): predictions.serve}
    return Gate(app, direct, settings, metrics, [route.path for route in app.routes])


def main():
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has finished
    settings = Settings.from_environment()
    log_as_json()
    if not Path(settings.model).is_file():
        raise SystemExit(f"there is no model {settings.model}; `python model.py digits` makes it, or set MODEL")
    uvicorn.run(
        create_app(settings), host=settings.host, port=settings.port, access_log=False, log_config=None,
        server_header=False, proxy_headers=False, timeout_keep_alive=30, timeout_graceful_shutdown=10, backlog=2048,
    )  # fmt: skip


if __name__ == "__main__":
    main()
