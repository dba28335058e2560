"""Pictures with labels, and networks that were trained on them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from common import data
from common.data import MissingData

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The mirror's files: part -> (name, SHA-256). A classroom may hold torchvision's folder cifar-10-batches-py instead.
_CIFAR10 = {
    "train": ("cifar10/cifar10_train20k.npz", "7b5ad3c8339d2967d2c9e3fa67c2269a116661f6e10225770344fe74dccc2b82"),
    "test": ("cifar10/cifar10_test10k.npz", "4319d262d9178f7f87a0d5b2340afe1492ac47adcef4bf0553c4d5226c0151e4"),
}
_CIFAR10_WHOLE = "cifar-10-batches-py"

# Weights by Y. Idelbayev (BSD 2-Clause): depth -> (file, SHA-256).
_RESNET_URL = "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/master/pretrained_models/"
_RESNET = {
    20: ("resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    56: ("resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
}


def digits(held_out: int = 500, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1,797 real handwritten digits, shuffled and divided in two.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998; it comes with
    scikit-learn, so nothing is downloaded.

    Args:
        held_out: how many pictures go into the second part.
        seed: of the shuffle.

    Returns:
        Pictures (N, 64) in [0, 1] and labels (N,) to learn from, then both of the held-out part.
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    order = torch.randperm(len(bundle.target), generator=torch.Generator().manual_seed(seed))
    pictures = torch.tensor(bundle.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(bundle.target)[order]
    return pictures[held_out:], labels[held_out:], pictures[:held_out], labels[:held_out]


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return MNIST: handwritten digits of 28 × 28 pixels, 60,000 to learn from and 10,000 of other writers.

    From the folder `MNIST/raw` of the mirror that COURSE_DATA names, which holds the four original .gz files; without
    a mirror they are downloaded once (12 MB).

    Source: Y. LeCun and others, Gradient-Based Learning Applied to Document Recognition, 1998.

    Returns:
        Training pictures, uint8 (60000, 28, 28), and labels, int64 (60000,); then both of the test part.

    Raises:
        MissingData: when a file is missing or damaged, or cannot be downloaded.
    """
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity

    folder = data.mirror()
    with tempfile.TemporaryDirectory() as unpacked:  # torchvision unpacks beside the files; a mirror stays as it is
        if folder is not None:
            raw = Path(unpacked, "MNIST", "raw")
            raw.mkdir(parents=True)
            for name, md5 in MNIST.resources:
                path = folder / "MNIST" / "raw" / name
                if not check_integrity(str(path), md5):
                    raise MissingData(
                        f"{path} is missing or damaged. Put the original file there, or unset COURSE_DATA to "
                        "download MNIST."
                    )
                shutil.copy(path, raw)
        root = str(data.CACHE if folder is None else unpacked)
        try:
            train, test = (MNIST(root, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise MissingData(
                f"MNIST could not be loaded ({str(error).splitlines()[0]}). Connect to the network and try again, or "
                "let COURSE_DATA name a mirror that holds it."
            ) from None
    return train.data, train.targets, test.data, test.targets


def cifar10() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return CIFAR-10: colour photographs of 32 × 32 pixels in ten classes (`CIFAR10_CLASSES`).

    From the mirror that COURSE_DATA names: its 20,000 training pictures (`cifar10/`), or the whole set where it
    holds torchvision's folder `cifar-10-batches-py`. Without a mirror the whole set, 50,000, is downloaded once
    (170 MB). The 10,000 test pictures are the same everywhere.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Returns:
        Training pictures, uint8 (N, 3, 32, 32), and labels, int64 (N,); then both of the test part.

    Raises:
        MissingData: when a file is missing or damaged, or cannot be downloaded.
    """
    folder = data.mirror()
    if folder is None or (folder / _CIFAR10_WHOLE).is_dir():
        return *_whole_cifar10(folder, train=True), *_whole_cifar10(folder, train=False)
    return *_part_of_cifar10(folder, "train"), *_part_of_cifar10(folder, "test")


def _part_of_cifar10(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    import numpy as np

    name, sha256 = _CIFAR10[part]
    path = folder / name
    if not path.is_file():
        raise MissingData(
            f"{path} is missing. Put it there, or torchvision's folder {_CIFAR10_WHOLE} into the same mirror, or "
            "unset COURSE_DATA to download the whole set."
        )
    with np.load(data.verified(path, sha256)) as arrays:
        pictures, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    return pictures.permute(0, 3, 1, 2).contiguous(), labels.long()


def _whole_cifar10(folder: Path | None, *, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        whole = CIFAR10(str(folder or data.CACHE), train=train, download=folder is None)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        if folder is None:
            ways = "Connect to the network and try again, or let COURSE_DATA name a mirror that holds it."
        else:
            ways = f"Put a complete {_CIFAR10_WHOLE} into {folder}, or unset COURSE_DATA to download it."
        raise MissingData(f"CIFAR-10 could not be loaded ({str(error).splitlines()[0]}). {ways}") from None
    return torch.from_numpy(whole.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(whole.targets)


def cifar_resnet(depth: int = 20) -> nn.Module:
    """Return a ResNet that was trained on CIFAR-10, in evaluation mode.

    It takes pictures (B, 3, 32, 32) in [0, 1], normalises them itself, and returns logits (B, 10). On the test
    pictures ResNet-20 is right for 91.73 %, ResNet-56 for 93.39 %.

    Source: K. He and others, Deep Residual Learning for Image Recognition, 2015, section 4.2; weights by
    Y. Idelbayev (https://github.com/akamaster/pytorch_resnet_cifar10, BSD 2-Clause).

    Args:
        depth: 20 (270,000 parameters) or 56 (850,000).

    Raises:
        MissingData: when the weights are neither in the mirror (`resnet_cifar10/`) nor to be downloaded.
        ValueError: for any other depth.
    """
    if depth not in _RESNET:
        raise ValueError(f"there are weights for the depths {' and '.join(map(str, _RESNET))}, not for {depth}")
    name, sha256 = _RESNET[depth]
    path = data.fetch(f"resnet_cifar10/{name}", url=_RESNET_URL + name, sha256=sha256)
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model.eval()


class CifarResNet(nn.Module):
    """The ResNet for pictures of 32 × 32 pixels: 16, 32 and 64 channels, one linear layer at the end.

    Args:
        depth: number of layers with weights, 6n + 2: three stages of n blocks of two convolutions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int = 20) -> None:
        """Build it with random weights."""
        super().__init__()
        blocks = (depth - 2) // 6
        # Constants, which move to a device with the model but do not belong to its weights.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (B, 10) for pictures (B, 3, 32, 32) in [0, 1]."""
        x = (pictures - self.mean) / self.std
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, 8, 8)
        return self.linear(x.mean((2, 3)))


class _Block(nn.Module):
    """Two convolutions beside a shortcut without parameters ("option A" of the paper)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.added = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        # The shortcut leaves out every second pixel and fills the new channels with zeros, half before, half after.
        before = self.added // 2
        channels = (0, 0, 0, 0, before, self.added - before)
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], channels)
        return (y + shortcut).relu()


def _stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(inside, outside, stride)
    return nn.Sequential(first, *(_Block(outside, outside, 1) for _ in range(blocks - 1)))
