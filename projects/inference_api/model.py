"""The models that are served, trained or loaded, and exported to ONNX. `python model.py digits` writes two files.

A file that is served takes `images`, bytes (B, ...) of 0 to 255, as they come out of a camera or a file, and returns
`probabilities` (B, C). Everything between lies in the file: whoever serves it cannot scale the pixels differently from
whoever trained it. The names of the classes lie in the file too.
"""

import json  # noqa: F401 (for your answers)
import logging
import os  # noqa: F401
import sys
from pathlib import Path

import numpy as np  # noqa: F401
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn

from common import runtime, training
from common.data import images

MODELS = Path(__file__).with_name("models")


class DigitNet(nn.Module):
    """Two convolutions and two linear layers for pictures of 28 x 28 pixels in [0, 1]; 52,000 parameters."""

    def __init__(self):
        """Draw the weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, stride=2, padding=2)  # (B, 8, 14, 14)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)  # (B, 16, 7, 7)
        self.hidden = nn.Linear(16 * 7 * 7, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        """Return logits (B, 10) for pictures (B, 28, 28)."""
        x = F.relu(self.conv1(x[:, None]))
        x = F.relu(self.conv2(x))
        return self.out(F.relu(self.hidden(x.flatten(1))))


class Classifier(nn.Module):
    """A network with what comes before and after it: bytes in, probabilities out.

    Args:
        model: takes pictures in [0, 1] and returns logits (B, C).
    """

    def __init__(self, model):
        """Wrap the model."""
        super().__init__()
        self.model = model

    def forward(self, images):
        """Return probabilities (B, C) for bytes (B, ...)."""
        return self.model(images.float() / 255).softmax(-1)


# TODO export  (10 points, ~30 min)
def export(model, shape, labels, path):
    """Write a model as an ONNX file that takes any number of pictures, but only if the file computes what it does.

    The input is called `images`, uint8 (B, *shape) with B left open; the output `probabilities`, (B, C). The labels lie
    in the file's `metadata_props`, under the name "labels", as JSON. All weights are in this one file. The export is
    made in evaluation mode; the model's own mode is afterwards what it was.

    The file is compared with the model, by ONNX Runtime, on random pictures: on batches of 1 and of 5 at least.

    Args:
        model: a module from bytes (B, *shape) to probabilities (B, C), float32.
        shape: of one picture.
        labels: list of C names.
        path: where to write; a file that is there already is replaced only by a whole and compared one.

    Returns:
        The largest difference of a probability that the comparison found, a float.

    Raises:
        ValueError: when that is above 1e-4, or there are not as many labels as probabilities. Nothing is left at `path`
            that was not there before.
    """
    raise NotImplementedError("export")


def digits():
    """Return pictures as bytes (N, 28, 28) and labels, to learn from and held out.

    Quick: scikit-learn's 1,797 real digits of 8 x 8 pixels, enlarged to 20 x 20 in the middle of 28 x 28. Full: MNIST,
    whose digits lie there in the same way.
    """
    if runtime.scale() == "full":
        return images.mnist()
    pictures, labels, held_out, held_out_labels = images.digits()
    return enlarged(pictures), labels, enlarged(held_out), held_out_labels


def enlarged(pictures):
    """Return pictures (N, 64) in [0, 1] as bytes (N, 28, 28), 20 x 20 in the middle."""
    large = F.interpolate(pictures.view(-1, 1, 8, 8), size=20, mode="bicubic").clamp(0, 1)
    return (F.pad(large[:, 0], (4, 4, 4, 4)) * 255).round().to(torch.uint8)


def moved(pictures):
    """Return pictures in [0, 1] as other hands would draw them: turned, shifted, stretched, thicker or thinner."""
    n = len(pictures)
    angle, slant = 0.2 * torch.randn(n), 0.15 * torch.randn(n)
    wide, high = 1 + 0.15 * torch.randn(n), 1 + 0.15 * torch.randn(n)
    shift = 0.08 * torch.randn(n, 2)
    rows = torch.stack([angle.cos() * wide, slant - angle.sin(), shift[:, 0]], 1)
    columns = torch.stack([angle.sin(), angle.cos() * high, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([rows, columns], 1), (n, 1, 28, 28), align_corners=False)
    ink = F.grid_sample(pictures[:, None], grid, align_corners=False)[:, 0]
    return (ink * (0.8 + 1.2 * torch.rand(n, 1, 1))).clamp(0, 1)


def train_digits(steps=None):
    """Train a `DigitNet`; return it and the share of held-out digits that it reads."""
    torch.manual_seed(0)
    pictures, labels, held_out, held_out_labels = digits()
    net = DigitNet()

    def batches():
        while True:
            chosen = torch.randint(len(pictures), (128,))
            yield moved(pictures[chosen].float() / 255), labels[chosen]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    training.fit(net, batches(), loss, lr=3e-3, steps=steps or runtime.pick(400, 3000), warmup=50)
    with torch.no_grad():
        right = net.eval()(held_out.float() / 255).argmax(-1) == held_out_labels
    return net, right.float().mean().item()


def quantize(source, target, pictures):
    """Write an ONNX file anew in int8: weights and activations, whose ranges are measured on these pictures.

    Args:
        source: a file that `export` has written.
        target: where to write.
        pictures: bytes (N, ...), a few hundred, as they will come.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(pictures.split(64))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared = Path(f"{target}.prepared")
    logging.disable(logging.WARNING)  # it recommends a preparation that has been done
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)


def make(name):
    """Write models/<name>.onnx and models/<name>-int8.onnx: "digits", or "resnet20" (full: needs its weights)."""
    MODELS.mkdir(exist_ok=True)
    path, small = MODELS / f"{name}.onnx", MODELS / f"{name}-int8.onnx"
    if name == "digits":
        net, right = train_digits()
        print(f"held-out digits read: {right:.1%}")
        pictures, shape, labels = digits()[0][:512], (28, 28), [str(digit) for digit in range(10)]
    elif name == "resnet20":
        net, pictures = images.cifar_resnet(20), images.cifar10()[0][:512]
        shape, labels = (3, 32, 32), list(images.CIFAR10_CLASSES)
    else:
        raise SystemExit(f"there is no model {name!r}; say digits or resnet20")
    print(f"{path.name}: largest difference {export(Classifier(net), shape, labels, path):.1e}")
    quantize(path, small, pictures)
    for one in (path, small):
        print(f"{one.name}: {one.stat().st_size:,} bytes")


if __name__ == "__main__":
    make(sys.argv[1] if len(sys.argv) > 1 else "digits")
