"""Gradient descent on the input: the network stays as it is, the picture changes until the network sees what we want.

Complete the TODOs; hw1_backpropagation.ipynb explains each of them and checks it. `pytest` in this folder runs the
example tests. The last four are extra: everything else works without them.

`python sgd.py` writes pictures of three classes of ImageNet as VGG13-BN imagines them (it downloads 508 MB once);
`python sgd.py cifar` those of the ten classes of CIFAR-10 as a ResNet-20 imagines them (1 MB).
"""

import math  # noqa: F401
import sys
from functools import partial

import torch
import torch.nn.functional as F  # noqa: F401

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_and_jitter(img, step=32, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Make what a network expects of a picture, shifted by a few pixels at random.

    Args:
        img: pictures (B, C, H, W) in [0, 1].
        step: the largest shift in pixels, in each direction; what leaves on one side comes in on the other.
        mean: what is subtracted from each of the C channels.
        std: what each of the C channels is then divided by.

    Returns:
        A new tensor (B, C, H, W), with a graph back to `img`.
    """
    dx, dy = torch.randint(-step, step + 1, (2,)).tolist()
    mean, std = (torch.as_tensor(value, dtype=img.dtype, device=img.device).view(-1, 1, 1) for value in (mean, std))
    return (img.roll((dy, dx), (-2, -1)) - mean) / std


# TODO sgd-gradient-descent  (14 points, ~40 min)
def gradient_descent(input, model, loss, iterations=256, lr=0.05, prepare=normalize_and_jitter, tidy=None):
    """Change a picture in small steps so that `loss(model(prepare(picture)))` rises.

    The name is the published one. What it descends is the negative of `loss`: the caller names a quantity that is to
    become large, such as `lambda logits: logits[0, label]`. Each of the `iterations` steps is

        picture ← picture + lr · gradient / (rms + 1e-8),

    where rms is the root of the mean square of the gradient's entries, for each of the B pictures its own. So `lr` is
    the size of a typical change of a pixel, whatever the network.

    Args:
        input: the pictures to start from, (B, C, H, W).
        model: a network, or any function of a tensor. A network keeps its parameters, their gradients and its mode.
        loss: takes what the model returns to a scalar tensor.
        iterations: number of steps.
        lr: size of a step.
        prepare: makes of the picture what the model sees, in each step anew. The picture itself is not prepared.
        tidy: takes the picture after each step to the one that the next step starts from; None leaves it.

    Returns:
        The new pictures (B, C, H, W), without a graph. `input` stays as it is.
    """
    raise NotImplementedError("sgd-gradient-descent")


# TODO sgd-blur  (3 points, ~15 min)
def blur(img, sigma):
    """Extra: blur pictures with a Gaussian.

    The kernel has the weights exp(-i² / (2 sigma²)) at i = -r … r with r = ⌈3 sigma⌉, divided by their sum, along rows
    and along columns. At the edges the picture is continued as in a mirror (padding mode "reflect").

    Args:
        img: pictures (B, C, H, W).
        sigma: standard deviation of the Gaussian in pixels; 0 leaves the pictures as they are.

    Returns:
        New pictures (B, C, H, W); the channels do not mix.
    """
    raise NotImplementedError("sgd-blur")


# TODO sgd-tidy-up  (3 points, ~10 min)
def tidy_up(img, decay=0.01, sigma=0.6, background=0.5):
    """Extra: keep pictures smooth, faint and possible. To be used as `tidy` of `gradient_descent`.

    Three things, in this order: every pixel moves the share `decay` of the way towards `background`; the picture is
    blurred with `sigma`; values outside [0, 1] are cut off.

    Args:
        img: pictures (B, C, H, W).
        decay: 0 leaves the pixels, 1 makes everything background.
        sigma: for `blur`.
        background: the value of an empty picture.

    Returns:
        New pictures (B, C, H, W) in [0, 1].
    """
    raise NotImplementedError("sgd-tidy-up")


# TODO sgd-scales  (4 points, ~15 min)
def gradient_descent_at_scales(input, model, loss, iterations=256, sizes=(24, 32), **options):
    """Extra: draw the rough shape in a small picture first, the details in larger ones.

    For each size in turn, the picture is resized to size × size (`F.interpolate`, mode "bilinear", align_corners=False)
    and then changed by `gradient_descent`, with `iterations` steps and all `options`.

    Args:
        input: the pictures to start from, (B, C, H, W).
        model: must take pictures of every size.
        loss: as for `gradient_descent`.
        iterations: number of steps at each size.
        sizes: heights (and widths) in pixels, the smallest first.
        **options: passed on: lr, prepare, tidy.

    Returns:
        The new pictures (B, C, size, size) of the last size.
    """
    raise NotImplementedError("sgd-scales")


# TODO sgd-activation  (2 points, ~10 min)
def forward_and_return_activation(model, input, module):
    """Extra: what a module in the middle of a network returns, when the network is applied to `input`.

    Args:
        model: the network.
        input: what it is applied to.
        module: one of its modules, such as `model[2]`.

    Returns:
        The module's output, with the graph back to `input`, so that `gradient_descent` can climb it. No hook is left
        behind in the module.
    """
    raise NotImplementedError("sgd-activation")


def main(name="imagenet"):
    """Write the classes that a pretrained network imagines to files dream_<class>.png.

    Args:
        name: "imagenet" for VGG13-BN, "cifar" for ResNet-20.
    """
    from torchvision.utils import save_image

    from common.data import images

    if name == "cifar":
        classes, size = dict(enumerate(images.CIFAR10_CLASSES)), 32
        model = images.cifar_resnet(20)  # normalises by itself
        prepare = partial(normalize_and_jitter, mean=(0, 0, 0), std=(1, 1, 1))
    else:
        from torchvision.models import VGG13_BN_Weights, vgg13_bn

        classes, size = {0: "tench", 12: "house finch", 954: "banana"}, 224
        model, prepare = vgg13_bn(weights=VGG13_BN_Weights.IMAGENET1K_V1).eval(), normalize_and_jitter
    try:
        tidy_up(torch.zeros(1, 3, size, size))
        tidy = tidy_up
    except NotImplementedError:  # extra
        tidy = None
    torch.manual_seed(0)
    for label, word in classes.items():
        start = 0.5 + 0.03 * torch.randn(1, 3, size, size)
        jitter = partial(prepare, step=size // 8)
        picture = gradient_descent(
            start, model, lambda logits, label=label: logits[0, label], prepare=jitter, tidy=tidy
        )
        with torch.no_grad():
            before, after = (model(prepare(img, step=0)).softmax(-1)[0, label].item() for img in (start, picture))
        save_image(stretched(picture), f"dream_{word.replace(' ', '_')}.png")
        print(f"{word}: probability {before:.1%} at the start, {after:.1%} at the end")


def stretched(img):
    """Return pictures (B, C, H, W) with contrast enough to look at: 5 standard deviations fill [0, 1]."""
    channel = img.mean((-2, -1), keepdim=True)
    spread = (img - channel).std((-3, -2, -1), keepdim=True) + 1e-8
    return (0.5 + (img - channel) / (5 * spread)).clamp(0, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
