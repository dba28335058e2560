"""MNIST, CIFAR-10 and networks that were trained on it, from tiny files; the real figures where a mirror is named."""

import gzip
import hashlib
import math
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from common import data
from common.data import MissingData, images

REAL = pytest.mark.skipif("COURSE_DATA" not in os.environ, reason="COURSE_DATA names no mirror: CIFAR-10 is not there")


def pictures(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, count, dtype=np.uint8)


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def small(mirror, monkeypatch):
    """A mirror with 5 training and 3 test pictures in the form of its npz files."""
    (mirror / "cifar10").mkdir()
    files = {}
    for part, count in (("train", 5), ("test", 3)):
        x, y = pictures(count, seed=count)
        name = f"cifar10/{part}.npz"
        np.savez(mirror / name, x=x, y=y, index=np.arange(count))
        files[part] = (name, hashlib.sha256((mirror / name).read_bytes()).hexdigest())
    monkeypatch.setattr(images, "_CIFAR10", files)
    return mirror


def put_whole(folder, monkeypatch):
    """Write torchvision's folder with 2 pictures a batch, and make torchvision content with its checksums."""
    from torchvision.datasets import CIFAR10

    place = folder / CIFAR10.base_folder
    place.mkdir(parents=True)
    for index, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        x, y = pictures(2, seed=index)
        rows = x.transpose(0, 3, 1, 2).reshape(2, -1)
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": y.tolist()}))
    names = {"label_names": list(images.CIFAR10_CLASSES)}
    (place / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, files, [(name, None) for name, _ in getattr(CIFAR10, files)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})


def write_mnist(folder, monkeypatch):
    """Write MNIST's four files with 3 and 2 pictures, and make torchvision content with their checksums."""
    from torchvision.datasets import MNIST

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for name, _ in MNIST.resources:
        count = 3 if name.startswith("train") else 2
        shape = (count, 28, 28) if "images" in name else (count,)
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (raw / name).write_bytes(gzip.compress(head + bytes(i % 10 for i in range(math.prod(shape)))))
        resources.append((name, hashlib.md5((raw / name).read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)


def test_mnist_from_a_mirror_that_stays_as_it_is(mirror, monkeypatch):
    write_mnist(mirror, monkeypatch)
    before = sorted(mirror.rglob("*"))
    x, y, held_out, labels = images.mnist()
    assert (x.shape, x.dtype, y.tolist()) == ((3, 28, 28), torch.uint8, [0, 1, 2])
    assert (held_out.shape, labels.dtype) == ((2, 28, 28), torch.int64)
    assert x.flatten()[:12].tolist() == [*range(10), 0, 1]
    assert sorted(mirror.rglob("*")) == before


def test_mnist_that_cannot_be_had(mirror, monkeypatch, tmp_path):
    write_mnist(mirror, monkeypatch)
    path = mirror / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MissingData, match=r"t10k-labels.* is missing or damaged.*unset COURSE_DATA"):
        images.mnist()
    monkeypatch.delenv("COURSE_DATA")
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(MissingData, match="Connect to the network"):
        images.mnist()


def test_cifar10_from_a_mirror(small):
    x, y, new_x, new_y = images.cifar10()
    right_x, right_y = pictures(5, seed=5)
    assert (x.dtype, x.shape, y.dtype) == (torch.uint8, (5, 3, 32, 32), torch.int64)
    assert np.array_equal(x[2, 1].numpy(), right_x[2, :, :, 1])
    assert y.tolist() == right_y.tolist()
    assert (new_x.shape, new_y.shape) == ((3, 3, 32, 32), (3,))
    assert x.is_contiguous()


def test_cifar10_whole_in_a_mirror(small, monkeypatch):
    put_whole(small, monkeypatch)
    x, y, new_x, _ = images.cifar10()
    right_x, right_y = pictures(2, seed=1)
    assert (x.dtype, x.shape, new_x.shape) == (torch.uint8, (10, 3, 32, 32), (2, 3, 32, 32))
    assert np.array_equal(x[2, 1].numpy(), right_x[0, :, :, 1])
    assert y[2:4].tolist() == right_y.tolist()


def test_cifar10_whole_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setattr(data, "CACHE", tmp_path)
    put_whole(tmp_path, monkeypatch)
    assert images.cifar10()[0].shape == (10, 3, 32, 32)


def test_cifar10_that_cannot_be_had(small, monkeypatch, tmp_path):
    (small / "cifar10" / "test.npz").write_bytes(b"half of it")
    with pytest.raises(MissingData, match="damaged"):
        images.cifar10()
    (small / "cifar10" / "train.npz").unlink()
    with pytest.raises(MissingData, match=r"train.npz is missing.*unset COURSE_DATA"):
        images.cifar10()
    (small / "cifar-10-batches-py").mkdir()
    with pytest.raises(MissingData, match="Put a complete cifar-10-batches-py"):
        images.cifar10()
    monkeypatch.delenv("COURSE_DATA")
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(MissingData, match="Connect to the network"):
        images.cifar10()


@pytest.fixture
def weights(mirror, monkeypatch):
    """A mirror with random weights for a ResNet-20."""
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in images.CifarResNet(20).state_dict().items()}
    (mirror / "resnet_cifar10").mkdir()
    path = mirror / "resnet_cifar10" / "tiny.th"
    torch.save({"state_dict": state, "best_prec1": 0.0}, path)
    monkeypatch.setattr(images, "_RESNET", {20: ("tiny.th", hashlib.sha256(path.read_bytes()).hexdigest())})
    return path


def test_cifar_resnet_loads_its_weights_and_normalises(weights):
    model = images.cifar_resnet(20)
    saved = torch.load(weights, weights_only=True)["state_dict"]
    assert not model.training
    assert torch.equal(model.layer2[1].conv2.weight, saved["module.layer2.1.conv2.weight"])
    x = torch.rand(2, 3, 32, 32)
    logits = model(x)
    assert logits.shape == (2, 10)
    shift, scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    model.mean.zero_()
    model.std.fill_(1)
    assert torch.allclose(model((x - shift[:, None, None]) / scale[:, None, None]), logits, atol=1e-4)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_cifar_resnet_has_the_parameters_of_the_paper(depth, parameters):
    model = images.CifarResNet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in model.modules()) == depth


def test_the_shortcut_leaves_out_pixels_and_adds_empty_channels():
    block = images.CifarResNet(20).eval().layer2[0]
    nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_cifar_resnet_that_cannot_be_had(weights):
    with pytest.raises(ValueError, match="not for 21"):
        images.cifar_resnet(21)
    weights.write_bytes(b"half of it")
    with pytest.raises(MissingData, match="damaged"):
        images.cifar_resnet(20)
    weights.unlink()
    with pytest.raises(MissingData, match=r"is missing.*resnet_cifar10"):
        images.cifar_resnet(20)


@REAL
def test_the_real_figures():
    _, _, x, y = images.cifar10()
    model = images.cifar_resnet(20)
    with torch.inference_mode():
        logits = torch.cat([model(part / 255) for part in x.split(500)])
    assert (logits.argmax(1) == y).sum().item() == pytest.approx(9173, abs=3)  # rounding differs between machines
