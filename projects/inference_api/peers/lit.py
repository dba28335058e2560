"""The same model behind LitServe (https://lightning.ai/docs/litserve), with its batching. `benchmark.py` starts it."""

import json
import os

import litserve
import numpy as np
import onnxruntime


class Classifier(litserve.LitAPI):
    """Lists of numbers in, probabilities out."""

    def setup(self, device):
        """Open the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.labels = json.loads(self.session.get_modelmeta().custom_metadata_map["labels"])

    def decode_request(self, request):
        """Return the picture as an array."""
        return np.array(request["image"], np.uint8)

    def batch(self, inputs):
        """Return a batch (B, ...)."""
        return np.stack(inputs)

    def predict(self, x):
        """Return probabilities (B, C)."""
        return self.session.run(None, {"images": x if self.max_batch_size > 1 else x[None]})[0]

    def unbatch(self, output):
        """Return the rows."""
        return list(output)

    def encode_response(self, output):
        """Say what the picture shows."""
        row = output if output.ndim == 1 else output[0]
        best = int(row.argmax())
        return {"label": self.labels[best], "confidence": float(row[best]), "probabilities": row.tolist()}


if __name__ == "__main__":
    most = int(os.environ.get("MAX_BATCH", "32"))
    wait = float(os.environ.get("MAX_WAIT_MS", "2")) / 1000
    api = Classifier(max_batch_size=most, batch_timeout=wait if most > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    port = int(os.environ["PORT"])
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)
