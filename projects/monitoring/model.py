"""The model that is watched: a small network, trained with PyTorch, that answers with NumPy alone."""

from pathlib import Path

import numpy as np
from features import input_statistics


class Model:
    """Two layers, 64 -> 64 -> 10."""

    def __init__(self, w1, b1, w2, b2):
        """Take the weights, (64, 64), (64,), (10, 64), (10,), as `torch.nn.Linear` has them."""
        self.w1, self.b1, self.w2, self.b2 = w1, b1, w2, b2

    @classmethod
    def load(cls, path):
        """Read what `save` has written."""
        if not Path(path).is_file():
            raise SystemExit(f"{path} is missing: run the notebook down to the service, or `python prepare.py`")
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in ("w1", "b1", "w2", "b2")))

    def save(self, path):
        """Write the weights into a file."""
        np.savez(path, w1=self.w1, b1=self.b1, w2=self.w2, b2=self.b2)

    def probabilities(self, images):
        """Return (N, 10) for images (N, 8, 8)."""
        x = np.asarray(images).reshape(-1, 64)
        logits = np.maximum(x @ self.w1.T + self.b1, 0) @ self.w2.T + self.b2
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    def answer(self, images):
        """Return the classes (N,), the confidences (N,), and all that is watched (N, F), as `WATCHED` names it."""
        p = self.probabilities(images)
        classes, confidence = p.argmax(axis=1), p.max(axis=1)
        return classes, confidence, np.column_stack([input_statistics(images), confidence, classes])


def train(images, labels, epochs=60, seed=0):
    """Train the network with PyTorch.

    Args:
        images: ink (N, 8, 8).
        labels: (N,).
        epochs: passes over the images.
        seed: of weights and order.
    """
    import torch  # the service does without it

    torch.manual_seed(seed)
    x, y = torch.tensor(images, dtype=torch.float32).flatten(1), torch.tensor(labels)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    state = [parameter.detach().double().numpy() for parameter in network.parameters()]
    return Model(*state)
