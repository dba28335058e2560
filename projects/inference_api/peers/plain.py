"""What one writes first: FastAPI, one inference for each request. `python peers/plain.py thread` or `async`.

The same uvicorn, the same ONNX Runtime, the same model as service.py; no queue, no batches, no log, no counters.
"""

import json
import os
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
shape = session.get_inputs()[0].shape[1:]
Picture = int
for _ in shape:
    Picture = list[Picture]
app = FastAPI()


class ImageRequest(BaseModel):
    """A picture: nested lists of numbers."""

    image: Picture


class Prediction(BaseModel):
    """What it shows."""

    label: str
    confidence: float
    probabilities: list[float]


def answer(image):
    """Run the model on one picture."""
    (probabilities,) = session.run(None, {"images": np.array([image], np.uint8)})
    best = int(probabilities[0].argmax())
    return Prediction(label=labels[best], confidence=probabilities[0, best], probabilities=probabilities[0].tolist())


if sys.argv[1] == "thread":

    @app.post("/predict")
    def predict(request: ImageRequest) -> Prediction:
        """Answer in a thread of FastAPI's pool."""
        return answer(request.image)

else:

    @app.post("/predict")
    async def predict(request: ImageRequest) -> Prediction:
        """Answer on the event loop."""
        return answer(request.image)


@app.get("/health")
async def health():
    """Say that it lives."""
    return {"status": "alive"}


@app.get("/model")
async def model():
    """Say what is served."""
    return {"labels": labels, "shape": shape}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False, log_level="warning")
