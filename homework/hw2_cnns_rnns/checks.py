"""The checks of Homework 2: one section for each notebook."""

import contextlib
import gc
import io
import itertools
import math
import time
import weakref
from fractions import Fraction
from functools import partial, reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import jacobian
from torchvision.models.resnet import BasicBlock

from common.checks import Answer, alike, always, check, kind_of, made_by
from common.data import images

# Library functions that would be the whole answer (see `check`).
LIBRARY_CONVOLUTION = ("conv1d", "conv2d", "conv3d", "conv_transpose", "convolution", "convolve", "correlate")
LIBRARY_WINDOWS = (*LIBRARY_CONVOLUTION, "fold", "im2col", "col2im")

# ==============================================================================================================
# theory
#
# The checks of Homework 2, theory.
#
# The oracles are torch's own convolution, NumPy's, automatic differentiation in float64, and identities. A wrong
# derivative is made as a right one is: by differentiating, but something else: a model in which one path is cut, one
# matrix is transposed, one index moved. So no formula that is asked for stands here.
# ==============================================================================================================


DERIVED = 1e-6  # how far a derivation may be off, as a share of the largest value


def double(case, *shape):
    """Draw float64."""
    return case.randn(*shape, dtype=torch.float64)


def lazily(mistakes):
    """Return mistakes by number or tuple, those left out that cannot be made with these sizes."""
    found = {}
    for sentence, make in mistakes.items():
        try:
            found[sentence] = make()
        except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
            continue
    return found


def entries(case, given, keys):
    """Demand a dictionary with these keys, each answered."""
    case.true(isinstance(given, dict), "return a dictionary (is the return statement there?)")
    for key in keys:
        case.true(key in given, f"the key {key!r} is missing; there are {', '.join(map(repr, given))}")
        case.true(given[key] is not None, f"{key} has no answer yet: replace None")
    return [given[key] for key in keys]


def equal_text(case, given, right, what, mistakes):
    """Demand a number or tuple; as text, so that a message shows it."""
    if isinstance(given, (list, tuple)):
        given, right = str(tuple(given)), str(right)
        mistakes = {name: str(made) for name, made in mistakes.items()}
    case.equal(given, right, what=what, mistakes=mistakes)


def demand_numbers(case, trials):
    """Demand what several calls returned; a mistake is named only if it explains all of them.

    Each trial is (what, given, right, function that makes the mistakes). One number alone fits too many mistakes by
    chance.
    """
    if all(given == right for _, given, right, _ in trials):
        return
    made = [(given, right, mistakes()) for _, given, right, mistakes in trials]
    first = next(place for place, (given, right, _) in enumerate(made) if given != right)
    given, right, mistakes = made[first]
    explains = {
        sentence: wrong
        for sentence, wrong in mistakes.items()
        if all(theirs.get(sentence, goal) == found for found, goal, theirs in made)
    }
    equal_text(case, given, right, what=trials[first][0], mistakes=explains)


# -- the size of a convolution ----------------------------------------------------------------------------


def torch_output_size(size, kernel, filters, padding, stride, dilation):
    """Return what torch makes of an image of zeros: (F, height, width)."""
    image, weight = torch.zeros(1, 1, *size), torch.zeros(filters, 1, *kernel)
    padded = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    return tuple(F.conv2d(padded, weight, stride=stride, dilation=dilation).shape[1:])


def output_size_mistakes(size, kernel, filters, padding, stride, dilation):
    """Return the sizes that common mistakes lead to: torch's, for other arguments."""
    zero, one = (0, 0), (1, 1)

    def once():
        padded = tuple(n + p for n, p in zip(size, padding, strict=True))
        return torch_output_size(padded, kernel, filters, zero, stride, dilation)

    def rounded_up():
        longer = tuple(n + s - 1 for n, s in zip(size, stride, strict=True))
        return torch_output_size(longer, kernel, filters, padding, stride, dilation)

    def reach_too_long():
        wide = tuple(k * d for k, d in zip(kernel, dilation, strict=True))
        return torch_output_size(size, wide, filters, padding, stride, one)

    def reach_too_short():
        wide = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        return torch_output_size(size, wide, filters, padding, stride, one)

    def plus(number):
        channels, height, width = torch_output_size(size, kernel, filters, padding, stride, dilation)
        return channels, height + number, width + number

    def first_of_each():
        kernels, *others = ((pair[0],) * 2 for pair in (kernel, padding, stride, dilation))
        width = torch_output_size((size[1], size[1]), kernels, filters, *others)[2]
        return filters, plus(0)[1], width

    def first_settings():
        others = ((pair[0],) * 2 for pair in (padding, stride, dilation))
        return filters, plus(0)[1], torch_output_size(size, kernel, filters, *others)[2]

    def gaps_beside_taps():
        wide = tuple(k + (k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        return torch_output_size(size, wide, filters, padding, stride, one)

    right = torch_output_size
    ceil = "rounded up: a window that sticks out at the end gives no output, so round down"
    return lazily(
        {
            "the padding is counted once; it is added on both sides": once,
            "the padding is not counted": lambda: right(size, kernel, filters, zero, stride, dilation),
            "the stride is not used": lambda: right(size, kernel, filters, padding, one, dilation),
            "the dilation is not used": lambda: right(size, kernel, filters, padding, stride, one),
            "stride and dilation are exchanged": lambda: right(size, kernel, filters, padding, dilation, stride),
            ceil: rounded_up,
            "one too few: the + 1 is missing (the first window counts, too)": lambda: plus(-1),
            "one too many: the + 1 stands twice, or the kernel is taken to reach over one position less than it does": (
                lambda: plus(1)
            ),
            "a dilated kernel is taken to reach over D·K positions: between K taps there are only K - 1 gaps": (
                reach_too_long
            ),
            "a dilated kernel is taken to reach over D·(K - 1) positions: the first tap needs one, too": (
                reach_too_short
            ),
            "height and width are exchanged": lambda: (plus(0)[0], plus(0)[2], plus(0)[1]),
            "the first number of each pair is used for the width, too": first_of_each,
            "padding, stride and dilation of the height are used for the width, too": first_settings,
            "D positions are counted for each gap, and the taps besides: neighbours that lie D apart have D - 1 "
            "between them": gaps_beside_taps,
            "F belongs in front: (F, height, width)": lambda: (*plus(0)[1:], filters),
            "F is missing: (F, height, width)": lambda: plus(0)[1:],
        }
    )


@check("convolution-output-size", points=5, part="theory")
def convolution_output_size(answer, case):
    """Against the shape that `F.conv2d` returns."""

    def trial(size, kernel, filters, padding=(0, 0), stride=(1, 1), dilation=(1, 1)):
        settings = size, kernel, filters, padding, stride, dilation
        try:
            found = answer(*settings)
        except ValueError:
            case.true(
                False,
                f"size {size}, kernel {kernel}, padding {padding}, stride {stride}, dilation {dilation}: your code "
                f"raises ValueError, but the kernel fits: torch has a result. Is its reach too long, the padding "
                "forgotten, or 'fits exactly' taken for 'does not fit'?",
            )
        case.true(found is not None, "the result is None (is a return statement missing?)")
        case.true(isinstance(found, (tuple, list)), f"the result is a {kind_of(found)}, expected (F, height, width)")
        case.true(
            all(isinstance(part, int) for part in found),
            f"the result is {tuple(found)}: sizes are whole numbers (integer division is //)",
        )
        what = (
            f"for size {size}, kernel {kernel}, F = {filters}, padding {padding}, stride {stride}, dilation "
            f"{dilation} the result"
        )
        return what, tuple(found), torch_output_size(*settings), lambda: output_size_mistakes(*settings)

    def demand(*trials):
        demand_numbers(case, trials)

    def pair(low, high):
        return int(case.randint(low, high)), int(case.randint(low, high))

    with case("how many places a kernel has", points=1, hint="a row of 5 has 3 places for a kernel of 3"):
        demand(
            trial((5, 9), (3, 2), 4),
            trial((7, 4), (7, 1), 1),
            *(trial(pair(6, 20), pair(1, 6), int(case.randint(1, 9))) for _ in range(5)),
        )
    with case("padding on both sides, and a stride", points=1, hint="2P more positions; every S-th window; round down"):
        demand(
            trial((10, 13), (3, 3), 2, padding=(1, 2)),
            trial((10, 13), (3, 4), 2, stride=(2, 3)),
            *(trial(pair(8, 20), pair(1, 6), 3, padding=pair(0, 4), stride=pair(1, 5)) for _ in range(20)),
        )
    with case("dilation", points=1, hint="draw a kernel of 3 with dilation 2: over how many positions does it reach?"):
        demand(
            trial((12, 15), (3, 3), 2, dilation=(2, 3)),
            *(trial(pair(15, 25), pair(1, 5), 3, dilation=pair(1, 4)) for _ in range(20)),
        )
    with case("everything at once, in 100 random settings", points=1, hint="compute height and width each on its own"):
        settings = (
            (pair(16, 32), pair(1, 6), int(case.randint(1, 9)), pair(0, 4), pair(1, 5), pair(1, 4)) for _ in range(100)
        )
        demand(*itertools.starmap(trial, settings))
    with case("ValueError when nothing fits", points=1, hint="compare the reach of the kernel with H + 2P, each axis"):
        demand(  # these just fit
            trial((5, 7), (3, 3), 2, dilation=(2, 3)),
            trial((5, 4), (5, 6), 2, padding=(0, 1), stride=(2, 3)),
            trial((7, 9), (3, 5), 2, stride=(4, 1), dilation=(3, 2)),
        )
        for settings in (
            ((4, 9), (5, 3), 2, (0, 0), (1, 1), (1, 1)),
            ((9, 4), (3, 5), 2, (0, 0), (2, 2), (1, 1)),
            ((6, 6), (3, 3), 2, (0, 0), (3, 3), (1, 3)),
            ((2, 2), (5, 5), 1, (1, 1), (4, 4), (1, 1)),
        ):
            raised, found = "", None
            try:
                found = answer(*settings)
            except NotImplementedError:
                raise
            except Exception as error:
                raised = type(error).__name__
            said = f"raises {raised}" if raised else f"returns {found}"
            case.true(
                raised == "ValueError",
                f"size {settings[0]}, kernel {settings[1]}, padding {settings[3]}, stride {settings[4]}, dilation "
                f"{settings[5]} {said}, expected ValueError: the kernel does not fit even once (torch refuses it, too)",
            )


# -- the receptive field ----------------------------------------------------------------------------------


def counted_field(layers, length=3000):
    """Count the inputs that have a gradient from one output of a stack of convolutions with positive weights."""
    x = torch.zeros(1, 1, length, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride, dilation in layers:
        y = F.conv1d(y, torch.full((1, 1, kernel), 1 / kernel, dtype=y.dtype), stride=stride, dilation=dilation)
    (gradient,) = torch.autograd.grad(y[0, 0, 0], x)
    return int(gradient.nonzero()[:, -1].max()) + 1  # gaps count: the field reaches from the first to the last


def field_mistakes(layers):
    """Return the fields that common mistakes lead to: those of other stacks."""
    strides = [stride for _, stride, _ in layers]
    early = [(1, strides[0], 1)] + [
        (kernel, stride, dilation) for (kernel, _, dilation), stride in zip(layers, [*strides[1:], 1], strict=True)
    ]
    right = counted_field(layers)

    def added_up(distances):
        """Add up the layers, each on inputs that lie this far apart."""
        alone = (
            counted_field([(1, distance, 1), (kernel, 1, dilation)])
            for distance, (kernel, _, dilation) in zip(distances, layers, strict=True)
        )
        return 1 + sum(field - 1 for field in alone)

    return lazily(
        {
            "the strides are not used: behind a layer of stride S, one step is S input positions": lambda: (
                counted_field([(kernel, 1, dilation) for kernel, _, dilation in layers])
            ),
            "the dilations are not used": lambda: counted_field([(k, s, 1) for k, s, _ in layers]),
            "a layer's own stride spreads only the layers after it, not its own kernel": lambda: counted_field(early),
            "the layers are taken in reverse order: the first in the list is nearest to the input": lambda: (
                counted_field(layers[::-1])
            ),
            "one position is missing: a stack without any layer already sees one": lambda: right - 1,
            "each layer adds the K - 1 gaps of its kernel, not its K taps": lambda: (
                right + sum(math.prod(strides[:index]) for index in range(len(layers)))
            ),
            "each layer adds D·(K - 1) positions, not D·K": lambda: (
                right + sum(layer[2] * math.prod(strides[:index]) for index, layer in enumerate(layers))
            ),
            "a dilation is taken to lengthen the distance between neighbouring outputs; only a stride does": lambda: (
                counted_field([(k, s * d, d) for k, s, d in layers])
            ),
            "the stride of one layer replaces the distance so far; it multiplies it": lambda: added_up(
                [1, *strides[:-1]]
            ),
            "the strides are added up; each multiplies the distance so far": lambda: added_up(
                [1 + sum(stride - 1 for stride in strides[:index]) for index in range(len(layers))]
            ),
            "one position too many": lambda: right + 1,
            "that is the field of the last layer only": lambda: counted_field(layers[-1:]),
            "that is the field of the first layer only": lambda: counted_field(layers[:1]),
            "the fields of the layers are multiplied; they grow by sums": lambda: math.prod(
                counted_field([layer]) for layer in layers
            ),
            "the fields of the layers are added; neighbours share a position": lambda: sum(
                counted_field([layer]) for layer in layers
            ),
            "only the largest layer counts; the fields of all layers add up": lambda: max(
                counted_field([layer]) for layer in layers
            ),
        }
    )


@check("receptive-field", points=3, part="theory")
def receptive_field(answer, case):
    """By the gradient: which inputs does one output depend on?"""

    def trial(layers):
        found = answer(layers)
        if isinstance(found, float) and found == int(found):
            found = int(found)
        return f"for the layers {layers} your number", found, counted_field(layers), lambda: field_mistakes(layers)

    def demand(*stacks):
        demand_numbers(case, [trial(layers) for layers in stacks])

    def layer(strides, dilations):
        return int(case.randint(2, 6)), int(case.randint(1, strides)), int(case.randint(1, dilations))

    with case("one layer", points=1, hint="a kernel of K taps with D - 1 gaps between neighbours"):
        demand([(3, 1, 1)], [(3, 1, 2)], [(5, 3, 4)])
    with case("a stack without strides", points=1, hint="each layer lengthens the field by what its kernel reaches"):
        powers = [(2, 1, 2**level) for level in range(5)]
        demand([(3, 1, 1), (3, 1, 1)], powers, [layer(2, 4) for _ in range(3)], [(4, 1, 1), (2, 1, 3), (3, 1, 2)])
    with case("a stack with strides", points=1, hint="keep the distance in the input between two neighbouring outputs"):
        random = [[layer(4, 4) for _ in range(4)] for _ in range(4)]
        demand([(3, 2, 1), (3, 1, 1)], [(2, 2, 1), (4, 3, 2), (3, 1, 3)], *random)


# -- correlation and convolution --------------------------------------------------------------------------


def numpy_result(function, x, w, mode):
    """Return what NumPy makes of two sequences."""
    return torch.from_numpy(np.ascontiguousarray(function(x.numpy(), w.numpy(), mode)))


def around_the_circle(x, w):
    """Return the convolution in which the sequence x closes to a circle."""
    turned = [x.roll(j) * w[j] for j in range(len(w))]
    return torch.stack(turned).sum(0)


@check("correlate-1d", points=2, part="theory", from_scratch=LIBRARY_CONVOLUTION)
def correlate_1d(answer, case):
    """Against `numpy.correlate`."""

    def mistakes_of(x, w):
        right = numpy_result(np.correlate, x, w, "valid")
        return {
            "the kernel is flipped: this is a convolution": lambda: numpy_result(np.convolve, x, w, "valid"),
            "the places where the kernel sticks out are there, too: p runs over 0 … n - k": lambda: numpy_result(
                np.correlate, x, w, "full"
            ),
            "the result is as long as x: p runs over 0 … n - k only": lambda: numpy_result(np.correlate, x, w, "same"),
            "the last place is missing: p runs over 0 … n - k, so there are n - k + 1": lambda: right[:-1],
            "the first place is missing": lambda: right[1:],
            "the results are in reverse order": lambda: right.flip(0),
            "x is read backwards: its index is p + j": lambda: numpy_result(np.correlate, x.flip(0), w, "valid"),
            "every window has the products of the first one": lambda: right[:1].expand_as(right),
            "the window moves by k each time; it moves by 1": lambda: right[:: len(w)],
            "the products are averaged; they are added": lambda: right / len(w),
            "the last tap of the kernel is not used": lambda: numpy_result(np.correlate, x[:-1], w[:-1], "valid"),
        }

    def demand(x, w):
        what = f"the result for n = {len(x)}, k = {len(w)}"
        right = numpy_result(np.correlate, x, w, "valid")
        case.close(answer(x, w), right, what=what, mistakes=mistakes_of(x, w), tolerance=DERIVED)

    with case("one number for each place of the kernel", points=1, hint="multiply the window x[p … p+k-1] by w, add"):
        demand(torch.tensor([1.0, 2, 3, 4, 6, 9], dtype=torch.float64), torch.tensor([1.0, 0, -2], dtype=torch.float64))
        demand(double(case, 12), double(case, 4))
    with case("kernels of size 1 and of the size of x", points=1, hint="n - k + 1 places, here n and 1"):
        demand(double(case, 5), double(case, 1))
        demand(double(case, 5), double(case, 5))
        demand(double(case, 1), double(case, 1))
        case.unchanged(answer, double(case, 5), double(case, 2))


@check("convolve-1d", points=2, part="theory", from_scratch=LIBRARY_CONVOLUTION)
def convolve_1d(answer, case):
    """Against `numpy.convolve`."""

    def mistakes_of(x, w):
        right = numpy_result(np.convolve, x, w, "full")
        return {
            "the kernel is not flipped: this is a cross-correlation (the index of x is p - j)": lambda: numpy_result(
                np.correlate, x, w, "full"
            ),
            "the result is flipped as a whole": lambda: right.flip(0),
            "only the places where the kernel lies inside x are there: p runs over 0 … n + k - 2": lambda: numpy_result(
                np.convolve, x, w, "valid"
            ),
            "only the places where the kernel lies inside x are there, and the kernel is not flipped": lambda: (
                numpy_result(np.correlate, x, w, "valid")
            ),
            "the result is as long as x: p runs over 0 … n + k - 2": lambda: right[: len(x)],
            "the result is as long as x, its beginning is cut off": lambda: right[len(w) - 1 :],
            "the result is as long as x: it is cut on both sides": lambda: numpy_result(np.convolve, x, w, "same"),
            "one entry too many: there are n + k - 1": lambda: F.pad(right, (0, 1)),
            "one entry too few: there are n + k - 1": lambda: right[:-1],
            "x is taken for a circle (x[-1] is its last entry); outside of x everything is 0": lambda: (
                around_the_circle(x, w)
            ),
            "negative indices of x count from its end; outside of x everything is 0": lambda: torch.cat(
                [around_the_circle(x, w), right[len(x) :]]
            ),
            "x is taken for a circle; outside of x everything is 0": lambda: around_the_circle(x, w)[
                torch.arange(len(right)) % len(x)
            ],
            "the copies of the kernel overwrite each other; add them (+=)": lambda: torch.cat(
                [x[:-1] * w[0], x[-1] * w]
            ),
            "x is read backwards": lambda: numpy_result(np.convolve, x.flip(0), w, "full"),
            "the first number of x is left out": lambda: numpy_result(
                np.convolve, torch.cat([x[:1] * 0, x[1:]]), w, "full"
            ),
            "the last number of x is left out": lambda: numpy_result(
                np.convolve, torch.cat([x[:-1], x[-1:] * 0]), w, "full"
            ),
            "a zero too many stands on both sides: a kernel that touches x has k - 1 taps outside": lambda: F.pad(
                right, (1, 1)
            ),
        }

    def demand(x, w):
        what = f"the result for n = {len(x)}, k = {len(w)}"
        right = numpy_result(np.convolve, x, w, "full")
        case.close(answer(x, w), right, what=what, mistakes=mistakes_of(x, w), tolerance=DERIVED)

    with case("agrees with numpy.convolve", points=1, hint="n + k - 1 results; leave out what lies outside of x"):
        demand(torch.tensor([0.0, 1, 0, 0, 0], dtype=torch.float64), torch.tensor([3.0, 2, 1], dtype=torch.float64))
        demand(double(case, 12), double(case, 4))
        demand(double(case, 5), double(case, 1))
    with case("x and w may change places", points=1, hint="the kernel may be longer than x"):
        demand(double(case, 3), double(case, 7))
        demand(double(case, 1), double(case, 4))
        case.unchanged(answer, double(case, 5), double(case, 2))
        x, w = double(case, 4), double(case, 4)
        unequal = always("x * w and w * x differ, but a convolution commutes")
        case.close(answer(w, x), answer(x, w), mistakes=unequal, tolerance=DERIVED)


# -- the layer f and its derivatives ----------------------------------------------------------------------


def conv_layer(x, W, s, flip=False):
    """Return f (n', F) from x (n, d) and W (F, k, d), by torch's own convolution."""
    taps = W.flip(1) if flip else W
    return F.conv1d(x.T[None], taps.mT, stride=s)[0].T


def spread_layer(x, W, s):
    """Return f as it is when the stride is taken for a dilation; beyond x there are zeros."""
    longer = F.pad(x, (0, 0, 0, W.shape[1] * s))
    return F.conv1d(longer.T[None], W.mT, dilation=s)[0].T[: (len(x) - W.shape[1]) // s + 1]


SPREAD = "the stride is taken for a dilation: it moves the whole window, it does not spread the taps"


def layer_sizes(case, number=3):
    """Yield n, d, k, s, filters: all different, one with positions left over, one with everything 1."""
    yield 11, 2, 4, 3, 5  # the last window ends before the last position
    for _ in range(number):
        k, s = int(case.randint(2, 5)), int(case.randint(1, 4))
        yield k + s * int(case.randint(1, 4)) + int(case.randint(0, s)), int(case.randint(1, 4)), k, s, 3


def sizes_text(n, d, k, s, filters):
    """Name the sizes in a message."""
    return f"n = {n}, d = {d}, k = {k}, s = {s}, F = {filters}"


@check("layer-shapes", points=2, part="theory")
def layer_shapes(answer, case):
    """Against the shapes of what autograd returns."""

    def demand(key, n, d, k, s, filters):
        (given,) = entries(case, answer(n, d, k, s, filters), [key])
        x, W = torch.zeros(n, d), torch.zeros(filters, k, d)
        f = conv_layer(x, W, s)
        made = {
            "f": lambda: f,
            "df_dW": lambda: jacobian(lambda W: conv_layer(x, W, s), W),
            "df_dx": lambda: jacobian(lambda x: conv_layer(x, W, s), x),
            "dl_dW": lambda: jacobian(lambda W: conv_layer(x, W, s).sum(), W),
        }
        right = tuple(made[key]().shape)
        out, rest = tuple(f.shape), {"df_dW": (filters, k, d), "df_dx": (n, d)}.get(key, ())
        longer = out[0] + 1
        mistakes = {
            "the axes are in reverse order": right[::-1],
            "F comes last in f: one row for each output position": (out[1], out[0], *rest),
            "numerator layout: the axes of f first, then those of what f is differentiated by": (*rest, *out),
            "the axes of f are missing: every entry of f has a derivative of its own": rest,
            "the axis of the filters appears twice: each filter's output, by each filter's weights": (
                (out[0], filters, k, d) if key == "df_dW" else None
            ),
            "the axis of the output positions is missing": (filters, *rest) if rest else (filters,),
            "the axes are flattened; here every axis is kept": (math.prod(out), math.prod(rest)) if rest else None,
            "the gradient of a scalar has the shape of W, and no axis of f": (*out, filters, k, d),
            "the number of output positions is rounded up: only whole windows count": (longer, *right[1:]),
            "the stride is not used in the number of output positions": (n - k + 1, *right[1:]),
            "one output position is missing (the + 1)": (out[0] - 1, *right[1:]),
            "W is (F, k, d): the taps come before the channels": (
                (*right[:-2], d, k) if key in ("df_dW", "dl_dW") else None
            ),
            "every filter adds over the channels: f has F columns": (out[0], d, *rest) if key != "dl_dW" else None,
            "ℓ is a number: it adds no axis, not even one of size 1": (1, *right) if key == "dl_dW" else None,
            "the dl in ∂ℓ/∂W is a number: the result has W's axes in W's order (F, k, d)": (k, d, filters),
        }
        mistakes = {name: wrong for name, wrong in mistakes.items() if wrong not in (None, right)}
        what = f"your shape of {key} for {sizes_text(n, d, k, s, filters)}"
        equal_text(case, given, right, what=what, mistakes=mistakes)

    with case("f and ∂ℓ/∂W", points=1, hint="one row for each window, one column for each filter; ℓ is a number"):
        for key, sizes in itertools.product(("f", "dl_dW"), layer_sizes(case)):
            demand(key, *sizes)
    with case("∂f/∂W and ∂f/∂x", points=1, hint="the axes of f, then the axes of what f is differentiated by"):
        for key, sizes in itertools.product(("df_dW", "df_dx"), layer_sizes(case)):
            demand(key, *sizes)


def derivative_by_w(x, k, s, filters, layer=conv_layer):
    """Return ∂f/∂W (n', F, F, k, d)."""
    W = torch.zeros(filters, k, x.shape[1], dtype=x.dtype)
    return jacobian(lambda W: layer(x, W, s), W)


@check("layer-jacobian-w", points=4, part="theory", autograd=False)
def layer_jacobian_w(answer, case):
    """Against autograd in float64."""

    def mistakes_of(x, k, s, filters):
        right = derivative_by_w(x, k, s, filters)
        rows = len(right)
        return {
            "filter i also depends on the weights of the other filters here; it uses only its own": lambda: right.sum(
                2, keepdim=True
            ).expand_as(right),
            "every output has the derivative of output 0: the window must move with r": lambda: right[:1].expand_as(
                right
            ),
            "the stride is not used: output r begins at position r·s": lambda: derivative_by_w(x, k, 1, filters)[:rows],
            "the window is flipped: this is the derivative of a convolution": lambda: right.flip(3),
            "channels and taps are exchanged: W is (F, k, d)": lambda: right.mT,
            "channels and taps are exchanged without a transpose": lambda: right.mT.reshape(right.shape),
            "the window begins one position late": lambda: derivative_by_w(x.roll(-1, 0), k, s, filters),
            "the window begins one position early": lambda: derivative_by_w(x.roll(1, 0), k, s, filters),
            "the axis of the other filter is missing: (n', F, F, k, d)": lambda: right.sum(2),
            "the axes of f come first: (n', F), then those of W": lambda: right.permute(2, 3, 4, 0, 1),
            "in f the positions come first, then the filters": lambda: right.transpose(0, 1),
            "the derivative is 1 where W[i, j, c] is used; but f multiplies it by x": lambda: derivative_by_w(
                torch.ones_like(x), k, s, filters
            ),
            "the last output is missing: there are (n - k) // s + 1": lambda: right[:-1],
            "the sign is wrong": lambda: -right,
            "the derivative is divided by the number of taps": lambda: right / k,
            SPREAD: lambda: derivative_by_w(x, k, s, filters, spread_layer),
            "the channels are added; W[i, j, c] meets only channel c": lambda: derivative_by_w(
                x.sum(1, keepdim=True).expand_as(x), k, s, filters
            ),
            "only filter 0 has a derivative; each filter needs its own": lambda: (
                right * (torch.arange(filters) == 0)[:, None, None, None]
            ),
            "the derivative of the last output is missing": lambda: torch.cat([right[:-1], right[-1:] * 0]),
            "the derivative of the first output is missing": lambda: torch.cat([right[:1] * 0, right[1:]]),
        }

    def demand(n, d, k, s, filters):
        x = double(case, n, d)
        what = f"∂f/∂W for {sizes_text(n, d, k, s, filters)}"
        right = derivative_by_w(x, k, s, filters)
        mistakes = mistakes_of(x, k, s, filters)
        case.close(answer(x, k, s, filters), right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("one filter, one channel, stride 1", points=1, hint="row r of ∂f/∂W is the window that output r sees"):
        demand(7, 1, 3, 1, 1)
    with case("strides and channels", points=1, hint="output r sees the positions r·s … r·s + k - 1"):
        demand(11, 2, 4, 3, 1)
        demand(9, 3, 2, 2, 1)
    with case("several filters", points=1, hint="f[r, i] does not depend on the weights of another filter"):
        demand(8, 1, 3, 1, 2)
        for sizes in layer_sizes(case):
            demand(*sizes)
    with case("sizes of 1, and x one window long", points=1, hint="no size may be fixed; (n - k) // s + 1 outputs"):
        demand(1, 1, 1, 1, 1)
        demand(4, 2, 4, 3, 3)
        demand(5, 1, 1, 2, 2)


def derivative_by_x(W, n, s, layer=conv_layer):
    """Return ∂f/∂x (n', F, n, d)."""
    return jacobian(lambda x: layer(x, W, s), torch.zeros(n, W.shape[2], dtype=W.dtype))


@check("layer-jacobian-x", points=5, part="theory", autograd=False)
def layer_jacobian_x(answer, case):
    """Against autograd in float64."""

    def mistakes_of(W, n, s):
        right = derivative_by_x(W, n, s)
        rows = len(right)
        return {
            "the kernel is flipped: position p = r·s + j meets tap j": lambda: derivative_by_x(W.flip(1), n, s),
            "the stride is not used: output r begins at position r·s": lambda: derivative_by_x(W, n, 1)[:rows],
            "every output has the derivative of output 0: the kernel must move with r": lambda: right[:1].expand_as(
                right
            ),
            "only output 0 has a derivative; the others need theirs": lambda: (
                right * (torch.arange(rows) == 0)[:, None, None, None]
            ),
            "the kernel lies one position too far on": lambda: right.roll(1, 2),
            "the kernel lies one position too early": lambda: right.roll(-1, 2),
            "the order of the axes is (n', F, n, d): those of f first": lambda: right.permute(2, 3, 0, 1),
            "in f the positions come first, then the filters": lambda: right.transpose(0, 1),
            "the last two axes are exchanged: x is (n, d)": lambda: right.mT,
            "all filters have the weights of filter 0": lambda: right[:, :1].expand_as(right),
            "all channels have the weights of channel 0": lambda: right[..., :1].expand_as(right),
            "the channels are added; x[p, c] meets only channel c of the kernel": lambda: right.sum(
                -1, keepdim=True
            ).expand_as(right),
            "the filters are added; f[r, i] has only filter i": lambda: right.sum(1, keepdim=True).expand_as(right),
            "the last output is missing: there are (n - k) // s + 1": lambda: right[:-1],
            "the derivative of the last output is missing": lambda: (
                right * (torch.arange(rows) < rows - 1)[:, None, None, None]
            ),
            "the last tap of the kernel is missing": lambda: derivative_by_x(
                W * (torch.arange(W.shape[1]) < W.shape[1] - 1)[:, None], n, s
            ),
            "the derivative is 1 where x[p, c] is used; but f multiplies it by a weight": lambda: (right != 0).to(
                right.dtype
            ),
            "windows overlap, and the entry of one output is added to another's": lambda: right.cumsum(0),
            "the sign is wrong": lambda: -right,
            SPREAD: lambda: derivative_by_x(W, n, s, spread_layer),
            "the outputs are added up: that is ∂(Σ f)/∂x; keep an axis for each entry of f": lambda: right.sum((0, 1)),
        }

    def demand(n, d, k, s, filters):
        W = double(case, filters, k, d)
        what = f"∂f/∂x for {sizes_text(n, d, k, s, filters)}"
        right = derivative_by_x(W, n, s)
        case.close(answer(W, n, s), right, what=what, mistakes=mistakes_of(W, n, s), tolerance=DERIVED)

    with case("one filter, one channel, stride 1", points=1, hint="a band: each row is the row above, moved by one"):
        demand(7, 1, 3, 1, 1)
    with case("strides", points=1, hint="each row is the row above, moved by s; beyond the window it is 0"):
        demand(11, 1, 4, 3, 1)
        demand(9, 1, 2, 3, 1)
    with case("channels and filters", points=2, hint="f[r, i] meets x[p, c] only through W[i, j, c] with p = r·s + j"):
        for sizes in layer_sizes(case, number=5):
            demand(*sizes)
    with case("sizes of 1, and x one window long", points=1, hint="no size may be fixed; (n - k) // s + 1 outputs"):
        demand(1, 1, 1, 1, 1)
        demand(4, 2, 4, 3, 3)
        demand(5, 1, 1, 2, 2)


def gradient_by_w(x, upstream, k, s, layer=conv_layer):
    """Return ∂ℓ/∂W (F, k, d)."""
    W = torch.zeros(upstream.shape[1], k, x.shape[1], dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad((layer(x, W, s)[: len(upstream)] * upstream).sum(), W)[0]


@check("layer-gradient-w", points=4, part="theory", autograd=False)
def layer_gradient_w(answer, case):
    """Against autograd in float64."""

    def mistakes_of(x, upstream, k, s):
        right, rows = gradient_by_w(x, upstream, k, s), len(upstream)

        def without(row):
            return gradient_by_w(x, upstream * (torch.arange(rows) != row)[:, None], k, s)

        return {
            "the average over the output positions is taken; the chain rule adds": lambda: right / rows,
            "the stride is not used: output r begins at position r·s": lambda: gradient_by_w(x, upstream, k, 1),
            "the taps are in reverse order: tap j met x[r·s + j]": lambda: right.flip(1),
            "the gradient has the axes (F, k, d), as W has": lambda: right.mT,
            "the axes of W are exchanged: (F, k, d)": lambda: right.permute(1, 2, 0),
            "filters come first: (F, k, d)": lambda: right.transpose(0, 1),
            "the last output position is left out of the sum": lambda: without(rows - 1),
            "the first output position is left out of the sum": lambda: without(0),
            "only the first output position counts; add over all of them": lambda: gradient_by_w(
                x, upstream * (torch.arange(rows) == 0)[:, None], k, s
            ),
            "only the last output position counts (= instead of +=?)": lambda: gradient_by_w(
                x, upstream * (torch.arange(rows) == rows - 1)[:, None], k, s
            ),
            "all filters get the gradient of all outputs: filter i gets that of f[:, i]": lambda: gradient_by_w(
                x, upstream.sum(1, keepdim=True).expand_as(upstream), k, s
            ),
            "∂ℓ/∂f is not used: this is the gradient for ∂ℓ/∂f = 1": lambda: gradient_by_w(
                x, torch.ones_like(upstream), k, s
            ),
            "∂ℓ/∂f is read backwards": lambda: gradient_by_w(x, upstream.flip(0), k, s),
            "x is shifted by one position": lambda: gradient_by_w(x.roll(-1, 0), upstream, k, s),
            "the channels are added; tap [j, c] met only channel c": lambda: right.sum(-1, keepdim=True).expand_as(
                right
            ),
            "channels and taps are exchanged without a transpose": lambda: right.mT.reshape(right.shape),
            SPREAD: lambda: gradient_by_w(x, upstream, k, s, spread_layer),
            "the sign is wrong": lambda: -right,
        }

    def demand(n, d, k, s, filters):
        x = double(case, n, d)
        upstream = double(case, *conv_layer(x, torch.zeros(filters, k, d, dtype=x.dtype), s).shape)
        what = f"∂ℓ/∂W for {sizes_text(n, d, k, s, filters)}"
        right = gradient_by_w(x, upstream, k, s)
        mistakes = mistakes_of(x, upstream, k, s)
        case.close(answer(x, upstream, k, s), right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("one filter, one channel, stride 1", points=1, hint="tap j meets x[r + j] at every output r: add"):
        demand(7, 1, 3, 1, 1)
    with case("strides", points=1, hint="at output r tap j meets x[r·s + j]"):
        demand(11, 1, 4, 3, 1)
        demand(12, 1, 2, 4, 1)
    with case("channels and filters", points=1, hint="a gradient for each W[i, j, c], in W's shape"):
        for sizes in layer_sizes(case, number=5):
            demand(*sizes)
    with case("sizes of 1, and x one window long", points=1, hint="no size may be fixed"):
        demand(1, 1, 1, 1, 1)
        demand(4, 2, 4, 3, 3)
        demand(5, 1, 1, 2, 2)


@check("gradient-kernel", points=2, part="theory", autograd=False)
def gradient_kernel(answer, case):
    """By its definition: probed with a single 1 in x, a correlation returns its kernel."""

    def probed(g, s):
        length = (len(g) - 1) * s + 1
        ones = torch.eye(length, dtype=g.dtype)
        return torch.cat([gradient_by_w(one[:, None], g[:, None], 1, s).flatten() for one in ones])

    def demand(outputs, s):
        g = double(case, outputs)
        right = probed(g, s)
        mistakes = {
            "it is reversed: correlate_1d reads its second argument forwards": lambda: right.flip(0),
            "the stride is not used: neighbouring outputs look at windows that lie s apart": lambda: g,
            "there are zeros behind the last entry: the sequence ends with it, or places are lost": lambda: torch.cat(
                [right, right.new_zeros(s - 1)]
            ),
            "there are zeros before the first entry: the sequence begins with it": lambda: torch.cat(
                [right.new_zeros(s - 1), right]
            ),
            "s zeros stand between two entries; entries that lie s apart have s - 1 between them": lambda: probed(
                g, s + 1
            ),
            "s - 2 zeros stand between two entries; entries that lie s apart have s - 1 between them": lambda: probed(
                g, s - 1
            ),
            "entries are repeated: between two outputs lies nothing that has a gradient, so zeros belong there": (
                lambda: g.repeat_interleave(s)[: len(right)]
            ),
            "entries are repeated: between two outputs lies nothing that has a gradient, so zeros belong there ": (
                lambda: g.repeat_interleave(s)
            ),
            "every s-th entry is taken out; the entries are to be spread": lambda: g[::s],
            "the values are interpolated; between two outputs there is no output": lambda: F.interpolate(
                g[None, None], len(right), mode="linear", align_corners=True
            )[0, 0],
        }
        mistakes = mistakes if s > 1 else {name: mistakes[name] for name in list(mistakes)[:1]}
        case.close(answer(g, s), right, what=f"the kernel for s = {s}", mistakes=mistakes, tolerance=DERIVED)

    with case("stride 1", points=1, hint="write down your sum for ∂ℓ/∂W[j], and below it that of a cross-correlation"):
        demand(5, 1)
        demand(1, 1)
    with case(
        "larger strides",
        points=1,
        hint="beside which entry of x does g[r] stand? How far apart are those of g[0] and g[1]?",
    ):
        demand(4, 2)
        demand(6, 3)
        demand(1, 3)
        demand(2, 5)


# -- the gated RNN ----------------------------------------------------------------------------------------


def gated_model(x, h, W_c, W_h, W_x):
    """Return h[t] and c[t]: between W_x x and h[t-1] by the share c."""
    gate = torch.special.expit(F.linear(x, W_c) + F.linear(h, W_h))
    return torch.lerp(F.linear(x, W_x), h, gate), gate


def gated_numbers(case, n, m):
    """Draw x, h, W_c, W_h, W_x."""
    shapes = (n,), (m,), (m, n), (m, m), (m, n)
    return [double(case, *shape) for shape in shapes]


def alike_tensor(result, right):
    """Say whether a result is a tensor that is right; for work that is done for wrong ones only."""
    return isinstance(result, torch.Tensor) and alike(result, right, DERIVED)


def those_that_explain(mistakes, result, made):
    """Keep the mistakes that another, larger result was `made` by, too; a small one may look like many."""
    return {sentence: wrong for sentence, wrong in mistakes.items() if alike_tensor(result, made[sentence]())}


def slope_of(function, at):
    """Return the derivative of a function that acts on each entry."""
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


@check("gated-shapes", points=2, part="theory")
def gated_shapes(answer, case):
    """Against the shapes that make the model run, and autograd's."""

    def made(key, n, m):
        """Build the parameter, or let autograd build the derivative, that a key stands for."""
        x, h = torch.zeros(n), torch.zeros(m)
        W = {"W_c": torch.zeros(m, n), "W_h": torch.zeros(m, m), "W_x": torch.zeros(m, n)}
        if key in W:
            return W[key]
        if key == "c":
            return gated_model(x, h, **W)[1]
        if key == "dl_dW_x":
            return jacobian(lambda W_x: gated_model(x, h, W["W_c"], W["W_h"], W_x)[0].sum(), W["W_x"])
        numerators = {
            "dh_dh": lambda h: gated_model(x, h, **W)[0],
            "dc_dh": lambda h: gated_model(x, h, **W)[1],
            "dl_dh": lambda h: h.sum()[None],
        }
        return jacobian(numerators[key], h)

    def demand(n, m, keys):
        for key, given in zip(keys, entries(case, answer(n, m), keys), strict=True):
            right = tuple(made(key, n, m).shape)
            known = {
                "W_c": {
                    "it is transposed: a matrix that maps n numbers to m has m rows": (n, m),
                    "the gate has one number for each entry of h[t-1], not one for all": (1, n),
                    "the gate has as many entries as h[t-1], which it multiplies: m": (n, n),
                    "what this matrix multiplies is x[t], which has n entries": (m, m),
                },
                "W_h": {
                    "what W_h multiplies is h[t-1], and c[t] is multiplied entry by entry with h[t-1]": (m, n),
                    "what W_h multiplies is h[t-1], and c[t] has as many entries": (n, m),
                    "the gate has one number for each entry of h[t-1], not one for all": (1, m),
                },
                "W_x": {
                    "it is transposed: a matrix that maps n numbers to m has m rows": (n, m),
                    "what this matrix multiplies is x[t], which has n entries": (m, m),
                },
                "c": {
                    "the gate has one number for each entry of h": (1,),
                    "c[t] is multiplied entry by entry with h[t-1], which has m entries": (n,),
                    "in code a column has one axis: (m,)": (m, 1),
                    "c[t] is a column, and in code it has one axis: (m,)": (1, m),
                },
                "dc_dh": {
                    "every entry of c[t] depends on every entry of h[t-1], through W_h: a matrix": (m,),
                    "the gate has one number for each entry of h[t-1], not one for all": (1, m),
                },
                "dh_dh": {"every entry of h[t] depends on every entry of h[t-1], through the gate: a matrix": (m,)},
                "dl_dh": {
                    "a row vector in numerator layout has one row: (1, m)": (m,),
                    "numerator layout: one row for each entry of what is differentiated, here a number": (m, 1),
                },
                "dl_dW_x": {
                    "it is transposed: the gradient is to be given in the shape of W_x": (n, m),
                    "the gradient of W_x is to be given in the shape of W_x, not as a row of m·n numbers": (1, m * n),
                    "ℓ is a number: it adds no axis, not even one of size 1": (1, m, n),
                },
            }
            mistakes = known[key]
            mistakes = {name: wrong for name, wrong in mistakes.items() if wrong != right}
            equal_text(case, given, right, what=f"your shape of {key} for n = {n}, m = {m}", mistakes=mistakes)

    sizes = (3, 4), (5, 2), (1, 3), (4, 1)
    with case("the parameters and the gate", points=1, hint="* multiplies entry by entry, so c[t] fits h[t-1]"):
        for n, m in sizes:
            demand(n, m, ["W_c", "W_h", "W_x", "c"])
    with case("the derivatives", points=1, hint="rows: what is differentiated; columns: by what"):
        for n, m in sizes:
            demand(n, m, ["dc_dh", "dh_dh", "dl_dh", "dl_dW_x"])


def dependencies(steps):
    """Return the arrows of the unrolled model: which derivative of one node by another, all else fixed, is not 0."""
    generator = torch.Generator().manual_seed(0)
    arrows = set()

    def leaf():
        return torch.rand(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    W = {name: leaf() for name in ("W_c", "W_h", "W_x")}
    for t in range(1, steps + 1):
        nodes = W | {f"x[{t}]": leaf(), f"h[{t - 1}]": leaf()}
        x, h = nodes[f"x[{t}]"], nodes[f"h[{t - 1}]"]
        gate = torch.special.expit(W["W_c"] @ x + W["W_h"] @ h)
        given = nodes | {f"c[{t}]": gate.detach().requires_grad_()}
        state = torch.lerp(W["W_x"] @ x, h, given[f"c[{t}]"])
        for name, value in ((f"c[{t}]", gate), (f"h[{t}]", state)):
            found = torch.autograd.grad(value.sum(), list(given.values()), allow_unused=True)
            arrows |= {(start, name) for start, slope in zip(given, found, strict=True) if slope is not None}
    return arrows


@check("unrolled-edges", points=3, part="theory")
def unrolled_edges(answer, case):
    """Against the derivatives that are not 0."""

    def arrows(steps):
        given = answer(steps)
        case.true(isinstance(given, list), f"the result is a {kind_of(given)}, expected a list of pairs")
        for pair in given:
            fits = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(end, str) for end in pair)
            case.true(fits, f"{pair!r} is no arrow: write a pair of names, such as ('x[1]', 'c[1]')")
        return [tuple(pair) for pair in given]

    def demand(steps, ends):
        given, right = set(arrows(steps)), dependencies(steps)
        names = {name for pair in right for name in pair}
        unknown = sorted({name for pair in given for name in pair} - names)
        case.true(
            not unknown,
            f"for K = {steps} there is no node {unknown[0] if unknown else ''!r}: "
            f"the nodes are h[0], x[t], c[t], h[t] for t = 1 … {steps}, and W_c, W_h, W_x",
        )
        back = sorted(pair for pair in given - right if pair[::-1] in right - given)
        case.true(
            not back,
            f"the arrow {back[0] if back else ''} points the wrong way: from what is used to what is computed",
        )
        for end in sorted(name for name in names if name[0] == ends):
            into, wanted = ({start for start, stop in pairs if stop == end} for pairs in (given, right))
            extra = sorted(into - wanted)
            case.true(
                not extra,
                f"the arrow from {extra[0] if extra else ''} to {end} is too much: the formula of {ends}[t] does not "
                f"contain it (what it does through another node is drawn there)",
            )
            case.true(
                into == wanted,
                f"{len(wanted - into)} of {len(wanted)} arrows into {end} are missing: one for each letter on the "
                f"right of the formula of {ends}[t]",
            )

    with case("the arrows into c[t]", points=1, hint="which letters stand in the formula of c[t], with which index?"):
        for steps in (1, 2, 3):
            demand(steps, "c")
    with case("the arrows into h[t]", points=1, hint="which letters stand in the formula of h[t], with which index?"):
        for steps in (1, 2, 3):
            demand(steps, "h")
    with case(
        "each arrow once, for any K", points=1, hint="8 arrows for each t; the first state is h[0], the last h[K]"
    ):
        for steps in (1, 4, 12):
            given, right = arrows(steps), dependencies(steps)
            case.true(len(set(given)) == len(given), f"for K = {steps} an arrow stands in the list twice")
            wrong = f"for K = {steps} there are {len(given)} arrows, expected {len(right)}: do all t = 1 … K appear?"
            case.true(len(given) == len(right), wrong)
            case.true(set(given) == right, f"for K = {steps} some arrows are wrong")


@check("gated-cell", points=3, part="theory")
def gated_cell(answer, case):
    """Against the interpolation between W_x x and h[t-1]."""

    def state_mistakes(x, h, W_c, W_h, W_x):
        gate, plain = gated_model(x, h, W_c, W_h, W_x)[1], F.linear(x, W_x)
        return {
            "the gate is used the wrong way round: c[t] multiplies the old state, 1 - c[t] the new input": (
                torch.lerp(h, plain, gate)
            ),
            "the old state is added whole: it is multiplied by c[t]": lambda: h + (1 - gate) * plain,
            "the new input is added whole: it is multiplied by 1 - c[t]": lambda: gate * h + plain,
            "W_x is not used": lambda: torch.lerp(x.expand_as(h), h, gate),
            "W_c takes the place of W_x in the new input": lambda: torch.lerp(F.linear(x, W_c), h, gate),
            "the sigmoid around the gate is missing": lambda: torch.lerp(plain, h, F.linear(x, W_c) + F.linear(h, W_h)),
            "the gate is a tanh; it is a sigmoid": lambda: torch.lerp(
                plain, h, torch.tanh(F.linear(x, W_c) + F.linear(h, W_h))
            ),
            "the gate does not look at h[t-1]": lambda: gated_model(x, h, W_c, W_h * 0, W_x)[0],
            "the gate does not look at x[t]": lambda: gated_model(x, h, W_c * 0, W_h, W_x)[0],
            "W_h is transposed": lambda: gated_model(x, h, W_c, W_h.T, W_x)[0],
            "the gate is a softmax, whose entries compete; a sigmoid treats each alone": lambda: torch.lerp(
                plain, h, torch.softmax(F.linear(x, W_c) + F.linear(h, W_h), 0)
            ),
            "W_x takes the place of W_c in the gate": lambda: gated_model(x, h, W_x, W_h, W_x)[0],
            "W_h h[t-1] stands where the old state h[t-1] belongs": lambda: torch.lerp(plain, F.linear(h, W_h), gate),
            "the old state is not added: c[t] ⊙ h[t-1] is missing": lambda: (1 - gate) * plain,
            "the new input is not added: (1 - c[t]) ⊙ W_x x[t] is missing": lambda: gate * h,
            "there is a tanh around the new input, or around the state; the formula has none": lambda: torch.lerp(
                torch.tanh(plain), h, gate
            ),
            "there is a tanh around the state; the formula has none": lambda: torch.tanh(torch.lerp(plain, h, gate)),
        }

    def demand(n, m):
        numbers = gated_numbers(case, n, m)
        state, gate = case.parts(answer(*numbers), "h[t]", "c[t]")
        right_state, right_gate = gated_model(*numbers)
        swapped = "h[t] and c[t] are exchanged: the state comes first"
        mistakes = {swapped: right_gate} | state_mistakes(*numbers)
        case.close(state, right_state, what=f"h[t] for n = {n}, m = {m}", mistakes=mistakes, tolerance=DERIVED)
        case.close(gate, right_gate, what=f"c[t] for n = {n}, m = {m}", tolerance=DERIVED)

    with case("two vectors of m numbers, h[t] first", points=1, hint="return h, c"):
        numbers = gated_numbers(case, 3, 5)
        state, gate = case.parts(answer(*numbers), "h[t]", "c[t]")
        case.shape(state, (5,), what="h[t]")
        case.shape(gate, (5,), what="c[t]")
        exchanged = alike_tensor(state, gated_model(*numbers)[1]) and alike_tensor(gate, gated_model(*numbers)[0])
        case.true(not exchanged, "h[t] and c[t] are exchanged: the state comes first")
        between = bool((gate > 0).all() and (gate < 1).all())
        case.true(between, "c[t] is not between 0 and 1: is the sigmoid there, around the whole sum?")
    with case("the numbers are right", points=1, hint="c[t] multiplies the old state, entry by entry"):
        demand(3, 3)
        demand(2, 4)
        demand(5, 3)
    with case("sizes of 1; the inputs stay as they were", points=1, hint="no size may be fixed; nothing in place"):
        demand(1, 1)
        demand(4, 1)
        demand(1, 4)
        case.unchanged(answer, *gated_numbers(case, 3, 4))


def gate_variants(x, h, W_c, W_h):
    """Return functions of h whose Jacobians are what common mistakes make of ∂c[t]/∂h[t-1]."""
    before = F.linear(x, W_c) + F.linear(h, W_h)
    slope, gate = slope_of(torch.sigmoid, before), torch.sigmoid(before)

    def scaled(rows, matrix=W_h):
        return lambda v: rows * F.linear(v, matrix)

    return {
        "the derivative of the sigmoid is missing": scaled(torch.ones_like(gate)),
        "the derivative of the sigmoid is taken at c[t], as if c[t] went through a second sigmoid": (
            scaled(slope_of(torch.sigmoid, gate))
        ),
        "the derivative of the sigmoid is taken at h[t-1]; its argument is W_c x[t] + W_h h[t-1]": (
            scaled(slope_of(torch.sigmoid, h))
        ),
        "the derivative of the sigmoid is taken at W_h h[t-1] alone; x[t] belongs to its argument": (
            scaled(slope_of(torch.sigmoid, F.linear(h, W_h)))
        ),
        "the derivative of the sigmoid is taken at W_c x[t] alone; h[t-1] belongs to its argument": (
            scaled(slope_of(torch.sigmoid, F.linear(x, W_c)))
        ),
        "c[t] stands where the derivative of the sigmoid belongs": scaled(gate),
        "1 - c[t] stands where the derivative of the sigmoid belongs": scaled(1 - gate),
        "that is the derivative of a tanh; c[t] is a sigmoid": scaled(slope_of(torch.tanh, before)),
        "1 - c[t]² is the derivative of a tanh; c[t] is a sigmoid": scaled(1 - gate**2),
        "W_h is transposed": scaled(slope, W_h.T),
        "W_c stands where W_h belongs: this is ∂c[t]/∂x[t]": scaled(slope, W_c),
        "the derivative of the sigmoid scales the columns of W_h; it scales its rows": lambda v: F.linear(
            v * slope, W_h
        ),
        "the derivatives of the sigmoid are added up, as by a product of W_h with a vector": lambda v: (
            F.linear(slope, W_h) * v
        ),
        "only the diagonal is there: every entry of c[t] depends on every entry of h[t-1]": lambda v: (
            slope * W_h.diagonal() * v
        ),
        "W_h is missing: the inner derivative": lambda v: slope * v,
        "h[t-1] stands where W_h belongs: z = W_h h[t-1] is differentiated by h[t-1], not by W_h": lambda v: (
            slope * (h * v).sum()
        ),
    }


def jacobians_of(variants, h, right):
    """Turn functions of h into the Jacobians that they have, with the transpose and the sign of the right one."""
    found = {sentence: (lambda f=f: jacobian(f, h)) for sentence, f in variants.items()}
    square = right.ndim == 2 and right.shape[0] > 1
    return (
        found
        | ({"it is transposed: a row for each entry of what is differentiated": lambda: right.T} if square else {})
        | {"the sign is wrong": lambda: -right}
        | {"these are the sums over the rows or columns; the Jacobian is a matrix": lambda: right.sum(0)}
        | {"these are the sums over the rows; the Jacobian is a matrix": lambda: right.sum(1)}
        | {"this is only the diagonal, as a vector; the Jacobian is a matrix": lambda: right.diagonal()}
    )


def same_rows(result, right):
    """Say whether each row of a matrix is that of the right one up to a factor of its own."""
    if result.shape != right.shape or right.ndim != 2 or right.shape[1] < 2:
        return False
    factors = (result * right).sum(1) / (right * right).sum(1)
    return torch.allclose(result.double(), factors[:, None].double() * right, rtol=0, atol=1e-6)


@check("gate-jacobian", points=3, part="theory", autograd=False)
def gate_jacobian(answer, case):
    """Against autograd in float64."""

    def demand(n, m):
        x, h, W_c, W_h, _ = gated_numbers(case, n, m)
        right = jacobian(lambda h: torch.sigmoid(F.linear(x, W_c) + F.linear(h, W_h)), h)
        mistakes = jacobians_of(gate_variants(x, h, W_c, W_h), h, right)
        result = answer(x, h, W_c, W_h)
        rows = "every row is that of W_h with a wrong factor: look at the derivative of the sigmoid"
        mistakes |= {rows: lambda: same_rows(result, right)}
        case.close(result, right, what=f"∂c[t]/∂h[t-1] for n = {n}, m = {m}", mistakes=mistakes, tolerance=DERIVED)

    with case("a row for each entry of c[t]", points=1, hint="a matrix (m, m)"):
        x, h, W_c, W_h, _ = gated_numbers(case, 3, 4)
        case.shape(answer(x, h, W_c, W_h), (4, 4), what="∂c[t]/∂h[t-1]")
    with case("agrees with autograd", points=2, hint="outer derivative (of the sigmoid, at its argument) times inner"):
        for n, m in ((3, 3), (2, 4), (5, 3), (1, 2), (3, 1)):
            demand(n, m)


def state_variants(x, h, W_c, W_h, W_x):
    """Return functions of h whose Jacobians are what common mistakes make of ∂h[t]/∂h[t-1]."""
    before, plain = F.linear(x, W_c) + F.linear(h, W_h), F.linear(x, W_x)
    slope, gate, fixed = slope_of(torch.sigmoid, before), torch.sigmoid(before), h
    new = torch.lerp(plain, h, gate)

    def moving(v):
        return torch.sigmoid(F.linear(x, W_c) + F.linear(v, W_h))

    def with_gate_path(rows, matrix=W_h):
        return lambda v: gate * v + rows * F.linear(v, matrix)

    lever = h - plain
    return {
        "only the direct path is there: c[t] depends on h[t-1], too": lambda v: gate * v,
        "only the path through the gate is there: h[t-1] also stands in h[t] directly": lambda v: torch.lerp(
            plain, fixed, moving(v)
        ),
        "1 - c[t] depends on h[t-1], too: the term with W_x x[t] is missing": lambda v: (
            moving(v) * v + (1 - gate) * plain
        ),
        "c[t] in front of h[t-1] depends on h[t-1], too: the product rule has two terms": lambda v: (
            gate * v + (1 - moving(v)) * plain
        ),
        "the derivative of 1 - c[t] has a minus: h[t-1] and W_x x[t] come with opposite signs": lambda v: (
            moving(v) * v + moving(v) * plain
        ),
        "the signs of h[t-1] and W_x x[t] are exchanged": lambda v: gate * v + moving(v) * (plain - fixed),
        "the path through the gate lacks the derivative of the sigmoid": with_gate_path(lever),
        "the path through the gate lacks h[t-1] - W_x x[t]: the product rule": with_gate_path(slope),
        "the derivative of the sigmoid is taken at c[t], as if c[t] went through a second sigmoid": (
            with_gate_path(lever * slope_of(torch.sigmoid, gate))
        ),
        "the derivative of the sigmoid is taken at h[t-1]; its argument is W_c x[t] + W_h h[t-1]": (
            with_gate_path(lever * slope_of(torch.sigmoid, h))
        ),
        "c[t] stands where the derivative of the sigmoid belongs": with_gate_path(lever * gate),
        "1 - c[t] stands where the derivative of the sigmoid belongs": with_gate_path(lever * (1 - gate)),
        "that is the derivative of a tanh; c[t] is a sigmoid": with_gate_path(lever * (1 - gate**2)),
        "W_h is transposed": with_gate_path(lever * slope, W_h.T),
        "W_c stands where W_h belongs": with_gate_path(lever * slope, W_c),
        "h[t] stands where h[t-1] belongs": with_gate_path((new - plain) * slope),
        "x[t] stands where W_x x[t] belongs": lambda v: gate * v + (h - x.expand_as(h)) * slope * F.linear(v, W_h),
        "the path through the gate scales the columns of W_h; it scales its rows": lambda v: (
            gate * v + F.linear(v * lever * slope, W_h)
        ),
        "h[t-1] - W_x x[t] scales the columns; entry i of it belongs to row i": lambda v: (
            gate * v + slope * F.linear(v * lever, W_h)
        ),
        "1 - c[t] stands in the direct path; c[t] belongs there": lambda v: (
            (1 - gate) * v + lever * slope * F.linear(v, W_h)
        ),
        "the direct path is the identity here; it is multiplied by c[t]": lambda v: (
            v + lever * slope * F.linear(v, W_h)
        ),
        "W_h is missing in the path through the gate: the inner derivative": lambda v: gate * v + lever * slope * v,
        "the path through the gate has its diagonal only: c_i depends on every entry of h[t-1]": lambda v: (
            gate * v + lever * slope * W_h.diagonal() * v
        ),
        "this is ∂c[t]/∂h[t-1]": moving,
    }


@check("state-jacobian", points=5, part="theory", autograd=False)
def state_jacobian(answer, case):
    """Against autograd in float64."""

    def demand(n, m, still=False):
        x, h, W_c, W_h, W_x = gated_numbers(case, n, m)
        W_h = W_h * 0 if still else W_h
        right = jacobian(lambda h: gated_model(x, h, W_c, W_h, W_x)[0], h)
        mistakes = jacobians_of(state_variants(x, h, W_c, W_h, W_x), h, right)
        gate = gated_model(x, h, W_c, W_h, W_x)[1]
        off = right - gate.diag()
        mistakes |= {
            "c[t] is added to every row; it belongs on the diagonal": lambda: off + gate,
            "c[t] is added to every column; it belongs on the diagonal": lambda: off + gate[:, None],
        }
        result = answer(x, h, W_c, W_h, W_x)
        outside = 1 - torch.eye(m, dtype=right.dtype)
        mistakes |= {
            "the direct path is right; in the path through the gate every row of W_h has a wrong factor": lambda: (
                same_rows(result - gate.diag(), W_h) and not still
            ),
            "only the diagonal is wrong: look at the direct path": lambda: (
                m > 1 and torch.allclose(result * outside, right * outside, rtol=0, atol=1e-6)
            ),
        }
        what = f"∂h[t]/∂h[t-1] for n = {n}, m = {m}"
        case.close(result, right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("a row for each entry of h[t]", points=1, hint="a matrix (m, m)"):
        case.shape(answer(*gated_numbers(case, 3, 4)), (4, 4), what="∂h[t]/∂h[t-1]")
    with case("the direct path (W_h = 0)", points=1, hint="with W_h = 0 the gate does not depend on h[t-1]"):
        demand(3, 3, still=True)
        demand(2, 4, still=True)
    with case("agrees with autograd", points=2, hint="h[t-1] stands in h[t] directly, and twice through the gate"):
        for n, m in ((3, 3), (2, 4), (5, 3)):
            demand(n, m)
    with case("sizes of 1", points=1, hint="no size may be fixed"):
        for n, m in ((1, 1), (3, 1), (1, 3)):
            demand(n, m)


@check("jacobian-products", points=3, part="theory", autograd=False)
def jacobian_products(answer, case):
    """Against `torch.linalg.multi_dot`."""

    def product(J, start, stop, reverse=True):
        chain = list(J[start:stop])
        chain = chain[::-1] if reverse else chain
        identity = torch.eye(J.shape[-1], dtype=J.dtype)
        return torch.linalg.multi_dot([identity, *chain, identity])

    def by_definition(J):
        return torch.stack([product(J, t, len(J)) for t in range(len(J) + 1)])

    def mistakes_of(J):
        right, steps = by_definition(J), range(len(J) + 1)
        return {
            "the factors are in the wrong order: ∂h[K]/∂h[K-1] stands on the left": lambda: torch.stack(
                [product(J, t, len(J), reverse=False) for t in steps]
            ),
            "these are ∂h[t]/∂h[0], products from the start; asked are ∂h[K]/∂h[t]": lambda: torch.stack(
                [product(J, 0, t) for t in steps]
            ),
            "these are products from the start, and in the wrong order": lambda: torch.stack(
                [product(J, 0, t, reverse=False) for t in steps]
            ),
            "the results are in reverse order: entry t is ∂h[K]/∂h[t], so the identity comes last": lambda: right.flip(
                0
            ),
            "each matrix is transposed": lambda: right.mT,
            "each step is transposed before it is multiplied": lambda: by_definition(J.mT),
            "the steps are multiplied from the first one on; ∂h[K]/∂h[t] needs the last K - t of them": lambda: (
                torch.stack([product(J, 0, t, reverse=False) for t in steps]).flip(0)
            ),
            "the steps are multiplied from the first one on; ∂h[K]/∂h[t] needs the last K - t of them ": lambda: (
                torch.stack([product(J, 0, t) for t in steps]).flip(0)
            ),
            "the product starts from 0, and stays 0: start from the identity": lambda: right * 0,
            "the product starts from a matrix of ones; the identity has them on its diagonal only": lambda: (
                torch.ones_like(right) @ right
            ),
            "the last entry, ∂h[K]/∂h[K], is missing: the identity": lambda: right[:-1],
            "the first entry, ∂h[K]/∂h[0], is missing": lambda: right[1:],
            "the last entry must be ∂h[K]/∂h[K], the identity": lambda: torch.cat([right[:-1], J[-1:]]),
            "the last entry, ∂h[K]/∂h[K], is the identity, not 0": lambda: torch.cat([right[:-1], right[-1:] * 0]),
            "the last entry, ∂h[K]/∂h[K], is the identity: 1 on the diagonal, 0 elsewhere": lambda: torch.cat(
                [right[:-1], torch.ones_like(right[-1:])]
            ),
            "these are the single steps; multiply them": lambda: J,
            "these are the single steps and the identity; multiply them": lambda: torch.cat([J, right[-1:]]),
            "one factor too few: ∂h[K]/∂h[t] has K - t": lambda: torch.cat([right[1:], right[-1:]]),
            "the matrices are multiplied entry by entry; the chain rule needs @": lambda: torch.cat(
                [J.flip(0).cumprod(0).flip(0), right[-1:]]
            ),
            "the matrices are added; the chain rule multiplies": lambda: torch.cat(
                [J.flip(0).cumsum(0).flip(0), right[-1:]]
            ),
            "the matrices are added to the identity; the chain rule multiplies": lambda: (
                right[-1:] + torch.cat([J.flip(0).cumsum(0).flip(0), right[-1:] * 0])
            ),
            "only ∂h[K]/∂h[0] is there; asked is one matrix for each t": lambda: right[0],
        }

    def demand(steps, m):
        J = double(case, steps, m, m)
        what = f"the result for K = {steps}, m = {m}"
        result, right, mistakes = answer(J), by_definition(J), mistakes_of(J)
        if steps == 1 and not alike_tensor(result, right):  # too many mistakes look alike here
            more = double(case, 3, m, m)
            mistakes = those_that_explain(mistakes, answer(more), mistakes_of(more))
        case.close(result, right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("K = 1: one step and the identity", points=1, hint="entry 1 is ∂h[1]/∂h[1]"):
        demand(1, 3)
    with case("the product of all steps from t to K", points=2, hint="∂h[K]/∂h[t] = ∂h[K]/∂h[t+1] times one step"):
        demand(2, 3)
        demand(5, 4)
        demand(7, 1)


def gated_sequence(case, steps, n, m):
    """Draw xs, h0, W_c, W_h, W_x, upstream."""
    shapes = (steps, n), (m,), (m, n), (m, m), (m, n), (steps, m)
    return [double(case, *shape) for shape in shapes]


def step_by_step(xs, h, W_c, W_h, W_x, upstream, step=gated_model):
    """Return the gradient for the W_x of each step on its own, (K, m, n), and for W_x x[t], (K, m)."""
    copies = [W_x.clone().requires_grad_() for _ in xs]
    nudges = torch.zeros(len(xs), len(h), dtype=h.dtype, requires_grad=True)
    loss = torch.zeros((), dtype=h.dtype)
    for x, W, nudge, arriving in zip(xs, copies, nudges, upstream, strict=True):
        # A nudge of W_x x[t]: one more input that is 1.
        x, W = torch.cat([x, x.new_ones(1)]), torch.cat([W, nudge[:, None]], 1)
        h = step(x, h, F.pad(W_c, (0, 1)), W_h, W)[0]
        loss = loss + (h * arriving).sum()
    *found, nudged = torch.autograd.grad(loss, [*copies, nudges])
    return torch.stack(found), nudged


def cut_state(x, h, W_c, W_h, W_x):
    """Run a step through which nothing flows back to h[t-1]."""
    return gated_model(x, h.detach(), W_c, W_h, W_x)


def cut_gate(x, h, W_c, W_h, W_x):
    """Run a step whose gate is taken for a constant."""
    gate = gated_model(x, h, W_c, W_h, W_x)[1].detach()
    return torch.lerp(F.linear(x, W_x), h, gate), gate


def only_gate(x, h, W_c, W_h, W_x):
    """Run a step that forgets that h[t-1] stands in h[t] directly."""
    gate = gated_model(x, h, W_c, W_h, W_x)[1]
    return torch.lerp(F.linear(x, W_x), h.detach(), gate), gate


def late_state(x, h, W_c, W_h, W_x):
    """Run a step with right values in which ∂h[t]/∂h[t-1] is taken at h[t]."""
    fixed = h.detach()
    value, gate = gated_model(x, fixed, W_c, W_h, W_x)
    J = jacobian(lambda h: gated_model(x, h, W_c, W_h, W_x.detach())[0], value.detach())
    return value + F.linear(h - fixed, J), gate


def with_other_state_derivative(change):
    """Return a step with right values in which ∂h[t]/∂h[t-1] is changed."""

    def step(x, h, W_c, W_h, W_x):
        fixed = h.detach()
        value, gate = gated_model(x, fixed, W_c, W_h, W_x)
        J = jacobian(lambda h: gated_model(x, h, W_c, W_h, W_x.detach())[0], fixed)
        return value + change(J) @ (h - fixed), gate

    return step


def with_other_share(change):
    """Return a step with right values in which ∂h[t]/∂(W_x x[t]) is changed."""

    def step(x, h, W_c, W_h, W_x):
        value, gate = gated_model(x, h, W_c, W_h, W_x.detach())
        new = F.linear(x, W_x)
        return value + change(gate.detach()) * (new - new.detach()), gate

    return step


def gradient_w_x_mistakes(xs, h0, W_c, W_h, W_x, upstream):
    """Return the gradients that common mistakes lead to."""
    rest = xs, h0, W_c, W_h, W_x
    (each, nudged), last = step_by_step(*rest, upstream), torch.zeros_like(upstream)
    last[-1] = upstream[-1]
    late = upstream.roll(1, 0)
    late[0] = 0
    early = upstream.roll(-1, 0)
    early[-1] = 0

    def by(step, arriving=upstream):
        return lambda: step_by_step(*rest, arriving, step)[0].sum(0)

    def shifted(later, earlier):
        return lambda: nudged[later].T @ xs[earlier]

    def with_states(which):
        h, states = h0, [h0]
        for x in xs:
            h = gated_model(x, h, W_c, W_h, W_x)[0]
            states.append(h)
        return nudged.T @ torch.stack(states)[which]

    def carried_on():
        h, rows = h0, []
        for x, arriving in zip(xs, nudged, strict=True):
            J = jacobian(lambda h, x=x: gated_model(x, h, W_c, W_h, W_x)[0], h)
            h, gate = gated_model(x, h, W_c, W_h, W_x)
            rows.append(F.linear(arriving / (1 - gate), J.T) * (1 - gate))
        return torch.stack(rows).T @ xs

    right = each.sum(0)
    nothing = "for K = 1 the gradient is 0: is the first step in the loop, and does ∂ℓ/∂h[t] arrive before step t "
    nothing += "contributes?"
    return ({nothing: each[0] * 0} if len(xs) == 1 else {}) | {
        "only the last step counts: W_x is used at every step, so go back in time from the last step to the first, "
        "with the gradient carried along, and add over all of them": each[-1],
        "the first step is left out of the sum": lambda: each[1:].sum(0),
        "the last step is left out of the sum": lambda: each[:-1].sum(0),
        "only the first step counts (= instead of +=?)": lambda: each[0],
        "the average over the steps is taken; the chain rule adds": lambda: right / len(xs),
        "nothing flows from h[t] back to h[t-1]: each step gets only its own ∂ℓ/∂h[t]": by(cut_state),
        "∂ℓ/∂h[t] is used for t = K only; every step brings its own": by(gated_model, last),
        "the gradient is multiplied by ∂h[t]/∂h[t-1] before step t has contributed": carried_on,
        "c[t] (1 - c[t]) stands where 1 - c[t] belongs: the gate does not depend on W_x": (
            by(with_other_share(lambda gate: gate * (1 - gate)))
        ),
        "h[0] is taken for 0; it is given": lambda: step_by_step(xs, 0 * h0, *rest[2:], upstream)[0].sum(0),
        "∂h[t]/∂h[t-1] is taken at h[t]; it depends on the state before the step, h[t-1]": by(late_state),
        "∂ℓ/∂h[t] is used for t = K only, and nothing flows back from there": by(cut_state, last),
        "the gradient flows back through c[t] ⊙ h[t-1] only; the gate depends on h[t-1], too": by(cut_gate),
        "the gradient flows back through the gate only; h[t-1] also stands in h[t] directly": by(only_gate),
        "∂h[t]/∂h[t-1] is transposed: a gradient that is a row is multiplied from the left, J.T @ g for a column": (
            by(with_other_state_derivative(lambda J: J.T))
        ),
        "the factor 1 - c[t] is missing": by(with_other_share(torch.ones_like)),
        "c[t] stands where 1 - c[t] belongs": by(with_other_share(lambda gate: gate)),
        "x[t-1] stands where x[t] belongs": shifted(slice(1, None), slice(None, -1)),
        "x[t-1] stands where x[t] belongs (and xs[-1], the last input, at the first step)": lambda: (
            nudged.T @ xs.roll(1, 0)
        ),
        "x[t+1] stands where x[t] belongs": shifted(slice(None, -1), slice(1, None)),
        "h[t-1] stands where x[t] belongs": lambda: with_states(slice(None, -1)),
        "h[t] stands where x[t] belongs": lambda: with_states(slice(1, None)),
        "the ∂ℓ/∂h[t] that arrives from outside is added one step too early": by(gated_model, late),
        "the ∂ℓ/∂h[t] that arrives from outside is added one step too late": by(gated_model, early),
        "the upstream gradients are read in the wrong order of time": by(gated_model, upstream.flip(0)),
        "the inputs are read in the wrong order of time": lambda: nudged.flip(0).T @ xs,
        "it is transposed: give the gradient in the shape of W_x": lambda: right.T,
        "it is transposed without a transpose: the outer product is the wrong way round": lambda: right.T.reshape(
            right.shape
        ),
        "the sign is wrong": lambda: -right,
        "this is the gradient for each step; add them up": lambda: each,
        "this is the gradient for W_x x[t], not for W_x: multiply by x[t]": lambda: nudged,
        "all gradients flow from the last state only, through c[t] alone": by(cut_gate, last),
    }


def wrong_step(answer, case, steps=8, m=3):
    """Say which step's contribution is the first, from the end, that is not right.

    The inputs are unit vectors, a new one at each step: so column t of the gradient is what step t contributes.
    """
    _, *rest = gated_sequence(case, steps, steps, m)
    xs = torch.eye(steps, dtype=torch.float64)
    result, right = answer(xs, *rest), step_by_step(xs, *rest)[0].sum(0)
    if not isinstance(result, torch.Tensor) or result.shape != right.shape:
        return {}
    wrong = [t for t in range(steps) if not torch.allclose(result[:, t].double(), right[:, t], rtol=0, atol=1e-6)]
    if not wrong:
        return {}
    if wrong[-1] == steps - 1:
        return always("already what the last step contributes is wrong: look at what multiplies x[t], and at g[K]")
    return always(
        f"tried with K = {steps}: what step {wrong[-1] + 2} contributes is right, what step {wrong[-1] + 1} "
        f"contributes is not: look at how the gradient gets from h[{wrong[-1] + 2}] to h[{wrong[-1] + 1}], and at what "
        "is added there"
    )


def seconds_of_calls(function, calls, *numbers):
    """Measure some calls with the same arguments."""
    start = time.process_time()  # of this process alone: the machine may be busy
    for _ in range(calls):
        function(*numbers)
    return time.process_time() - start


@check("gradient-w-x", points=8, part="theory", autograd=False)
def gradient_w_x(answer, case):
    """Against autograd in float64."""

    def demand(numbers):
        xs, h0 = numbers[:2]
        what = f"∂ℓ/∂W_x for K = {len(xs)}, n = {xs.shape[1]}, m = {len(h0)}"
        result, right = answer(*numbers), step_by_step(*numbers)[0].sum(0)
        if not alike_tensor(result, right):
            mistakes = gradient_w_x_mistakes(*numbers) | wrong_step(answer, case)
            case.close(result, right, what=what, mistakes=mistakes, tolerance=DERIVED)

    def only_last(numbers):
        upstream = torch.zeros_like(numbers[-1])
        upstream[-1] = numbers[-1][-1]
        return [*numbers[:-1], upstream]

    def seconds(numbers, calls):
        return answer.probe(seconds_of_calls, calls, *numbers)

    with case("the shape of W_x", points=1, hint="(m, n), as W_x has"):
        numbers = gated_sequence(case, 4, 3, 2)
        turned = {"it is transposed: give the gradient in the shape of W_x": (3, 2)}
        case.shape(answer(*numbers), (2, 3), what="∂ℓ/∂W_x", mistakes=turned)
    with case("K = 1: one step", points=1, hint="only (1 - c[t]) ⊙ W_x x[t] contains W_x"):
        for n, m in ((3, 2), (2, 4)):
            demand(gated_sequence(case, 1, n, m))
    with case("a loss at the end: ∂ℓ/∂h[K] only", points=2, hint="first g[K] = ∂ℓ/∂h[K], then back in time"):
        for steps, n, m in ((2, 3, 2), (5, 2, 3), (9, 4, 4)):
            demand(only_last(gated_sequence(case, steps, n, m)))
    with case("a loss at every step", points=2, hint="what arrives at h[t]: from outside, and from h[t+1]"):
        for steps, n, m in ((2, 3, 2), (5, 2, 3), (9, 4, 4)):
            demand(gated_sequence(case, steps, n, m))
    with case("sizes of 1; the inputs stay as they were", points=1, hint="no size may be fixed; nothing in place"):
        for steps, n, m in ((3, 1, 1), (4, 3, 1), (6, 1, 3)):
            demand(gated_sequence(case, steps, n, m))
        case.unchanged(answer, *gated_sequence(case, 3, 2, 3))
    with case("the time grows with K, not with K²", points=1, hint="one loop back in time, that carries g along"):
        short, long = (gated_sequence(case, steps, 2, 2) for steps in (20, 300))
        right = step_by_step(*short)[0].sum(0)
        not_yet = always("the result itself is not right yet, so its time says nothing")
        case.close(answer(*short), right, mistakes=not_yet, tolerance=DERIVED)
        # As many steps in one long sequence as in 15 short ones. The least of several times is the true one.
        once, often = math.inf, min(seconds(short, 15) for _ in range(3))
        for _ in range(6):  # one slow moment must not cost the points
            once, often = min(once, seconds(long, 1)), min(often, seconds(short, 15))
            if once < 4 * often:
                break
        case.true(
            once < 4 * often,
            "one sequence of 300 steps takes more than 4 times as long as 15 of 20 steps: the products of Jacobians "
            "are made anew for each t. Carry the gradient along: that of h[t-1] follows from that of h[t] in one step",
        )


# -- AttentionRNN -----------------------------------------------------------------------------------------


def attention_numbers(case, n, m, d, k):
    """Draw x, the states h[t-1] … h[t-k], and the lists Q, K, V."""
    x, states = double(case, n), [double(case, m) for _ in range(k)]
    sizes = [n] + [m] * k
    Q, K = ([0.7 * double(case, d, size) for size in sizes] for _ in range(2))
    return x, states, Q, K, [double(case, m, size) for size in sizes]


def slots_of(inputs, matrices):
    """Return one row for each slot: its matrix times its input."""
    return torch.stack([F.linear(slot, matrix) for slot, matrix in zip(inputs, matrices, strict=True)])


def attention_model(x, states, Q, K, V):
    """Return h[t] and a[t]: the scores are the diagonal of all products of queries with keys."""
    inputs = [x, *states]
    scores = (slots_of(inputs, Q) @ slots_of(inputs, K).T).diagonal()
    weights = F.softmax(scores, dim=0)
    return F.linear(weights, slots_of(inputs, V).T), weights


def attention_variants(x, states, Q, K, V):
    """Return h[t] and a[t] as common mistakes make them."""
    inputs = [x, *states]
    q, k, v = (slots_of(inputs, matrices) for matrices in (Q, K, V))
    scores = (q @ k.T).diagonal()

    def of(scores, values=v):
        weights = scores.softmax(0)
        return weights @ values, weights

    found = {
        "every key is compared with q_0: here each slot has a query of its own, w_i = q_i · k_i": of(k @ q[0]),
        "every query is compared with k_0: here each slot has a key of its own, w_i = q_i · k_i": of(q @ k[0]),
        "the softargmax is missing: the weights do not sum to 1": (scores @ v, scores),
        "the scores are divided by √d; this model does not": of(scores / len(q[0]) ** 0.5),
        "the keys are added up where the values belong": of(scores, k) if k.shape == v.shape else None,
        "the states are in reverse order: states[0] is h[t-1]": attention_model(x, states[::-1], Q, K, V),
        "the input x[t] is not used: it is slot 0": (of(scores[1:], v[1:]) if states else None),
        "the values have equal weights; a[t] weighs them": of(scores * 0),
        "the weights are normalised by their plain sum; softargmax takes exponentials first": (
            (scores / scores.sum()) @ v,
            scores / scores.sum(),
        ),
        "the queries of all slots are added up before the comparison": of(k @ q.sum(0)),
        "the softargmax runs over the slots before the products of an entry are added up to a score": (
            (q * k).softmax(0).sum(-1) @ v,
            (q * k).softmax(0).sum(-1),
        ),
        "the exponentials are not divided by their sum": (scores.exp() @ v, scores.exp()),
        "every score goes through a sigmoid of its own; softargmax makes weights that sum to 1": (
            scores.sigmoid() @ v,
            scores.sigmoid(),
        ),
        "every query is compared with itself; w_i = q_i · k_i": of((q @ q.T).diagonal()),
        "every key is compared with itself; w_i = q_i · k_i": of((k @ k.T).diagonal()),
        "the states themselves are added up; their values are V_i h[t-i]": of(scores, torch.stack([v[0], *states])),
        "all states use the matrices of slot 1; here each slot has its own": attention_model(
            x, states, *([W[0]] + [W[1]] * len(states) for W in (Q, K, V))
        ),
        "two states are used, whatever k is": attention_model(x, states[:2], Q[:3], K[:3], V[:3]),
        "the sum is divided by the number of slots, too": (of(scores)[0] / len(v), of(scores)[1]),
        "the largest score takes all: softargmax is soft": (
            v[scores.argmax()],
            F.one_hot(scores.argmax(), len(scores)).to(v.dtype),
        ),
    }
    return {sentence: pair for sentence, pair in found.items() if pair is not None}


@check("attention-cell", points=3, part="theory")
def attention_cell(answer, case):
    """Against the diagonal of all products of queries with keys."""

    def demand(n, m, d, k):
        numbers = attention_numbers(case, n, m, d, k)
        state, weights = case.parts(answer(*numbers), "h[t]", "a[t]")
        right_state, right_weights = attention_model(*numbers)
        text = f"for n = {n}, m = {m}, d = {d}, {k} states"
        variants = attention_variants(*numbers) if k > 1 else {}
        swapped = {"h[t] and a[t] are exchanged: the state comes first": right_weights}
        mistakes = swapped | {name: pair[0] for name, pair in variants.items()}
        case.close(state, right_state, what=f"h[t] {text}", mistakes=mistakes, tolerance=DERIVED)
        mistakes = {name: pair[1] for name, pair in variants.items()}
        case.close(weights, right_weights, what=f"a[t] {text}", mistakes=mistakes, tolerance=DERIVED)

    with case("a state of m numbers, a weight for each slot", points=1, hint="return h, a; a sums to 1"):
        numbers = attention_numbers(case, 3, 5, 2, 2)
        state, weights = case.parts(answer(*numbers), "h[t]", "a[t]")
        swapped = {"h[t] and a[t] are exchanged: the state comes first": (3,)}
        case.shape(state, (5,), what="h[t]", mistakes=swapped)
        case.shape(weights, (3,), what="a[t]")
        mistakes = {name: pair[1].sum()[None] for name, pair in attention_variants(*numbers).items()}
        mistakes = {name: wrong for name, wrong in mistakes.items() if abs(float(wrong) - 1) > 1e-6}
        mistakes |= always("the weights do not sum to 1: softargmax divides the exponentials by their sum")
        case.close(weights.sum()[None], torch.ones(1, dtype=torch.float64), what="the sum of a[t]", mistakes=mistakes)
    with case("AttentionRNN(2)", points=1, hint="w_i = q_i · k_i for each slot; then softargmax; then add a_i v_i"):
        demand(3, 4, 2, 2)
        demand(2, 3, 5, 2)
    with case("AttentionRNN(k) for other k, sizes of 1", points=1, hint="let the lists say how many slots there are"):
        for sizes in ((3, 4, 2, 1), (2, 3, 3, 5), (1, 1, 1, 2), (4, 4, 4, 3)):
            demand(*sizes)
        x, states, *matrices = attention_numbers(case, 3, 4, 2, 3)
        states[-1] = states[-1] * 0  # as before the first step
        _, weights = case.parts(answer(x, states, *matrices), "h[t]", "a[t]")
        empty = "a state of zeros gets no weight; its score is 0, which softargmax makes e⁰ of"
        right = attention_model(x, states, *matrices)[1]
        left_out = F.pad(attention_model(x, states[:-1], *(W[:-1] for W in matrices))[1], (0, 1))
        case.close(weights, right, what="a[t] with a state of 0", mistakes={empty: left_out}, tolerance=DERIVED)


def infinite_model(xs, Q, K, V, memory=None, empty=0, reverse=False, first=0):
    """Return the states and weights of AttentionRNN(∞), or of one that sees only the latest `memory` states.

    `empty` is how many states of zeros stand before the first; the states before number `first` are not seen.
    """
    steps, m = len(xs), len(V[0])
    states, rows = xs.new_zeros(empty, m), []
    history = [*states]
    for x in xs:
        seen = history[first:][::-1][:memory]
        seen = seen[::-1] if reverse else seen
        h, a = attention_model(x, seen, *([W[0]] + [W[1]] * len(seen) for W in (Q, K, V)))
        rows.append(F.pad(a, (0, max(0, steps - len(a))))[:steps])
        history.append(h)
    return torch.stack(history[empty:]), torch.stack(rows)


@check("attention-rnn-infinity", points=3, part="theory")
def attention_rnn_infinity(answer, case):
    """Against the cell, with the same matrices for all states."""

    def draw(steps, n, m, d):
        Q, K = ([0.7 * double(case, d, n), 0.7 * double(case, d, m)] for _ in range(2))
        return double(case, steps, n), Q, K, [double(case, m, n), double(case, m, m)]

    def zero_slots(xs, Q, K, V):
        """Let scores of 0 stand for the states that do not exist."""
        steps, m = len(xs), len(V[0])
        states, rows = xs.new_zeros(0, m), []
        for x in xs:
            missing = steps - 1 - len(states)
            seen = [*states.flip(0), *xs.new_zeros(missing, m)]
            h, a = attention_model(x, seen, *([W[0]] + [W[1]] * len(seen) for W in (Q, K, V)))
            states, rows = torch.cat([states, h[None]]), [*rows, a]
        return states, torch.stack(rows)

    def without_newest(xs, Q, K, V):
        """Let a step see h[t-2], h[t-3], …"""
        states, rows = [], []
        for x in xs:
            seen = states[:-1][::-1]
            h, a = attention_model(x, seen, *([W[0]] + [W[1]] * len(seen) for W in (Q, K, V)))
            states, rows = [*states, h], [*rows, F.pad(a, (0, len(xs) - len(a)))]
        return torch.stack(states), torch.stack(rows)

    def over_inputs(xs, Q, K, V):
        """Let a step see x[t], x[t-1], …, with the matrices of the input."""
        states, rows = [], []
        for t, x in enumerate(xs):
            h, a = attention_model(x, [*xs[:t].flip(0)], *([W[0]] * (t + 1) for W in (Q, K, V)))
            states, rows = [*states, h], [*rows, F.pad(a, (0, len(xs) - len(a)))]
        return torch.stack(states), torch.stack(rows)

    def mistakes_of(*numbers):
        right = infinite_model(*numbers)
        return {
            "states that do not exist yet get weight: e⁰ = 1 for each. Attend to h[t-1] … h[1] only": lambda: (
                zero_slots(*numbers)
            ),
            "h[0] = 0 gets a slot: e⁰ = 1. Attend to h[t-1] … h[1] only": lambda: infinite_model(*numbers, empty=1),
            "h[0] and h[-1] get slots, as in AttentionRNN(2). Attend to h[t-1] … h[1] only": lambda: infinite_model(
                *numbers, empty=2
            ),
            "only h[t-1] is seen; attend to all states so far": lambda: infinite_model(*numbers, memory=1),
            "only two states are seen; attend to all states so far": lambda: infinite_model(*numbers, memory=2),
            "no state is seen at all": lambda: infinite_model(*numbers, memory=0),
            "the oldest state, h[1], is not seen": lambda: infinite_model(*numbers, first=1),
            "the newest state, h[t-1], is not seen": lambda: without_newest(*numbers),
            "older inputs stand where older states belong": lambda: over_inputs(*numbers),
            "the queries of the states take the place of their keys": lambda: infinite_model(
                *numbers[:2], [numbers[2][0], numbers[1][1]], numbers[3]
            ),
            "the states themselves are added up; their values are V_1 h[t-i]": lambda: infinite_model(
                *numbers[:3], [numbers[3][0], torch.eye(len(numbers[3][0]), dtype=torch.float64)]
            ),
            "column 0 belongs to x[t]; its weight stands behind those of the states": lambda: (
                right[0],
                torch.stack([F.pad(a[: t + 1].roll(-1), (0, len(a) - t - 1)) for t, a in enumerate(right[1])]),
            ),
            "the weights of the states are in reverse order: column i is h[t-i]": lambda: (
                right[0],
                infinite_model(*numbers, reverse=True)[1],
            ),
            "the matrices of the states are used for x[t], too": lambda: infinite_model(
                numbers[0], *([W[1], W[1]] for W in numbers[1:])
            ),
            "the matrices of x[t] are used for the states, too": lambda: infinite_model(
                numbers[0], *([W[0], W[0]] for W in numbers[1:])
            ),
        }

    def demand(steps, n, m, d):
        numbers = draw(steps, n, m, d)
        states, weights = case.parts(answer(*numbers), "states", "weights")
        right_states, right_weights = infinite_model(*numbers)
        text = f"for T = {steps}, n = {n}, m = {m}, d = {d}"
        found = mistakes_of(*numbers)
        first = {name: (lambda make=make: make()[0]) for name, make in found.items()}
        second = {name: (lambda make=make: make()[1]) for name, make in found.items()}
        bare = "h[0] stands in front of the states: return h[1] … h[T]"
        first |= {bare: lambda: torch.cat([right_states[:1] * 0, right_states])}
        exchanged = {"states and weights are exchanged: the states come first": right_weights}
        case.close(states, right_states, what=f"the states {text}", mistakes=first | exchanged, tolerance=DERIVED)
        case.close(weights, right_weights, what=f"the weights {text}", mistakes=second, tolerance=DERIVED)

    with case("T = 1: nothing but the input", points=1, hint="no state exists yet, so x[1] has all the weight"):
        demand(1, 3, 4, 2)
    with case("states (T, m) and weights (T, T)", points=1, hint="row t: x[t], then h[t-1] … h[1], then zeros"):
        numbers = draw(5, 3, 4, 2)
        states, weights = case.parts(answer(*numbers), "states", "weights")
        swapped = {"states and weights are exchanged: the states come first": (5, 5)}
        case.shape(states, (5, 4), what="states", mistakes=swapped)
        case.shape(weights, (5, 5), what="weights")
        one = torch.ones(5, dtype=torch.float64)
        turned = {"rows and columns are exchanged: row t - 1 belongs to step t": infinite_model(*numbers)[1].sum(0)}
        what = "the sum of each row of weights"
        case.close(weights.sum(1), one, what=what, mistakes=turned, tolerance=DERIVED)
        future = "weights stand beyond the states that exist: row t has t numbers (counted from 1), then zeros"
        case.true(not weights.triu(1).any(), future)
    with case("any length", points=1, hint="the same three matrices for all states"):
        for sizes in ((5, 2, 3, 4), (2, 3, 4, 2), (9, 1, 1, 1)):
            demand(*sizes)


def built_parameters(k, n, m, d, tied=False):
    """Return the shapes of Q_i, K_i, V_i, built."""
    inputs = [n] + [m] * (min(k, 1) if tied else k)
    return [torch.empty(rows, size, device="meta") for rows in (d, d, m) for size in inputs]


@check("attention-parameters", points=2, part="theory")
def attention_parameters(answer, case):
    """By building the matrices and counting."""

    def count(*args, **kwargs):
        return sum(matrix.numel() for matrix in built_parameters(*args, **kwargs))

    def trial(k, n, m, d, tied):
        right = count(k, n, m, d, tied=tied)
        one_less = count(k - 1, n, m, d)
        columns = [n] + [m] * (1 if tied else k)
        mistakes = {
            "that is the number for tied weights": count(k, n, m, d, tied=True),
            "that is the number for untied weights": count(k, n, m, d),
            "one state too few: x[t] has matrices, and each of k states": one_less,
            "one state too many": count(k + 1, n, m, d),
            "the matrices of x[t] have n columns, not m": count(k, m, m, d, tied=tied),
            f"the matrices of x[t] are missing{tied * ': it keeps its own, beside those that the states share'}": (
                right - count(0, n, m, d)
            ),
            "only one matrix for each slot is counted; there are Q, K and V": right // 3,
            "that counts matrices, not numbers": len(built_parameters(k, n, m, d, tied=tied)),
            "there are no biases in the formulas": right + 3 * (k + 1),
            "there are no biases in the formulas ": sum(
                len(W) * (W.shape[1] + 1) for W in built_parameters(k, n, m, d, tied=tied)
            ),
            "queries and keys have matrices of their own; one of them is not counted": right
            - sum(d * size for size in columns),
            "V_i of the states has m rows, as V_0 has": right - (m - d) * sum(columns[1:]),
            "V_0 has m rows, as the other V_i have": right - (m - d) * n,
            "V_0 maps the n numbers of the input to the m of the state": right - (m - n) * n,
            "the matrices of x[t] are counted once for each state; there is one input": (
                right + (len(columns) - 2) * count(0, n, m, d)
            ),
        }
        if tied:
            mistakes["that is x[t]'s matrices alone; the states share three of their own"] = count(0, n, m, d)
        for name, rows in (("d", d), ("m", m)):
            every = sum(matrix.shape[1] * rows for matrix in built_parameters(k, n, m, d, tied=tied))
            mistakes[f"all matrices are taken to have {name} rows; queries and keys have d, values m"] = every
        mistakes = {name: wrong for name, wrong in mistakes.items() if wrong != right}
        found = answer(k, n, m, d, tied)
        if isinstance(found, float) and found == int(found):
            found = int(found)
        what = f"your number for k = {k}, n = {n}, m = {m}, d = {d}, {'tied' if tied else 'untied'},"
        return what, found, right, lambda: mistakes

    with case("untied: each slot has its own matrices", points=1, hint="Q_i and K_i have d rows, V_i has m"):
        sizes = (2, 3, 5, 4), (7, 2, 6, 3), (1, 5, 2, 7)
        demand_numbers(case, [trial(*numbers, False) for numbers in sizes])
    with case("tied: all states share theirs", points=1, hint="how does the number grow with k?"):
        sizes = (2, 3, 5, 4), (7, 2, 6, 3), (100, 5, 2, 7)
        demand_numbers(case, [trial(*numbers, True) for numbers in sizes])


@check("softargmax-jacobian", points=2, part="theory", autograd=False)
def softargmax_jacobian(answer, case):
    """Against autograd in float64."""

    def demand(w):
        right, a = jacobian(lambda w: w.softmax(0), w), w.softmax(0)
        outer = a[:, None] * a
        mistakes = {
            "only the diagonal part is there: raising one score lowers the other weights": lambda: a.diag(),
            "the diagonal is right, but the rest is missing: raising one score lowers the other weights": lambda: (
                right.diagonal().diag()
            ),
            "only the outer product is there": lambda: outer,
            "only the outer product is there, with a minus": lambda: -outer,
            "the outer product is added; it is subtracted": lambda: right + 2 * outer,
            "the sign is wrong": lambda: -right,
            "a stands in every row instead of on the diagonal": lambda: right - a.diag() + a,
            "a stands in every column instead of on the diagonal": lambda: right - a.diag() + a[:, None],
            "aᵀa, a number, is subtracted; a aᵀ is a matrix": lambda: a.diag() - (a * a).sum(),
            "the identity stands where a belongs on the diagonal": lambda: (
                right - a.diag() + torch.eye(len(a), dtype=a.dtype)
            ),
            "the scores are used where their softargmax belongs": lambda: w.diag() - w[:, None] * w,
            "the result is the vector of the diagonal; the Jacobian is a matrix": lambda: right.diagonal(),
            "every score is treated alone, as by a sigmoid": lambda: jacobian(torch.sigmoid, w),
            "that is the derivative of the logarithm of softargmax": lambda: jacobian(lambda w: w.log_softmax(0), w),
            "the exponentials are not divided by their sum": lambda: w.exp().diag() - w.exp()[:, None] * w.exp(),
            "these are the weights a themselves, not their derivatives": lambda: a,
            "outside of the diagonal the sign is wrong: when one score rises, the other weights fall": lambda: (
                right.abs()
            ),
            "on the diagonal a_i² is subtracted twice": lambda: right - outer.diagonal().diag(),
            "a sigmoid makes the weights; softargmax divides by the sum over all scores": lambda: (
                w.sigmoid().diag() - w.sigmoid()[:, None] * w.sigmoid()
            ),
            "the quotient rule divides by the square of the sum": lambda: right * w.exp().sum(),
        }
        mistakes = mistakes if len(w) > 1 else {}
        what = f"∂a/∂w for {len(w)} scores"
        case.close(answer(w), right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("agrees with autograd", points=1, hint="differentiate e^{w_i} / Σ e^{w_j} by w_i, and by another w_j"):
        for size in (2, 3, 6):
            demand(double(case, size))
    with case("larger scores, and a single one", points=1, hint="a single weight is 1, whatever its score"):
        demand(torch.tensor([30.0, 29.0, 28.5], dtype=torch.float64))
        demand(double(case, 1))


def attention_jacobian_variants(i, x, states, Q, K, V):
    """Return functions of h[t-i] whose Jacobians are what common mistakes make of ∂h[t]/∂h[t-i]."""
    inputs = [x, *states]
    q, k, v = (slots_of(inputs, matrices) for matrices in (Q, K, V))
    new, a = attention_model(x, states, Q, K, V)
    old = states[i - 1]

    def run(in_query, in_key, in_value):
        """Run the cell with another h[t-i] in the query, in the key and in the value."""

        def filled(state):
            return [x, *states[: i - 1], state, *states[i:]]

        scores = (slots_of(filled(in_query), Q) @ slots_of(filled(in_key), K).T).diagonal()
        return F.linear(scores.softmax(0), slots_of(filled(in_value), V).T)

    def score(state):
        return (F.linear(state, Q[i]) * F.linear(state, K[i])).sum()

    def through_score(column):
        return lambda s: a[i] * F.linear(s, V[i]) + column * score(s)

    exchanged_slopes = F.linear(q[i], Q[i].T) + F.linear(k[i], K[i].T)
    slope = slope_of(score, old) if old.ndim else old
    return {
        "only the value's path is there; the weights depend on h[t-i], too": lambda s: run(old, old, s),
        "only the path through the weights is there; the value depends on h[t-i], too": lambda s: run(s, s, old),
        "the query depends on h[t-i], too; only value and key are differentiated": lambda s: run(old, s, s),
        "the key depends on h[t-i], too; only value and query are differentiated": lambda s: run(s, old, s),
        "the path through the weights goes through the query only, and the value is missing": lambda s: run(
            s, old, old
        ),
        "the path through the weights goes through the key only, and the value is missing": lambda s: run(old, s, old),
        "the softargmax is differentiated as if only a_i changed: the other weights change with w_i, too": (
            through_score(a[i] * v[i])
        ),
        "a_i changes by a_i (1 - a_i), but the other weights change, too": through_score(a[i] * (1 - a[i]) * v[i]),
        "the factor a_i of the softargmax's derivative is missing": through_score(v[i] - new),
        "h[t] is added where it is subtracted: the softargmax's derivative is diag(a) minus an outer product": (
            through_score(a[i] * (v[i] + new))
        ),
        "v_i and h[t] have exchanged signs": through_score(a[i] * (new - v[i])),
        "h[t-i] stands where h[t] belongs": through_score(a[i] * (v[i] - old)),
        "only h[t] is there in the path through the weights; v_i is missing": through_score(-a[i] * new),
        "the factor a_i in front of V_i is missing": lambda s: F.linear(s, V[i]) + a[i] * (v[i] - new) * score(s),
        "Q_i and K_i are exchanged: q_i is multiplied by K_i, k_i by Q_i": lambda s: (
            a[i] * F.linear(s, V[i]) + a[i] * (v[i] - new) * (exchanged_slopes * s).sum()
        ),
        "the outer product is transposed: its column is v_i - h[t], its row the derivative of w_i": lambda s: (
            a[i] * F.linear(s, V[i]) + a[i] * slope * ((v[i] - new) * s).sum()
        ),
        "column and row are multiplied entry by entry; their outer product is a whole matrix": lambda s: (
            a[i] * F.linear(s, V[i]) + a[i] * (v[i] - new) * slope * s
        ),
        **{
            f"h[t-{place + 1}] stands where h[t-{i}] belongs: that is states[{i - 1}]": (
                lambda s, other=other: (
                    a[i] * F.linear(s, V[i]) + a[i] * (F.linear(other, V[i]) - new) * (slope_of(score, other) * s).sum()
                )
            )
            for place, other in enumerate(states)
            if place != i - 1
        },
        "V_i is transposed": lambda s: a[i] * F.linear(s, V[i].T) + a[i] * (v[i] - new) * score(s),
        "the softargmax is not differentiated: h[t] is Σ w_i v_i here": through_score(v[i]),
        "the state is differentiated as if the weights were the scores' plain share": through_score(a[i] * a[i] * v[i]),
        "the key is compared with the derivative of the other slot's query": lambda s: (
            a[i] * F.linear(s, V[i]) + a[i] * (v[i] - new) * (F.linear(s, Q[i]) * k[0]).sum()
        ),
    }


@check("attention-jacobian", points=6, part="theory", autograd=False)
def attention_jacobian(answer, case):
    """Against autograd in float64."""

    def derivative(i, x, states, Q, K, V):
        def run(state):
            return attention_model(x, [*states[: i - 1], state, *states[i:]], Q, K, V)[0]

        return jacobian(run, states[i - 1])

    def demand(i, n, m, d, k, blind=False):
        x, states, Q, K, V = attention_numbers(case, n, m, d, k)
        if blind:  # the weights do not depend on the states
            Q, K = ([matrices[0], *(0 * matrix for matrix in matrices[1:])] for matrices in (Q, K))
        right = derivative(i, x, states, Q, K, V)
        mistakes = jacobians_of(attention_jacobian_variants(i, x, states, Q, K, V), states[i - 1], right)
        for other in range(1, k + 1):
            if other != i:
                named = f"this is the derivative by h[t-{other}]; asked is that by h[t-{i}], states[{i - 1}]"
                if blind:
                    named = f"V_{other} stands where V_{i} belongs: h[t-{i}] is states[{i - 1}], with V[{i}]"
                mistakes |= {named: (lambda other=other: derivative(other, x, states, Q, K, V))}
        if n == m:
            mistakes |= {
                "this is the derivative by x[t]: slot 0 is the input, slot i the state h[t-i]": lambda: jacobian(
                    lambda x: attention_model(x, states, Q, K, V)[0], x
                )
            }
        a = attention_model(x, states, Q, K, V)[1]
        for other in range(k + 1):
            if other != i and abs(float(a[other] / a[i]) - 1) > 1e-6:
                mistakes |= {
                    f"a_{other} stands where a_{i} belongs (a_0 is the weight of the input)": right * a[other] / a[i]
                }
        result = answer(i, x, states, Q, K, V)
        if m > 1 and not alike_tensor(result, right):
            value = derivative(i, x, states, [0 * W for W in Q], [0 * W for W in K], V)
            value = value * a[i] * (k + 1)  # with scores of 0 every weight is 1 / (k + 1)
            column = "the path through the value is right; in the outer product the row ∂w_i/∂h[t-i] is right up to a "
            column += "factor, the column ∂h[t]/∂w_i is not"
            row = "the path through the value is right; in the outer product the column ∂h[t]/∂w_i is right up to a "
            row += "factor, the row ∂w_i/∂h[t-i] is not"
            mistakes |= {
                column: lambda: same_rows(result - value, (right - value)[:1].expand_as(right)),
                row: lambda: same_rows((result - value).T, (right - value).T[:1].expand_as(right)),
            }
        what = f"∂h[t]/∂h[t-{i}] for n = {n}, m = {m}, d = {d}, {k} states"
        case.close(result, right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("a row for each entry of h[t]", points=1, hint="a matrix (m, m)"):
        case.shape(answer(1, *attention_numbers(case, 3, 4, 2, 2)), (4, 4), what="∂h[t]/∂h[t-1]")
    with case("the path through the value (Q_i = K_i = 0)", points=1, hint="with constant weights h[t] is linear"):
        demand(1, 3, 3, 2, 2, blind=True)
        demand(2, 2, 4, 3, 2, blind=True)
    with case("∂h[t]/∂h[t-1] of AttentionRNN(2)", points=2, hint="three paths: value, query, key"):
        for sizes in ((3, 3, 3, 2), (2, 4, 3, 2), (5, 3, 2, 2)):
            demand(1, *sizes)
    with case("∂h[t]/∂h[t-i] of AttentionRNN(k), sizes of 1", points=2, hint="slot i: states[i - 1], Q[i], K[i], V[i]"):
        for i, *sizes in ((2, 3, 3, 3, 2), (3, 2, 4, 3, 5), (5, 3, 3, 2, 5), (1, 2, 1, 1, 1), (1, 1, 3, 1, 1)):
            demand(i, *sizes)


def linear_chain(direct, jacobians, step=None):
    """Return the total gradients of states that depend on each other by these Jacobians, by autograd."""
    nudges = torch.zeros_like(direct, requires_grad=True)
    states = []
    for t, nudge in enumerate(nudges):
        earlier = [jacobians[t, s] @ (step(state) if step else state) for s, state in enumerate(states)]
        states.append(nudge + sum(earlier))
    loss = (torch.stack(states) * direct).sum()
    return torch.autograd.grad(loss, nudges)[0]


@check("total-gradients", points=4, part="theory", autograd=False)
def total_gradients(answer, case):
    """Against autograd through a chain of states that has these Jacobians."""

    def draw(steps, m, reach):
        lags = torch.arange(steps)[:, None] - torch.arange(steps)
        allowed = (lags >= 1) & (lags <= reach)
        return double(case, steps, m), 0.7 * double(case, steps, steps, m, m) * allowed[..., None, None]

    def mistakes_of(direct, jacobians):
        steps = len(direct)
        right = linear_chain(direct, jacobians)
        lags = (torch.arange(steps)[:, None] - torch.arange(steps))[..., None, None]
        reach = int((lags.squeeze() * jacobians.abs().sum((2, 3)).bool()).max())
        last = direct * (torch.arange(steps) == steps - 1)[:, None]
        nonlast = direct * (torch.arange(steps) < steps - 1)[:, None]

        def one_level():
            nudges = torch.zeros_like(direct, requires_grad=True)
            states = []
            for t, nudge in enumerate(nudges):
                states.append(nudge + sum(jacobians[t, s] @ nudges[s] for s in range(t)))
            return torch.autograd.grad((torch.stack(states) * direct).sum(), nudges)[0]

        return {
            "nothing flows back: ∂ℓ/∂h[T] has a part through each later state (t in jacobians[t, s])": (lambda: direct),
            "each Jacobian is transposed: a row times J, which for a column is J.T @ g": lambda: linear_chain(
                direct, jacobians.mT
            ),
            "only the next state is used; h[T] stands in all of h[T+1] … h[T+k]": lambda: linear_chain(
                direct, jacobians * (lags == 1)
            ),
            "the farthest state, h[T+k], is left out of the sum": lambda: linear_chain(
                direct, jacobians * (lags < reach)
            ),
            "the next state, h[T+1], is left out of the sum": lambda: linear_chain(direct, jacobians * (lags > 1)),
            "the direct gradients of the later states flow back, but their total ones must": one_level,
            "only the direct gradient of the last state is used; every state has its own": lambda: linear_chain(
                last, jacobians
            ),
            "the direct gradient of h[T] itself is missing": lambda: right - direct,
            "the direct gradient of the last state is missing": lambda: linear_chain(nonlast, jacobians),
            "the Jacobians' two indices are exchanged: jacobians[t, s] is ∂h[t]/∂h[s]": lambda: linear_chain(
                direct, jacobians.transpose(0, 1)
            ),
            "the gradient flows forward in time: start at the last state and go back": lambda: linear_chain(
                direct.flip(0), jacobians.flip(0, 1).transpose(0, 1)
            ).flip(0),
            "the results are in reverse order of time": lambda: right.flip(0),
            "the direct gradient is added once for each later state": lambda: linear_chain(
                direct * torch.arange(steps, 0, -1)[:, None], jacobians
            ),
            "each part replaces what was there, the direct gradient, too (= instead of +=)": lambda: torch.stack(
                [F.linear(direct[-1], jacobians[-1, s].T) for s in range(steps - 1)] + [direct[-1]]
            ),
            "only ∂ℓ/∂h of the first state is there; asked is one for each": lambda: right[0],
            "the first state is left without what flows back": lambda: torch.cat([direct[:1], right[1:]]),
            "what flows back is subtracted; the chain rule adds": lambda: linear_chain(direct, -jacobians),
            "what flows back from the last state is missing": lambda: linear_chain(
                direct, jacobians * (torch.arange(steps) < steps - 1)[:, None, None, None]
            ),
            "the average over the later states is taken; the chain rule adds": lambda: linear_chain(
                direct, jacobians / torch.arange(steps - 1, -1, -1).clamp(min=1)[:, None, None]
            ),
        }

    def demand(steps, m, reach):
        direct, jacobians = draw(steps, m, reach)
        text = f"∂ℓ/∂h for N = {steps}, m = {m}, k = {reach}"
        right = linear_chain(direct, jacobians)
        mistakes = mistakes_of(direct, jacobians) if steps > 1 else {}
        result = answer(direct, jacobians)
        if steps == 2 and not alike_tensor(result, right):  # too many mistakes look alike here
            more = draw(5, 2, 3)
            mistakes = those_that_explain(mistakes, answer(*more), mistakes_of(*more))
        if not alike_tensor(result, right) and isinstance(result, torch.Tensor) and result.shape == right.shape:
            off = ((result - right).abs() > 1e-6 * right.abs().max().clamp(min=1)).any(1).nonzero()
            mistakes |= always(
                f"of N = {steps} states the total of number {int(off[-1])} (counted from 0) is wrong, those of all "
                "later ones are right: look at what is added to its direct derivative"
            )
        case.close(result, right, what=text, mistakes=mistakes, tolerance=DERIVED)

    with case("one state, and two", points=1, hint="the last state has nothing after it"):
        demand(1, 3, 1)
        demand(2, 3, 1)
    with case("each state depends on the one before: an ordinary RNN", points=1, hint="one term from the next state"):
        demand(5, 3, 1)
    with case("each state depends on the two before: AttentionRNN(2)", points=1, hint="terms from T+1 and T+2"):
        demand(5, 2, 2)
        demand(3, 1, 2)
    with case("on any number: AttentionRNN(k), AttentionRNN(∞)", points=1, hint="terms from all later states"):
        demand(7, 3, 4)
        demand(6, 2, 6)
        case.unchanged(answer, *draw(4, 2, 2))


# -- reading a loss curve ---------------------------------------------------------------------------------


@check("guessing", points=3, part="theory")
def guessing(answer, case):
    """Against sums over all classes, and torch's cross-entropy."""

    def cross_entropy(p, predicted):
        logits = predicted.log().expand(len(p), -1)
        return float((F.cross_entropy(logits, torch.arange(len(p)), reduction="none") * p).sum())

    def number(key, p, sure, right, mistakes):
        (given,) = entries(case, answer(p, sure), [key])
        given = float(given)
        mistakes = {name: wrong for name, wrong in mistakes.items() if abs(wrong - right) > 1e-6}
        for sentence, wrong in mistakes.items():
            case.true(abs(given - wrong) > 1e-6, f"{key}: {sentence}")
        probabilities = [round(float(share), 3) for share in p]
        wrong = f"{key} is {given:.6g} for the class probabilities {probabilities} and sure = {sure}"
        case.true(abs(given - right) < 1e-6, f"{wrong}, which is not right")

    def probabilities():
        yield torch.full((4,), 0.25, dtype=torch.float64)
        yield torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
        yield torch.tensor([0.4, 0.6], dtype=torch.float64)
        yield double(case, 5).softmax(0)

    with case(
        "knows nothing, not even the frequencies", points=1, hint="add up over the classes: p_c times what is said"
    ):
        for p in probabilities():
            size = len(p)
            even = torch.full((size,), 1 / size, dtype=p.dtype)
            right = float((p * even).sum())
            mistakes = {
                "that is guessing with the classes' frequencies; this one guesses evenly": float((p * p).sum()),
                "that always says the most frequent class; this one guesses evenly": float(p.max()),
                "1/2 holds for two classes only": 0.5,
                "1/4 holds for four classes only": 0.25,
            }
            number("accuracy_even", p, 0.9, right, mistakes)
            right = cross_entropy(p, even)
            mistakes = {
                "that is in bits; torch's cross-entropy uses the natural logarithm": right / math.log(2),
                "that is the entropy of the frequencies; this one predicts 1/C for each class": cross_entropy(p, p),
                "the sign is wrong: a cross-entropy is not negative": -right,
                "that is the error rate, not the cross-entropy": 1 - 1 / size,
            }
            number("loss_even", p, 0.9, right, mistakes)
    with case("knows the frequencies, does not look at the input", points=1, hint="the best constant prediction"):
        for p in probabilities():
            right = max(float((p * torch.eye(len(p), dtype=p.dtype)[c]).sum()) for c in range(len(p)))
            mistakes = {
                "that is guessing with the classes' frequencies; always saying one class does better": float(
                    (p * p).sum()
                ),
                "that is guessing evenly": 1 / len(p),
                "that is the number of the most frequent class; asked is how often it occurs": float(p.argmax()),
                "that is always saying class 0; another class may occur more often": float(p[0]),
            }
            number("accuracy_constant", p, 0.9, right, mistakes)
            right = cross_entropy(p, p)
            mistakes = {
                "that is the loss of an even prediction; with the frequencies it gets lower": math.log(len(p)),
                "that is in bits; torch's cross-entropy uses the natural logarithm": right / math.log(2),
                "the sign is wrong: a cross-entropy is not negative": -right,
                "that is the loss on the most frequent class only; the others occur, too": -math.log(float(p.max())),
                "that is the mean of -ln p over the classes; each class counts as often as it occurs": float(
                    -p.log().mean()
                ),
                "the sum over the classes is divided by their number; an expectation is not": right / len(p),
            }
            number("loss_constant", p, 0.9, right, mistakes)
    with case("is sure of class 0, and mostly wrong", points=1, hint="-ln of what it gives to the class that comes"):
        for p, sure in itertools.product(probabilities(), (0.5, 0.9, 0.999)):
            size = len(p)
            said = torch.full((size,), (1 - sure) / (size - 1), dtype=p.dtype)
            said[0] = sure
            right = cross_entropy(p, said)
            first = float(p[0])
            mistakes = {
                "the rest is given to each other class whole; it is divided among them": (
                    -first * math.log(sure) - (1 - first) * math.log(1 - sure)
                ),
                "the rest is divided among all C classes; class 0 has its share already": (
                    -first * math.log(sure) - (1 - first) * math.log((1 - sure) / size)
                ),
                "only the cases where class 0 comes are counted": -first * math.log(sure),
                "only the loss when class 0 comes is counted": -math.log(sure),
                "only the cases where another class comes are counted": right + first * math.log(sure),
                "only the loss when another class comes is counted": -math.log((1 - sure) / (size - 1)),
                "the classes' frequencies are not used: they are not all alike": cross_entropy(
                    torch.full_like(p, 1 / size), said
                ),
                "that is in bits; torch's cross-entropy uses the natural logarithm": right / math.log(2),
                "the sum over the classes is divided by their number; an expectation is not": right / size,
                "p and the prediction are exchanged: weigh by how often a class comes, not by what is said": (
                    -float((said * p.log()).sum())
                ),
                "that is for one who is sure of the most frequent class; asked is class 0": cross_entropy(
                    p, torch.full_like(p, (1 - sure) / (size - 1)).index_fill(0, p.argmax(), sure)
                ),
                "the sign is wrong: a cross-entropy is not negative": -right,
            }
            number("loss_sure", p, sure, right, mistakes)


@check("clip-to-norm", points=2, part="theory", from_scratch=("clip_grad", "renorm"))
def clip_to_norm(answer, case):
    """Against `torch.renorm`, over all gradients as one vector."""

    def clipped(gradients, max_norm):
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        parts = torch.renorm(flat[None], 2, 0, max_norm)[0].split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def demand(gradients, max_norm, large):
        found = answer(gradients, max_norm)
        case.true(isinstance(found, (list, tuple)), "return a list of gradients (is the return statement there?)")
        case.true(len(found) == len(gradients), f"{len(gradients)} gradients went in, {len(found)} came out")
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        norm = flat.norm()
        whole = [clipped([gradient], max_norm)[0] for gradient in gradients]
        for place, right in enumerate(clipped(gradients, max_norm)):
            own = gradients[place]
            mistakes = {
                "the gradients are not clipped": own,
                "each gradient is clipped on its own; the norm is that of all together": whole[place],
                "each entry is clipped, which turns the gradient; scale all of them by one factor": (
                    own.clamp(-max_norm, max_norm)
                ),
                "short gradients are made longer; leave them as they are": own * max_norm / norm,
                "the gradients are scaled to norm 1, not to max_norm": own / norm,
                "the gradients are divided by max_norm": own / max_norm,
                "the norm of the gradients' sum of squares lacks its root": own * max_norm / norm**2,
                "the sum of absolute values is taken for the norm": own * min(1.0, float(max_norm / flat.abs().sum())),
                "the largest entry is taken for the norm": own * min(1.0, float(max_norm / flat.abs().max())),
                "the norms of the gradients are added; the squares add": own
                * min(1.0, float(max_norm / sum(gradient.norm() for gradient in gradients))),
                "a long gradient is set to 0; it keeps its direction": torch.zeros_like(own),
                "the mean of the squares is taken for their sum": own
                * min(1.0, float(max_norm / flat.square().mean().sqrt())),
            }
            mistakes = {name: wrong for name, wrong in mistakes.items() if not torch.allclose(wrong, right, atol=1e-6)}
            what = f"gradient {place} {'above' if large else 'below'} max_norm"
            case.close(found[place], right, what=what, mistakes=mistakes, tolerance=1e-5)

    def draw():
        return [double(case, 3, 4), double(case, 5), double(case, 2)]

    with case("a long gradient keeps its direction", points=1, hint="one norm over all entries of all gradients"):
        demand([10 * gradient for gradient in draw()], 2.0, True)
        demand(draw(), 0.5, True)
        demand([0.1 * gradient for gradient in draw()], 0.05, True)
        before = draw()
        (after, _) = answer.inputs_after(before, 0.5)
        same = all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
        case.true(same, "your code changes the gradients in place; make new tensors instead")
    with case("a short one stays as it is", points=1, hint="the factor is never above 1"):
        demand([0.01 * gradient for gradient in draw()], 2.0, False)
        demand([torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)], 1.0, False)


# ==============================================================================================================
# cnn
#
# The checks of the CNN notebook.
#
# The oracles are torch's own convolution, unfold, fold, pooling and batch norm, their automatic differentiation,
# and torchvision's residual block. Shapes: B pictures, C channels, H rows, W columns; F filters of HK rows and WK
# columns; S stride, P padding, D dilation.
#
# Most of the code describes mistakes: each function `..._mistakes` returns what common mistakes would have
# computed, under the sentence that a student reads when the answer equals it.
# ==============================================================================================================


CONVOLUTIONS = "conv1d", "conv2d", "conv3d", "convolution"


# -- convolution ------------------------------------------------------------------------------------------


def conv2d_words(stride=1, padding=0, dilation=1):
    """Return the settings of a convolution in words, for a message."""
    return f"stride {stride}, padding {padding}, dilation {dilation}"


def conv2d_padded(picture, padding, rows=None, columns=None, **options):
    """Return a picture with `padding`, or (before, after) pairs of it, around it."""
    rows, columns = rows or (padding, padding), columns or (padding, padding)
    return F.pad(picture, (*columns, *rows), **options)


def conv2d_part(picture, size, top=0, left=0):
    """Return a part of this size; fails when the picture is too small for it."""
    height, width = size
    part = picture[..., top : top + height, left : left + width]
    if part.shape[-2:] != tuple(size):
        raise ValueError(f"there is no such part of {tuple(picture.shape)}")
    return part


def conv2d_geometry(convolve, x, size, stride, padding, dilation):
    """Return what mistakes with stride, padding and dilation lead to.

    Args:
        convolve: (x, stride, padding, dilation) -> (..., rows, columns).
        x: (B, C, H, W).
        size: rows and columns of the right result.
        stride: S.
        padding: P.
        dilation: D.
    """
    P, twice = padding, 2 * padding

    def padded(value):  # a picture that is padded already
        return convolve(value, stride, 0, dilation)

    found = {
        "the stride is not used: neighbouring windows lie S pixels apart": lambda: convolve(x, 1, P, dilation),
        "the windows begin at row i and column j; they must begin at row i·S and column j·S (stride)": (
            lambda: conv2d_part(convolve(x, 1, P, dilation), size)
        ),
        "the dilation is not used: the pixels of a window lie D apart": lambda: convolve(x, stride, P, 1),
        "the pixels of a window are neighbours; they lie D apart (dilation)": (
            lambda: conv2d_part(convolve(x, stride, P, 1), size)
        ),
        "the pixels of a window are one too far apart: D = 1 means neighbours": (
            lambda: convolve(x, stride, P, dilation + 1)
        ),
        "stride and dilation are exchanged: S lies between windows, D inside one": lambda: convolve(
            x, dilation, P, stride
        ),
        "stride and dilation are exchanged: S lies between windows, D inside one.": (
            lambda: conv2d_part(convolve(x, dilation, P, stride), size)
        ),
        "the dilation is used for the rows only": lambda: conv2d_part(convolve(x, stride, P, (dilation, 1)), size),
        "the dilation is used for the columns only": lambda: conv2d_part(convolve(x, stride, P, (1, dilation)), size),
        "inside a window the stride is used; inside it the dilation counts": (
            lambda: conv2d_part(convolve(x, stride, P, stride), size)
        ),
        "the windows lie D apart; between windows the stride counts": (
            lambda: conv2d_part(convolve(x, dilation, P, dilation), size)
        ),
        "the padding is not used: P rows and columns of zeros come on every side": (
            lambda: convolve(x, stride, 0, dilation)
        ),
        "the padding is used twice": lambda: convolve(x, stride, twice, dilation),
        "the zeros stand around the result; they belong around the picture, before the windows are cut out": (
            lambda: F.pad(convolve(x, stride, 0, dilation), (P,) * 4)
        ),
        "the stride is used for the rows only": lambda: convolve(x, 1, P, dilation)[..., ::stride, :],
        "the stride is used for the columns only": lambda: convolve(x, 1, P, dilation)[..., ::stride],
        "the padding stands on one side only, top and left: P rows and columns come on every side": (
            lambda: padded(conv2d_padded(x, 0, (twice, 0), (twice, 0)))
        ),
        "the padding stands on one side only, bottom and right: P rows and columns come on every side": (
            lambda: padded(conv2d_padded(x, 0, (0, twice), (0, twice)))
        ),
        "P rows and columns are added in all, not on every side (top and left only)": (
            lambda: padded(conv2d_padded(x, 0, (P, 0), (P, 0)))
        ),
        "P rows and columns are added in all, not on every side (bottom and right only)": (
            lambda: padded(conv2d_padded(x, 0, (0, P), (0, P)))
        ),
        "only the columns are padded (left and right); rows at the top and bottom are missing": (
            lambda: padded(conv2d_padded(x, P, (0, 0)))
        ),
        "only the rows are padded (top and bottom); columns at the left and right are missing": (
            lambda: padded(conv2d_padded(x, P, None, (0, 0)))
        ),
        "the picture is padded by ones, not by zeros": lambda: padded(conv2d_padded(x, P, value=1.0)),
    }
    for mode, what in {"replicate": "by its edge", "reflect": "by its mirror image", "circular": "round"}.items():
        found[f"the picture is padded {what}, not by zeros"] = lambda mode=mode: padded(conv2d_padded(x, P, mode=mode))
    return found


def conv2d_mistakes(x, w, b, stride, padding, dilation):
    """Return the results that common mistakes of a convolution lead to."""

    def wrong(x=x, w=w, b=b):
        return F.conv2d(x, w, b, stride, padding, dilation)

    entries, channels = w[0].numel(), w.shape[1]
    right = wrong()
    found = {
        "the kernel is flipped: that is a true convolution; here the kernel is not turned round": (
            lambda: wrong(w=w.flip(-2, -1))
        ),
        "the kernel is flipped left to right": lambda: wrong(w=w.flip(-1)),
        "the kernel is flipped top to bottom": lambda: wrong(w=w.flip(-2)),
        "rows and columns of the kernel are exchanged": lambda: wrong(w=w.mT),
        "rows and columns of the result are exchanged": lambda: right.mT,
        "filters and channels are exchanged: w is (F, C, HK, WK)": lambda: wrong(w=w.transpose(0, 1)),
        "the sum over the channels is missing: this uses the first channel alone": (
            lambda: wrong(x=x[:, :1], w=w[:, :1])
        ),
        "the sum over the channels is missing: this uses the last channel alone (= where += belongs?)": (
            lambda: wrong(x=x[:, -1:], w=w[:, -1:])
        ),
        "the channels are not summed: there is a result for each channel": (
            lambda: torch.stack([wrong(x=x[:, c : c + 1], w=w[:, c : c + 1], b=None) for c in range(channels)], 2)
        ),
        "all channels use the first channel of the filter; a filter has its own kernel for each": (
            lambda: wrong(w=w[:, :1].expand_as(w))
        ),
        "only the kernel's last entry counts: the sum over its rows and columns is missing (= where += belongs?)": (
            lambda: wrong(w=w * torch.eye(entries)[-1].view_as(w[0]).to(w))
        ),
        "this is the mean over the window; a convolution sums": lambda: wrong(w=w / entries),
        "this is the mean over the channels; a convolution sums over them": lambda: wrong(w=w / channels),
        "every filter gives the result of the first one": lambda: wrong(w=w[:1].expand_as(w)),
        "every filter gives the result of the last one": lambda: wrong(w=w[-1:].expand_as(w)),
        "every filter gives the sum of all filters; each makes a map of its own": (
            lambda: wrong(w=w.sum(0, keepdim=True).expand_as(w))
        ),
        "the pictures are summed; each has its own result": lambda: right.sum(0, keepdim=True).expand_as(right),
        "there is only the result of the first filter": lambda: right[:, :1],
        "there is only the result of the first picture": lambda: right[:1],
        "the axis of the pictures is lost": lambda: right[0],
        "every picture gets the result of the first one": lambda: right[:1].expand_as(right),
        "the result is (B, Ho, Wo, F); the filters are axis 1: (B, F, Ho, Wo)": lambda: right.permute(0, 2, 3, 1),
        "the result is (B, F, Ho·Wo): rows and columns are still one axis": lambda: right.flatten(2),
        "the result is (F, B, Ho, Wo): the pictures come first": lambda: right.transpose(0, 1),
        "the right numbers stand in the wrong places: a reshape does not move axes, a transpose does": lambda: (
            conv2d_misplaced(right, lambda r: r.permute(0, 2, 3, 1).reshape(r.shape))
        ),
        "the result is mirrored": lambda: right.flip(-2, -1),
        "channels are summed before they meet the filter; each channel meets its own kernel, then sum": (
            lambda: wrong(x=x.sum(1, keepdim=True), w=w.sum(1, keepdim=True))
        ),
        "the weights are rearranged by a reshape: a filter is w[f], so flatten each, w.flatten(1)": (
            lambda: wrong(w=w.reshape(-1, len(w)).T.reshape(w.shape))
        ),
        "the weights are flattened in the order (HK, WK, C); the columns have (C, HK, WK)": (
            lambda: wrong(w=w.permute(0, 2, 3, 1).reshape(w.shape))
        ),
        "the weights are flattened column by column; the columns of X hold a window row by row": (
            lambda: wrong(w=w.mT.reshape(w.shape))
        ),
    }
    if b is not None:
        without = wrong(b=None)
        found |= {
            "the bias is missing": without,
            "the bias is subtracted": without - b.view(-1, 1, 1),
            "the bias is added twice": without + 2 * b.view(-1, 1, 1),
            f"the bias is added {channels} times, once for each channel; add it once": (
                lambda: without + channels * b.view(-1, 1, 1)
            ),
            f"the bias is added {entries} times, once for each entry of the kernel; add it once": (
                lambda: without + entries * b.view(-1, 1, 1)
            ),
            f"the bias is added {entries // channels} times, once for each place in the window; add it once": (
                lambda: without + entries // channels * b.view(-1, 1, 1)
            ),
            "the bias is added along the wrong axis: filter f gets b[f]": lambda: without + b,
            "every filter gets the first filter's bias": lambda: without + b[0],
            "all biases are added to every filter; filter f gets b[f] alone": lambda: without + b.sum(),
            "the bias is added to the weights, so that every pixel of the window is counted with it": (
                lambda: wrong(w=w + b.view(-1, 1, 1, 1), b=None)
            ),
            "the bias is counted as if it were part of every window (is b inside the mean or product?)": (
                lambda: without * b.view(-1, 1, 1)
            ),
        }
    return found | conv2d_geometry(
        lambda x, s, p, d: F.conv2d(x, w, b, s, p, d), x, right.shape[-2:], stride, padding, dilation
    )


def conv2d_misplaced(right, move):
    """Return a rearranged result; raises where that changes nothing."""
    moved = move(right)
    if torch.equal(moved, right):
        raise ValueError("nothing moved")
    return moved


def conv2d_size_mistakes(result, right, x, w, stride, padding, dilation):
    """Return, as mistakes, wrong formulas for the number of rows and columns."""
    pairs = list(zip(x.shape[-2:], w.shape[-2:], strict=True))
    P, D, S = padding, dilation, stride
    formulas = {
        "the + 1 is missing": lambda n, k: (n + 2 * P - D * (k - 1) - 1) // S,
        "the dilation does not count in it": lambda n, k: (n + 2 * P - k) // S + 1,
        "the padding counts only once in it": lambda n, k: (n + P - D * (k - 1) - 1) // S + 1,
        "the padding does not count in it": lambda n, k: (n - D * (k - 1) - 1) // S + 1,
        "the stride does not count in it": lambda n, k: n + 2 * P - D * (k - 1),
        "it is D·(K - 1), not D·K": lambda n, k: (n + 2 * P - D * k) // S + 1,
        "the division must be rounded down": lambda n, k: -(-(n + 2 * P - D * (k - 1) - 1) // S) + 1,
    }
    wanted = tuple(right.shape[-2:])
    found = {}
    for why, formula in formulas.items():
        size = tuple(formula(n, k) for n, k in pairs)
        if size != wanted:
            sentence = f"the result has {size[0]} × {size[1]} pixels where there are {wanted[0]} × {wanted[1]}: {why}"
            found[sentence] = lambda size=size: tuple(result.shape[-2:]) == size
    return found


def conv2d_demand(case, answer, shape, kernel, *settings, bias=True, dtype=torch.float32, scratch=CONVOLUTIONS):
    """Demand a right convolution of random numbers; `settings` are stride, padding and dilation."""
    settings = (*settings, *(1, 0, 1)[len(settings) :])
    x, w = case.randn(*shape, dtype=dtype), case.randn(*kernel, dtype=dtype)
    b = case.randn(kernel[0], dtype=dtype) if bias else None
    result, right = answer.without(*scratch)(x, w, b, *settings), F.conv2d(x, w, b, *settings)
    mistakes = conv2d_mistakes(x, w, b, *settings)
    if isinstance(result, torch.Tensor) and result.ndim == 4:
        mistakes |= conv2d_size_mistakes(result, right, x, w, *settings)
    what = f"the result for x {shape}, w {kernel}, {'b, ' if bias else 'no b, '}{conv2d_words(*settings)}"
    if isinstance(result, torch.Tensor) and alike(result.to(dtype), right, 1e-5):
        case.dtype(result, dtype, what=f"the result for inputs in {str(dtype).removeprefix('torch.')}")
        mistakes = always("it is right to the precision of float32 only: make new tensors of x's dtype (x.new_zeros)")
    case.close(result, right, what=what, mistakes=mistakes)


@check("conv2d-loops", points=8, part="cnn", from_scratch=LIBRARY_WINDOWS)
def conv2d_loops(answer, case):
    """Against `torch.nn.functional.conv2d`."""
    with case("one window after the other, one filter", points=2, hint="multiply window and kernel, then sum all"):
        conv2d_demand(case, answer, (1, 1, 5, 6), (1, 1, 2, 3), bias=False)
        conv2d_demand(case, answer, (1, 1, 4, 4), (1, 1, 3, 3), bias=False)
    with case("several channels, filters and pictures", points=2, hint="sum over the channels too; a map per filter"):
        conv2d_demand(case, answer, (2, 3, 5, 6), (5, 3, 2, 3), bias=False)
        conv2d_demand(case, answer, (3, 2, 4, 4), (2, 2, 1, 1), bias=False)
        conv2d_demand(case, answer, (1, 3, 3, 4), (3, 3, 3, 4), bias=False)
    with case("bias", points=1, hint="one number for each filter, added once to each of its results"):
        conv2d_demand(case, answer, (2, 3, 5, 6), (5, 3, 2, 3))
    with case("stride", points=1, hint="window (i, j) begins at row i·S and column j·S"):
        conv2d_demand(case, answer, (2, 2, 6, 8), (3, 2, 2, 3), 2)
        conv2d_demand(case, answer, (1, 2, 8, 7), (3, 2, 3, 2), 3)
    with case("padding", points=1, hint="zeros on all four sides, before anything else"):
        conv2d_demand(case, answer, (2, 2, 5, 4), (3, 2, 3, 3), 1, 1)
        conv2d_demand(case, answer, (1, 2, 4, 6), (3, 2, 3, 4), 1, 2)
    with case("dilation, and all three together", points=1, hint="entry (u, v) of the kernel meets pixel (u·D, v·D)"):
        conv2d_demand(case, answer, (2, 2, 7, 8), (3, 2, 3, 2), 1, 0, 2)
        conv2d_demand(case, answer, (2, 2, 8, 9), (3, 2, 2, 3), 3, 1, 2, dtype=torch.float64)
        case.unchanged(answer, case.randn(1, 2, 5, 5), case.randn(3, 2, 3, 3), case.randn(3), 2, 1, 1)


# -- windows as columns, and back -------------------------------------------------------------------------


def conv2d_right_numbers(result, right):
    """Return, as a mistake, that a tensor holds the right numbers in the wrong places."""

    def holds():
        return result.shape == right.shape and alike(result.flatten().sort()[0], right.flatten().sort()[0])

    return {
        "all numbers are there, but not in their places: before axes are joined by a reshape, they must stand in the "
        "order (C, HK, WK, Ho, Wo)": holds
    }


def conv2d_columns_mistakes(x, size, stride, padding, dilation):
    """Return the columns that common mistakes lead to."""
    B, C = x.shape[:2]
    entries = C * size[0] * size[1]
    one_hot = torch.eye(entries, dtype=x.dtype).view(entries, C, *size)  # a filter for each entry of a window

    def maps(x, stride, padding, dilation):
        return F.conv2d(x, one_hot, None, stride, padding, dilation)

    right = F.unfold(x, size, dilation, padding, stride)
    high, wide = maps(x, stride, padding, dilation).shape[-2:]
    apart = right.view(B, C, *size, high, wide)

    def order(*axes):
        return lambda: conv2d_misplaced(right, lambda r: apart.permute(0, *axes).reshape(r.shape))

    found = {
        "windows and entries are exchanged: a window is a column, (B, C·HK·WK, L)": lambda: right.mT,
        "the entries of a column stand in the order (HK, WK, C), not (C, HK, WK)": order(2, 3, 1, 4, 5),
        "the entries of a column stand in the order (HK, C, WK), not (C, HK, WK)": order(2, 1, 3, 4, 5),
        "rows and columns of the window are exchanged: a column holds the window row by row": order(1, 3, 2, 4, 5),
        "the windows stand column by column; they are counted row by row, as one reads": order(1, 2, 3, 5, 4),
        "the channels are still an axis of their own; they belong into the column": lambda: apart.flatten(4).flatten(
            2, 3
        ),
        "the rows and columns of the kernel are still axes of their own: join C, HK and WK": lambda: apart.flatten(4),
        "Ho and Wo are still two axes: join them": lambda: apart.flatten(1, 3),
        "nothing is joined yet: (B, C, HK, WK, Ho, Wo) must become (B, C·HK·WK, Ho·Wo)": apart,
        "the windows are turned round": lambda: apart.flip(2, 3).reshape(right.shape),
        "the channels are summed; a column holds all of them, one after the other": lambda: apart.sum(1).view(
            B, -1, high * wide
        ),
        "only the first channel is used; a column holds all of them": lambda: apart[:, 0].reshape(B, -1, high * wide),
        "only the first picture is used": lambda: right[:1],
        "the axis of the pictures is lost": lambda: right[0],
        "the pictures stand side by side; keep them as axis 0": lambda: right.transpose(0, 1).flatten(1),
    }
    geometry = conv2d_geometry(maps, x, (high, wide), stride, padding, dilation)
    return found | {sentence: (lambda wrong=wrong: wrong().flatten(2)) for sentence, wrong in geometry.items()}


@check("conv2d-unfold", points=5, part="cnn", from_scratch=LIBRARY_WINDOWS)
def conv2d_unfold(answer, case):
    """Against `torch.nn.functional.unfold`."""

    def demand(shape, size, stride=1, padding=0, dilation=1, dtype=torch.float32):
        x = case.randn(*shape, dtype=dtype)
        scratch = ("im2col", *CONVOLUTIONS)
        result = answer.without(*scratch)(x, size, stride, padding, dilation)
        right = F.unfold(x, size, dilation, padding, stride)
        mistakes = conv2d_columns_mistakes(x, size, stride, padding, dilation) | conv2d_right_numbers(result, right)
        words = conv2d_words(stride, padding, dilation)
        case.close(result, right, what=f"the columns of x {shape} for windows {size}, {words}", mistakes=mistakes)
        case.dtype(result, dtype, what=f"the columns of pictures in {str(dtype).removeprefix('torch.')}")

    with case("each window is a column", points=2, hint="C·HK·WK numbers for each of L = Ho·Wo windows"):
        demand((1, 1, 3, 4), (2, 2))
        demand((2, 3, 5, 6), (2, 3))
        demand((3, 2, 4, 4), (1, 1))
        demand((2, 3, 3, 4), (3, 4))
    with case(
        "stride", points=1, hint="entry (u, v) of all windows: every S-th row from u on, every S-th column from v"
    ):
        demand((2, 2, 6, 8), (2, 3), stride=2)
        demand((1, 3, 9, 7), (3, 2), stride=3)
    with case("padding", points=1, hint="zeros on all four sides, before anything else"):
        demand((2, 2, 5, 4), (3, 3), padding=1)
        demand((1, 2, 4, 6), (3, 4), padding=2)
    with case("dilation, and all three together", points=1, hint="the slice for (u, v) begins at row u·D, column v·D"):
        demand((2, 2, 7, 8), (3, 2), dilation=2)
        demand((2, 3, 8, 9), (2, 3), stride=3, padding=1, dilation=2, dtype=torch.float64)
        case.unchanged(answer, case.randn(1, 2, 5, 5), (3, 3), 2, 1, 1)


@check("conv2d-matrix", points=4, part="cnn", from_scratch=LIBRARY_WINDOWS)
def conv2d_matrix(answer, case):
    """Against `torch.nn.functional.conv2d`, gradients too."""
    with case("agrees with torch", points=2, hint="filters (F, K) times columns (B, K, L), then the bias"):
        conv2d_demand(case, answer, (1, 1, 5, 6), (1, 1, 2, 3), bias=False)
        conv2d_demand(case, answer, (2, 3, 5, 6), (5, 3, 2, 3), bias=False)
        conv2d_demand(case, answer, (2, 3, 5, 6), (5, 3, 2, 3))
        conv2d_demand(case, answer, (3, 2, 4, 4), (2, 2, 1, 1))
    with case("with stride, padding and dilation", points=1, hint="hand them to conv2d_unfold; Ho and Wo follow"):
        conv2d_demand(case, answer, (2, 2, 6, 8), (3, 2, 2, 3), 2)
        conv2d_demand(case, answer, (2, 2, 5, 4), (3, 2, 3, 3), 1, 1)
        conv2d_demand(case, answer, (2, 2, 7, 8), (3, 2, 3, 2), 1, 0, 2)
        conv2d_demand(case, answer, (2, 3, 8, 9), (5, 3, 2, 3), 3, 1, 2, dtype=torch.float64)
    with case("gradients flow to x, w and b", points=1, hint="tensor operations only, on the inputs themselves"):
        inputs, settings = (case.randn(2, 2, 6, 5), case.randn(3, 2, 3, 2), case.randn(3)), (2, 1, 1)
        right = F.conv2d(*inputs, *settings)
        not_yet = always("the result itself is not right yet, so its gradient cannot be")
        case.close(answer(*inputs, *settings), right, mistakes=not_yet)
        upstream = case.randn(*right.shape)
        found = answer.gradients(*inputs, *settings, upstream=upstream)
        expected = Answer(F.conv2d).gradients(*inputs, *settings, upstream=upstream)
        for name, ours, theirs in zip("xwb", found, expected, strict=True):
            case.close(ours, theirs, what=f"the gradient for {name}")
        case.unchanged(answer, *inputs, *settings)


def conv2d_overwritten(columns, size, kernel, stride, padding, dilation, by_window):
    """Return a picture whose pixels hold only what was written last, for two orders of writing."""
    number = 1.0 + torch.arange(size[0] * size[1], dtype=torch.float64).view(1, 1, *size)
    pixel = F.unfold(number, kernel, dilation, padding, stride)[0].long()  # (HK·WK, L), 0 is padding
    entries, windows = pixel.shape
    turn = torch.arange(windows)[None] + windows * torch.arange(entries)[:, None]
    if by_window:
        turn = turn // windows + entries * torch.arange(windows)
    latest = torch.full((size[0] * size[1] + 1,), -1).scatter_reduce(0, pixel.flatten(), turn.flatten(), "amax")
    written = (turn == latest[pixel]).repeat(columns.shape[1] // entries, 1)
    return F.fold(columns * written, size, kernel, dilation, padding, stride)


def conv2d_fold_mistakes(columns, size, kernel, stride, padding, dilation):
    """Return the pictures that common mistakes lead to."""
    B, L = columns.shape[0], columns.shape[-1]
    P = padding

    def fold(columns=columns, size=size, padding=padding, stride=stride, dilation=dilation):
        return F.fold(columns, size, kernel, dilation, padding, stride)

    right = fold()
    outer = (size[0] + 2 * P, size[1] + 2 * P)
    whole = fold(size=outer, padding=0)
    apart = columns.view(B, -1, *kernel, L)
    overwritten = "where windows overlap, only the last number written is left: they must be added (+=, not =)"
    return {
        overwritten: lambda: conv2d_overwritten(columns, size, kernel, stride, padding, dilation, by_window=False),
        overwritten + ".": lambda: conv2d_overwritten(columns, size, kernel, stride, padding, dilation, by_window=True),
        "where windows overlap, the mean is taken: the numbers must be added": (
            lambda: right / fold(torch.ones_like(columns)).clamp(min=1)
        ),
        "the padding is not cut off again": whole,
        "the padding is cut off at the wrong end: this drops 2·P rows at the bottom": (
            lambda: conv2d_part(whole, size)
        ),
        "the padding is cut off at the wrong end: this drops 2·P rows at the top": (
            lambda: conv2d_part(whole, size, 2 * P, 2 * P)
        ),
        "only the padding at the top and left is cut off": lambda: whole[..., P:, P:],
        "only the padding at the bottom and right is cut off": lambda: whole[..., : size[0] + P, : size[1] + P],
        "nothing is left: with padding 0, the slice [0:-0] is empty": lambda: right[..., :0, :0],
        "the padding is cut off twice": lambda: right[..., P:-P, P:-P] if P else None,
        "only the padded rows are cut off; padded columns are left": lambda: whole[..., P : P + size[0], :],
        "only the padded columns are cut off; padded rows are left": lambda: whole[..., P : P + size[1]],
        "the padding is cut off at the left, but not at the top": lambda: conv2d_part(whole, size, 0, P),
        "the padding is cut off at the top, but not at the left": lambda: conv2d_part(whole, size, P, 0),
        "the entries of a column are read as (HK, WK, C); they stand as (C, HK, WK)": lambda: fold(
            columns.view(B, *kernel, -1, L).permute(0, 3, 1, 2, 4).reshape(columns.shape)
        ),
        "rows and columns of the window are exchanged": lambda: fold(
            columns.view(B, -1, kernel[1], kernel[0], L).transpose(2, 3).reshape(columns.shape)
        ),
        "the windows are turned round": lambda: fold(apart.flip(2, 3).reshape(columns.shape)),
        "the dilation is not used": lambda: conv2d_moved(fold, columns, size, kernel, stride, P, 1, dilation),
        "the stride is not used": lambda: conv2d_moved(fold, columns, size, kernel, 1, P, dilation, dilation, stride),
        "the windows are read column by column; they are counted row by row": lambda: fold(
            conv2d_turned(columns, size, kernel, stride, P, dilation)
        ),
        "there is only the first picture": lambda: right[:1],
        "the axis of the pictures is lost": lambda: right[0],
        "rows and columns of the picture are exchanged": lambda: right.mT,
        "the channels are summed": lambda: right.sum(1, keepdim=True),
    }


def conv2d_moved(fold, columns, size, kernel, stride, padding, dilation, was, step=None):
    """Return the fold of the same windows at another stride or dilation, as far as it lies in the picture."""
    outer = [n + 2 * padding for n in size]
    step = step or stride
    counts = [(n - was * (k - 1) - 1) // step + 1 for n, k in zip(outer, kernel, strict=True)]
    needed = [(c - 1) * stride + dilation * (k - 1) + 1 for c, k in zip(counts, kernel, strict=True)]
    small = fold(columns, tuple(needed), 0, stride, dilation)
    grown = F.pad(small, (0, outer[1] - needed[1], 0, outer[0] - needed[0]))
    return conv2d_part(grown, size, padding, padding)


def conv2d_turned(columns, size, kernel, stride, padding, dilation):
    """Return columns whose windows are counted column by column."""
    outer = [n + 2 * padding for n in size]
    high, wide = ((n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(outer, kernel, strict=True))
    return columns.unflatten(2, (wide, high)).mT.flatten(2)


@check("conv2d-fold", points=5, part="cnn", autograd=False, from_scratch=LIBRARY_WINDOWS)
def conv2d_fold(answer, case):
    """Against `torch.nn.functional.fold`, and by the identity that makes it the adjoint of unfold."""

    def demand(batch, channels, size, kernel, stride=1, padding=0, dilation=1, dtype=torch.float32):
        empty = torch.empty(batch, channels, *size)
        columns = case.randn(*F.unfold(empty, kernel, dilation, padding, stride).shape, dtype=dtype)
        scratch = ("col2im", *CONVOLUTIONS)
        result = answer.without(*scratch)(columns, size, kernel, stride, padding, dilation)
        right = F.fold(columns, size, kernel, dilation, padding, stride)
        mistakes = conv2d_fold_mistakes(columns, size, kernel, stride, padding, dilation)
        what = f"a picture of {size[0]} × {size[1]} from windows {kernel}, {conv2d_words(stride, padding, dilation)}"
        case.close(result, right, what=what, mistakes=mistakes)
        case.dtype(result, dtype, what=what)

    with case("windows side by side", points=1, hint="each number goes back to the pixel that it came from"):
        demand(1, 1, (4, 6), (2, 2), stride=2)
        demand(2, 3, (4, 6), (2, 3), stride=3)
        demand(2, 3, (3, 4), (3, 4))
    with case("overlapping windows are added", points=2, hint="a pixel in four windows gets the sum of four numbers"):
        demand(1, 1, (4, 5), (3, 3))
        demand(2, 3, (5, 6), (2, 3))
        demand(2, 2, (7, 8), (3, 4), stride=2)
    with case("padding and dilation", points=1, hint="fold into the padded picture, then cut the padding off"):
        demand(2, 2, (5, 4), (3, 3), padding=1)
        demand(1, 2, (4, 5), (3, 2), padding=3)
        demand(2, 2, (7, 8), (3, 2), dilation=2)
        demand(2, 3, (8, 9), (2, 3), stride=3, padding=1, dilation=2, dtype=torch.float64)
    with case("sum(unfold(x) · c) = sum(x · fold(c))", points=1, hint="what fold and unfold move is the same"):
        x = case.randn(2, 3, 7, 6, dtype=torch.float64)
        for kernel, stride, padding, dilation in (((3, 2), 2, 1, 1), ((2, 3), 1, 2, 2)):
            unfolded = F.unfold(x, kernel, dilation, padding, stride)
            columns = case.randn(*unfolded.shape, dtype=torch.float64)
            folded = answer(columns, (7, 6), kernel, stride, padding, dilation)
            case.shape(folded, x.shape, what="the picture")
            mistakes = made_by(folded, conv2d_fold_mistakes(columns, (7, 6), kernel, stride, padding, dilation))
            case.close((x * folded).sum(), (unfolded * columns).sum(), what="sum(x · fold(c))", mistakes=mistakes)
        case.unchanged(answer, columns, (7, 6), kernel, stride, padding, dilation)


# -- backwards --------------------------------------------------------------------------------------------


def conv2d_gradients(dy, x, w, *settings):
    """Return torch's gradients of a convolution with respect to x, w and b."""
    inputs = [value.clone().requires_grad_() for value in (x, w, torch.zeros(len(w), dtype=w.dtype))]
    return torch.autograd.grad(F.conv2d(*inputs, *settings), inputs, dy)


def conv2d_dx_mistakes(dy, x, w, stride, padding, dilation):
    """Return the gradients for x that common mistakes lead to."""
    P, size = padding, x.shape[-2:]

    def gradient(x=x, w=w, dy=dy, *settings):
        return conv2d_gradients(dy, x, w, *(settings or (stride, padding, dilation)))[0]

    right = gradient()
    outer = conv2d_padded(x, P)
    whole = gradient(outer, w, dy, stride, 0, dilation)
    columns = F.unfold(x, w.shape[-2:], dilation, P, stride).requires_grad_()
    product = torch.tensordot(w.flatten(1), columns, ([1], [1])).transpose(0, 1)
    (spread,) = torch.autograd.grad(product, columns, dy.flatten(2))
    folds = (spread, tuple(size), tuple(w.shape[-2:]), stride, padding, dilation)
    reached = [(n - 1) * stride + dilation * (k - 1) + 1 for n, k in zip(dy.shape[-2:], w.shape[-2:], strict=True)]
    overwritten = "where windows overlap, only one of the gradients is left: they add up (+=, not =)"
    return {
        "dx uses the kernel turned round: a pixel gets w[u, v] from the window in which it is entry (u, v)": (
            lambda: gradient(w=w.flip(-2, -1))
        ),
        overwritten: lambda: conv2d_overwritten(*folds, by_window=False),
        overwritten + ".": lambda: conv2d_overwritten(*folds, by_window=True),
        "the padding is not cut off: dx has the shape of x": whole,
        "the padding is cut off at the wrong end (bottom and right only)": lambda: conv2d_part(whole, size),
        "the padding is cut off at the wrong end (top and left only)": lambda: conv2d_part(whole, size, 2 * P, 2 * P),
        "rows and columns that no window reaches are missing; their gradient is 0": (
            lambda: conv2d_part(whole, reached)[..., P : size[0] + P, P : size[1] + P]
        ),
        "dx is the mean over the filters; it is their sum": right / len(w),
        "dy is turned round": lambda: gradient(dy=dy.flip(-2, -1)),
        "the sum over the filters is missing: this is the first filter's share alone": (
            lambda: gradient(x, w[:1], dy[:, :1], stride, padding, dilation)
        ),
        "the sum over the filters is missing: this is the last filter's share alone (= where += belongs?)": (
            lambda: gradient(x, w[-1:], dy[:, -1:], stride, padding, dilation)
        ),
        "every channel gets the first channel's kernel": lambda: gradient(w=w[:, :1].expand_as(w)),
        "rows and columns of the kernel are exchanged": lambda: gradient(w=w.mT),
        "w is not in it: this only spreads dy": lambda: gradient(w=torch.ones_like(w)),
        "dx is divided by the number of pictures; it is the gradient of the sum": right / len(x),
        "the stride is not used in dx: the entries of dy lie S pixels apart": lambda: conv2d_moved(
            lambda c, s, p, t, d: gradient(x.new_zeros(*x.shape[:2], *s), w, dy, t, 0, d),
            dy,
            size,
            w.shape[-2:],
            1,
            P,
            dilation,
            dilation,
            stride,
        ),
        "the dilation is not used in dx": lambda: conv2d_moved(
            lambda c, s, p, t, d: gradient(x.new_zeros(*x.shape[:2], *s), w, dy, t, 0, d),
            dy,
            size,
            w.shape[-2:],
            stride,
            P,
            1,
            dilation,
        ),
        "dx has the right size and the wrong sign": lambda: -right,
        "dx is summed over the pictures; each picture has its own": lambda: right.sum(0),
        "dx is summed over the pictures; each picture has its own.": lambda: right.sum(0).expand_as(right),
        "the weights are rearranged by a reshape; make the matrix (F, K) by w.flatten(1), then transpose it": (
            lambda: gradient(w=w.reshape(-1, len(w)).T.reshape(w.shape))
        ),
        "dx is zero": torch.zeros_like(right),
    }


def conv2d_dw_mistakes(dy, x, w, stride, padding, dilation):
    """Return the gradients for w that common mistakes lead to."""
    P = padding

    def gradient(x=x, dy=dy, stride=stride, padding=padding, dilation=dilation):
        return conv2d_gradients(dy, x, w, stride, padding, dilation)[1]

    right = gradient()
    high, wide = dy.shape[-2:]
    outer = conv2d_padded(x, P)

    def without(stride, dilation, **rows):  # windows at the wrong places, as many as there are entries of dy
        picture = conv2d_padded(x, P, **rows)
        room = [(n - 1) * stride + dilation * (k - 1) + 1 for n, k in zip((high, wide), w.shape[-2:], strict=True)]
        return gradient(conv2d_part(picture, room), dy, stride, 0, dilation)

    below = (0, 2 * P)
    return {
        "dw correlates dy with the picture before it was padded": lambda: without(
            stride, dilation, rows=below, columns=below
        ),
        "dw is turned round": right.flip(-2, -1),
        "rows and columns of dw are exchanged": lambda: right.mT,
        "filters and channels are exchanged: dw has the shape of w": lambda: right.transpose(0, 1),
        "dw is not summed over the pictures; all of them use the same filter": lambda: torch.stack(
            [gradient(x[i : i + 1], dy[i : i + 1]) for i in range(len(x))]
        ),
        "dw is the mean over the pictures; it is their sum (dy holds the factor already)": right / len(x),
        "dw is the mean over the windows; it is their sum": right / (high * wide),
        "dw is the mean over pictures and windows; it is their sum": right / (high * wide * len(x)),
        "dw holds the share of the first picture alone; sum over all": lambda: gradient(x[:1], dy[:1]),
        "dw holds the share of the last picture alone; sum over all (= where += belongs?)": (
            lambda: gradient(x[-1:], dy[-1:])
        ),
        "the stride is not used in dw: windows begin S pixels apart": lambda: without(1, dilation),
        "the dilation is not used in dw: the pixels of a window lie D apart": lambda: without(stride, 1),
        "stride and dilation are exchanged in dw": lambda: without(dilation, stride),
        "dw was made as a matrix (K, F) and then given the shape of w: a view does not transpose": lambda: (
            conv2d_misplaced(right, lambda value: value.flatten(1).T.reshape(value.shape))
        ),
        "dw is still a matrix (F, C·HK·WK); give it the shape of w": right.flatten(1),
        "dw is still a matrix, transposed: (C·HK·WK, F)": right.flatten(1).mT,
        "x is not in it: dw pairs dy with the picture": lambda: gradient(torch.ones_like(outer), dy, padding=0),
        "every filter gets the sum over all filters": lambda: right.sum(0, keepdim=True).expand_as(right),
        "every channel gets the sum over all channels": lambda: right.sum(1, keepdim=True).expand_as(right),
        "dw has the wrong sign": -right,
    }


def conv2d_db_mistakes(dy):
    """Return the gradients for b that common mistakes lead to."""
    right = dy.sum((0, 2, 3))
    number = dy.numel() // dy.shape[1]
    return {
        "db is the mean over pictures and pixels; it is their sum": right / number,
        "db is the mean over the pictures; it is their sum": right / len(dy),
        "db is the mean over the pixels; it is their sum": right * len(dy) / number,
        "db has one number for each pixel: b[f] is added at every pixel, so sum over rows and columns too": dy.sum(0),
        "db has one row for each picture: sum over the pictures too": dy.sum((2, 3)),
        "db is summed over the filters; b has a number for each": dy.sum((0, 1)),
        "db is one number: do not sum over the filters": dy.sum(),
        "db is summed over the wrong axes; b has a number for each filter": dy.sum((1, 2, 3)),
        "db counts the pixels; sum dy instead": torch.full_like(right, number),
        "db is 1, as if each filter's bias were used once": torch.ones_like(right),
        "db is 0": torch.zeros_like(right),
        "db holds the share of one pixel; sum over rows and columns": dy.sum(0)[:, 0, 0],
        "db holds the share of the first picture alone": dy[0].sum((1, 2)),
        "db has axes that b has not: b is (F,)": dy.sum((0, 2, 3), keepdim=True),
    }


@check("conv2d-backward", points=10, part="cnn", autograd=False, from_scratch=LIBRARY_WINDOWS)
def conv2d_backward(answer, case):
    """Against automatic differentiation of `torch.nn.functional.conv2d`, in float64."""

    def drawn(shape, kernel, *settings):
        x, w = (case.randn(*size, dtype=torch.float64) for size in (shape, kernel))
        dy = case.randn(*F.conv2d(x, w, None, *settings).shape, dtype=torch.float64)
        what = f"for x {shape}, w {kernel}, {conv2d_words(*settings)}"
        right = dict(zip(("dx", "dw", "db"), conv2d_gradients(dy, x, w, *settings), strict=True))
        return (dy, x, w, *settings), right, what

    def demand(name, shape, kernel, stride=1, padding=0, dilation=1):
        call, right, what = drawn(shape, kernel, stride, padding, dilation)
        result = answer.without(*CONVOLUTIONS)(*call)
        parts = dict(zip(right, case.parts(result, *right), strict=True))
        others = [other for other in right if other != name and alike(parts[name], right[other])]
        case.true(not others, f"the parts stand in the wrong order: this is {''.join(others)}. Return dx, dw, db")
        mistakes = {
            "dx": lambda: conv2d_dx_mistakes(*call),
            "dw": lambda: conv2d_dw_mistakes(*call),
            "db": lambda: conv2d_db_mistakes(call[0]),
        }[name]()
        case.close(parts[name], right[name], what=f"{name} {what}", mistakes=mistakes, tolerance=1e-6)

    with case("db", points=1, hint="b[f] is added at every pixel of every picture: what is the sum of their shares?"):
        demand("db", (3, 2, 5, 6), (5, 2, 2, 3))
        demand("db", (1, 2, 7, 6), (3, 2, 3, 2), 2, 1)
    with case("dw", points=2, hint="dw[f, c, u, v] sums dy times the pixel that w[f, c, u, v] met"):
        demand("dw", (1, 1, 4, 5), (1, 1, 2, 3))
        demand("dw", (3, 2, 5, 6), (5, 2, 2, 3))
        demand("dw", (2, 3, 4, 4), (3, 3, 3, 3))
        demand("dw", (2, 3, 4, 4), (2, 3, 1, 1))
    with case("dx", points=2, hint="a pixel gets back a share from each window that it was in, through each filter"):
        demand("dx", (1, 1, 4, 5), (1, 1, 2, 3))
        demand("dx", (3, 2, 5, 6), (5, 2, 2, 3))
        demand("dx", (2, 3, 4, 4), (3, 3, 3, 3))
        demand("dx", (2, 3, 4, 4), (2, 3, 1, 1))
    with case("dw with stride, padding and dilation", points=2, hint="the very windows that the way forward used"):
        demand("dw", (2, 2, 6, 8), (3, 2, 2, 3), 2)
        demand("dw", (2, 2, 5, 4), (3, 2, 3, 3), 1, 1)
        demand("dw", (2, 2, 7, 8), (3, 2, 3, 2), 1, 0, 2)
        demand("dw", (1, 3, 8, 9), (5, 3, 2, 3), 3, 1, 2)
    with case("dx with stride, padding and dilation", points=2, hint="fold undoes what unfold does, with its settings"):
        demand("dx", (2, 2, 6, 8), (3, 2, 2, 3), 2)
        demand("dx", (2, 2, 5, 4), (3, 2, 3, 3), 1, 1)
        demand("dx", (2, 2, 7, 8), (3, 2, 3, 2), 1, 0, 2)
        demand("dx", (1, 3, 8, 9), (5, 3, 2, 3), 3, 1, 2)
        demand("dx", (2, 2, 8, 8), (3, 2, 3, 3), 3)  # the last two rows are in no window
    with case("nothing is changed or kept", points=1, hint="make new tensors; return the same for the same inputs"):
        call, right, what = drawn((2, 2, 6, 5), (3, 2, 3, 2), 2, 1, 1)
        case.unchanged(answer, *call)
        twice = [case.parts(answer(*call), *right) for _ in range(2)]
        kept = [name for name, *both in zip(right, *twice, strict=True) if not alike(*both)]
        case.true(
            not kept,
            f"a second call with the same inputs returns another {' and '.join(kept)}: something is kept between calls",
        )
        single = [value.float() if isinstance(value, torch.Tensor) else value for value in call]
        for name, part in zip(right, case.parts(answer(*single), *right), strict=True):
            case.dtype(part, torch.float32, what=f"{name} for inputs in float32")
            not_yet = always(f"{name} is not right yet")
            case.close(part, right[name].float(), what=f"{name} {what}", mistakes=not_yet)


# -- pooling ----------------------------------------------------------------------------------------------


def pooling_mistakes(x, size, stride, padding):
    """Return what common mistakes of max pooling lead to."""

    def pool(x=x, size=size, stride=stride, padding=padding):
        return F.max_pool2d(x, size, stride, padding)

    right, P = pool(), padding
    zeros = conv2d_padded(x, P)
    return {
        "the padding competes: its zeros win over negative pixels. Padded places must never be the largest (-inf)": (
            lambda: pool(zeros, padding=0)
        ),
        "this is the mean of each window, not its largest value": lambda: F.avg_pool2d(x, size, stride, P),
        "this is the smallest value of each window": lambda: -pool(-x),
        "this is the sum of each window": lambda: F.avg_pool2d(x, size, stride, P) * size * size,
        "this is the largest absolute value of each window; signs count": lambda: pool(x.abs()),
        "this is the value with the largest absolute value; the largest value counts": (
            lambda: torch.where(pool(x) >= pool(-x), pool(x), -pool(-x))
        ),
        "windows that do not fit any more are counted too (the division must be rounded down)": (
            lambda: F.max_pool2d(x, size, stride, padding, ceil_mode=True)
        ),
        "only rows are pooled": lambda: F.max_pool2d(x, (size, 1), stride, (padding, 0)),
        "only columns are pooled": lambda: F.max_pool2d(x, (1, size), stride, (0, padding)),
        "channels and places of the window are exchanged: the columns hold first the channel, then the place": (
            lambda: pooling_exchanged(x, size, stride, padding)
        ),
        "the largest value is taken over the channels too; each channel is pooled by itself": (
            lambda: right.amax(1, keepdim=True)
        ),
        "the largest value is taken over the channels too; each channel is pooled by itself.": (
            lambda: right.amax(1, keepdim=True).expand_as(right)
        ),
        "the largest value is taken over the channels, and the windows are not": lambda: x.amax(1, keepdim=True),
        "the largest value is taken over the pictures": lambda: right.amax(0, keepdim=True).expand_as(right),
        "the stride is not used: windows lie S apart, whatever their size": lambda: pool(stride=size),
        "the windows lie one pixel apart: they must lie S apart": lambda: pool(stride=1),
        "the windows lie one pixel apart: they must lie S apart.": (
            lambda: conv2d_part(pool(stride=1), right.shape[-2:])
        ),
        "the padding is not used": lambda: pool(padding=0),
        "the padding stands on one side only": (
            lambda: F.max_pool2d(conv2d_padded(x, 0, (2 * P, 0), (2 * P, 0), value=-torch.inf), size, stride)
        ),
        "this is each window's first pixel, not its largest": (
            lambda: F.pad(x, (P,) * 4)[..., ::stride, ::stride][..., : right.shape[-2], : right.shape[-1]]
        ),
        "the padding stands on one side only.": (
            lambda: F.max_pool2d(conv2d_padded(x, 0, (0, 2 * P), (0, 2 * P), value=-torch.inf), size, stride)
        ),
        "nothing below 0 is left: is there a ReLU, or does the search for the largest begin at 0?": (
            lambda: pool(x.relu())
        ),
        "this is the position of the largest value in its window, not the value": (
            lambda: pooling_places(x, size, stride, padding).to(x)
        ),
        "this is the position of the largest value, not the value": lambda: F.max_pool2d(
            x, size, stride, P, return_indices=True
        )[1].to(x),
        "rows and columns of the result are exchanged": lambda: right.mT,
        "the windows are still one axis: (B, C, Ho·Wo) must become (B, C, Ho, Wo)": lambda: right.flatten(2),
        "channels and windows are mixed by a reshape": lambda: conv2d_misplaced(
            right, lambda r: r.permute(0, 2, 3, 1).reshape(r.shape)
        ),
    }


def pooling_places(x, size, stride, padding):
    """Return where in its window the largest value stands: a mistake."""
    padded = conv2d_padded(x, padding, value=-torch.inf)
    places = F.unfold(padded, size, stride=stride).unflatten(1, (x.shape[1], -1)).argmax(2)
    return places.view_as(F.max_pool2d(padded, size, stride))


def pooling_exchanged(x, size, stride, padding):
    """Pool with the columns' middle axis split into (places, channels): a mistake."""
    padded = conv2d_padded(x, padding, value=-torch.inf)
    columns = F.unfold(padded, size, stride=stride)
    return columns.unflatten(1, (size * size, -1)).amax(1).view_as(F.max_pool2d(padded, size, stride))


@check("max-pooling", points=4, part="cnn", from_scratch=("max_pool",))
def max_pooling(answer, case):
    """Against `torch.nn.functional.max_pool2d`, gradients too."""

    def demand(shape, size, stride, padding=0, low=0.0):
        x = case.randn(*shape) - low
        right = F.max_pool2d(x, size, stride, padding)
        what = f"the result for x {shape}, windows of {size} × {size}, stride {stride}, padding {padding}"
        result = answer.without("max_pool")(x, size, stride, padding)
        case.close(result, right, what=what, mistakes=pooling_mistakes(x, size, stride, padding))

    with case("the largest value of each window", points=1, hint="each channel by itself; windows side by side"):
        demand((1, 1, 4, 6), 2, 2)
        demand((2, 3, 6, 9), 3, 3)
        demand((2, 3, 4, 6), 2, 2, low=5)
    with case("windows that overlap or leave gaps", points=1, hint="stride and size are two things"):
        demand((2, 3, 7, 8), 3, 2)
        demand((2, 2, 7, 8), 2, 3)
        demand((2, 2, 5, 6), 3, 1)
    with case("padding never wins", points=1, hint="pad with a value below every pixel, whatever the picture"):
        demand((2, 2, 6, 5), 3, 2, 1)
        demand((2, 3, 4, 4), 3, 2, 1, low=5)
        demand((2, 3, 4, 4), 3, 2, 1, low=5000)
    with case(
        "the gradient goes to the largest pixel only", points=1, hint="amax has a gradient; a loop of floats has not"
    ):
        x = case.randn(2, 3, 7, 6)
        right = F.max_pool2d(x, 3, 2, 1)
        result = answer.without("max_pool")(x, 3, 2, 1)
        case.close(result, right, mistakes=always("the result itself is not right yet"))
        upstream = case.randn(*right.shape)
        (found,) = answer.gradients(x, 3, 2, 1, upstream=upstream)
        (expected,) = Answer(F.max_pool2d).gradients(x, 3, 2, 1, upstream=upstream)
        case.close(found, expected, what="the gradient for x")
        case.unchanged(answer, x, 3, 2, 1)


# -- batch norm -------------------------------------------------------------------------------------------


def norm_loaded(case, answer, channels, mode, **options):
    """Return a module with random weight, bias and running statistics, and these."""
    built = answer(channels, **options)
    values = {
        "weight": case.randn(channels),
        "bias": case.randn(channels),
        "running_mean": case.randn(channels),
        "running_var": 0.5 + case.randn(channels).abs(),
    }
    norm_load(case, built, values)
    return built.train(mode == "train"), values


def norm_load(case, built, values):
    """Load values, or say which are not there."""
    for name, value in values.items():
        kind = "nn.Parameter" if name in ("weight", "bias") else "buffer (self.register_buffer)"
        try:
            built.load_state_dict({name: value})
        except KeyError:
            case.true(False, f"{name} is missing: make it a {kind}, or it is not saved and moved with the module")
        except RuntimeError:
            case.true(False, f"{name} must have the shape {tuple(value.shape)}: one number for each channel")


def norm_mistakes(x, values, training, eps):
    """Return the outputs that common mistakes of batch norm lead to."""
    weight, bias = values["weight"], values["bias"]
    axes = (0, 2, 3)
    number = x.numel() // x.shape[1]
    mean, var = x.mean(axes), x.var(axes, correction=0)
    unbiased = var * number / max(1, number - 1)
    old_mean, old_var = values["running_mean"], values["running_var"]

    def given(mean, var, weight=weight, bias=bias, eps=eps):
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    used = (mean, var) if training else (old_mean, old_var)
    scale, shift = weight.view(-1, 1, 1), bias.view(-1, 1, 1)
    found = {
        "weight and bias are not used": lambda: given(*used, None, None),
        "the bias is not used": lambda: given(*used, weight, None),
        "the weight is not used": lambda: given(*used, None, bias),
        "weight and bias stand along the wrong axis: channel c gets weight[c]": (
            lambda: given(*used, None, None) * weight + bias
        ),
        "the bias is added before the weight multiplies": lambda: (given(*used, None, None) + shift) * scale,
        "the mean is not subtracted": lambda: given(torch.zeros_like(mean), used[1]),
        "the result is not divided by the standard deviation": lambda: given(used[0], torch.ones_like(var), eps=0.0),
        "the result is divided by the variance, not by its square root": lambda: given(
            used[0], (used[1] + eps) ** 2, eps=0.0
        ),
        "eps is added to the standard deviation; it belongs to the variance, under the root": lambda: given(
            used[0], (used[1].sqrt() + eps) ** 2, eps=0.0
        ),
        f"eps is missing, or it is not the one that the module was made with ({eps:g})": lambda: given(*used, eps=1e-5),
        "the result is multiplied by the standard deviation": lambda: given(used[0], 1 / (used[1] + eps), eps=0.0),
    }
    if not training:
        return found | {
            "in evaluation mode it still uses the statistics of the batch; use the running ones": given(mean, var),
            "in evaluation mode it still uses the statistics of the batch; use the running ones.": given(
                mean, unbiased
            ),
            "running_var is used as if it were a standard deviation": lambda: given(old_mean, old_var**2),
            "the running mean is used, but the variance of the batch": lambda: given(old_mean, var),
            "the running variance is used, but the mean of the batch": lambda: given(mean, old_var),
            "in evaluation mode nothing is normalised": x,
        }
    return found | {
        "in training mode it uses the running statistics; use those of the batch": given(old_mean, old_var),
        "the variance divides by N - 1; within a batch it divides by N (correction=0)": given(mean, unbiased),
        "each picture is normalised by itself (instance norm); the statistics are those of the whole batch": (
            F.instance_norm(x, weight=weight, bias=bias, eps=eps)
        ),
        "each picture is normalised over its channels too (layer norm); a channel has its own mean and variance": (
            F.layer_norm(x, x.shape[1:], eps=eps) * scale + shift
        ),
        "one mean and variance serve all channels; each channel has its own": given(
            x.mean().expand_as(mean), x.var(correction=0).expand_as(var)
        ),
        "one mean and variance serve all channels; each channel has its own.": given(
            x.mean().expand_as(mean), x.var().expand_as(var)
        ),
        "the variance is the mean of the pictures' own variances; take it over all pictures at once": (
            lambda: given(mean, x.var((2, 3), correction=0).mean(0))
        ),
        "each pixel has its own mean over the batch; they are taken over pictures, rows and columns": (
            lambda: norm_by_pixel(x, 0, eps) * scale + shift
        ),
        "each pixel has its own mean over the batch; they are taken over pictures, rows and columns.": (
            lambda: norm_by_pixel(x, 1, eps) * scale + shift
        ),
        "the statistics that are used are mixed with the running ones; in training mode use the batch's alone": (
            lambda: given(0.9 * old_mean + 0.1 * mean, 0.9 * old_var + 0.1 * unbiased)
        ),
        "the statistics that are used are mixed with the running ones; in training mode use the batch's alone.": (
            lambda: given(0.9 * old_mean + 0.1 * mean, 0.9 * old_var + 0.1 * var)
        ),
    }


def norm_by_pixel(x, correction, eps):
    """Normalise each pixel of each channel over the batch: a mistake."""
    rows = x.flatten(1)
    return F.batch_norm(rows, rows.mean(0), rows.var(0, correction=correction), eps=eps).view_as(x)


class Saved:
    """A tensor that a graph keeps for the way back; this object lives as long as the graph does."""

    def __init__(self, value):
        """Hold a tensor."""
        self.value = value


def norm_remembers(module, x, upstream):
    """Return whether something of a graph is left when forward and backward pass are over."""
    left = weakref.WeakSet()

    def pack(value):
        saved = Saved(value)
        left.add(saved)
        return saved

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        torch.autograd.grad((module(x) * upstream).sum(), x)
    gc.collect()
    return len(left) > 0


def norm_running(built, channels, eps):
    """Return the running mean and variance that a module works with, as its evaluation mode shows them."""
    built.load_state_dict({"weight": torch.ones(channels), "bias": torch.zeros(channels)})
    built.eval()
    at_zero, at_one = (built(torch.full((1, channels, 1, 1), value)).flatten() for value in (0.0, 1.0))
    slope = at_one - at_zero
    return -at_zero / slope, slope**-2 - eps


@check("batch-norm", points=8, part="cnn", from_scratch=("batch_norm", "instance_norm", "layer_norm"))
def batch_norm(answer, case):
    """Against `torch.nn.BatchNorm2d`."""

    def demand(built, values, x, mode, eps=1e-5):
        training = mode == "train"
        stored = values["running_mean"].clone(), values["running_var"].clone()
        right = F.batch_norm(x, *stored, values["weight"], values["bias"], training=training, eps=eps)
        mistakes = norm_mistakes(x, values, training, eps)
        where = "in training mode" if training else "in evaluation mode"
        result = built.without("batch_norm")(x)
        case.close(result, right, what=f"the result {where}", mistakes=mistakes, tolerance=1e-5)

    with case("weight and bias are learned, two buffers are kept", points=1, hint="nn.Parameter and register_buffer"):
        built = answer(3)
        found = built.parameters()
        for name in ("weight", "bias"):
            case.true(name in found, f"there is no parameter called {name}: make it an nn.Parameter")
        extra = sorted(set(found) - {"weight", "bias"})
        case.true(not extra, f"{', '.join(extra)}: not learned. Statistics are buffers (self.register_buffer)")
        case.close(found["weight"], torch.ones(3), what="the weight at the start")
        case.close(found["bias"], torch.zeros(3), what="the bias at the start")
        x = case.randn(2, 3, 4, 5)
        fresh = {"weight": torch.ones(3), "bias": torch.zeros(3)}
        fresh |= {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
        start = (
            "a fresh module in evaluation mode must normalise by mean 0 and variance 1: do the running statistics "
            "start so, and does evaluation mode leave them alone?"
        )
        right = F.batch_norm(x, fresh["running_mean"], fresh["running_var"], training=False)
        result = built.eval().without("batch_norm")(x)
        mistakes = norm_mistakes(x, fresh, False, 1e-5)
        case.close(result, right, what="the fresh module in evaluation mode", mistakes=mistakes | always(start))
        norm_load(case, built, fresh)
    with case(
        "training mode: statistics of the batch", points=2, hint="mean and variance over pictures, rows, columns"
    ):
        for shape in ((5, 3, 2, 3), (2, 5, 4, 4), (1, 2, 3, 5)):
            built, values = norm_loaded(case, answer, shape[1], "train")
            demand(built, values, 3 + 2 * case.randn(*shape), "train")
        built, values = norm_loaded(case, answer, 3, "train", eps=0.3)
        demand(built, values, case.randn(5, 3, 2, 3), "train", eps=0.3)
    with case("evaluation mode: running statistics", points=2, hint="self.training says which mode is on"):
        norm_keeps_still(case, answer)
        built, values = norm_loaded(case, answer, 3, "eval")
        for shape in ((5, 3, 2, 3), (1, 3, 1, 1)):
            demand(built, values, 3 + 2 * case.randn(*shape), "eval")
        built, values = norm_loaded(case, answer, 3, "eval", eps=0.3)
        demand(built, values, case.randn(5, 3, 2, 3), "eval", eps=0.3)
    with case("running mean and variance", points=2, hint="new = (1 - momentum) · old + momentum · batch; N - 1 here"):
        norm_keeps_still(case, answer)
        for momentum, steps in ((0.1, 1), (0.3, 2)):
            built, values = norm_loaded(case, answer, 3, "train", momentum=momentum)
            built.eval().without("batch_norm")(case.randn(2, 3, 2, 3))
            built.train()
            means, variances = [values["running_mean"].clone()], [values["running_var"].clone()]
            batches = [3 + 2 * case.randn(2, 3, 2, 3) for _ in range(steps)]
            mean, var = values["running_mean"].clone(), values["running_var"].clone()
            for x in batches:
                built(x)
                F.batch_norm(x, mean, var, training=True, momentum=momentum)
                means.append(x.mean((0, 2, 3)))
                variances.append(x.var((0, 2, 3)))
            found_mean, found_var = norm_running(built, 3, 1e-5)
            biased = [variances[0], *(value * 11 / 12 for value in variances[1:])]
            what = f"after {steps} batch{'es' if steps > 1 else ''} with momentum {momentum}, the running"
            options = {"tolerance": 1e-4}
            mistakes = norm_running_mistakes("mean", means, momentum)
            case.close(found_mean, mean, what=f"{what} mean", mistakes=mistakes, **options)
            mistakes = norm_running_mistakes("variance", variances, momentum) | {
                "the running variance divides by N; for pictures not yet seen it divides by N - 1 (correction=1)": (
                    norm_blend(biased, 1 - momentum, momentum)
                ),
                "the running variance divides by N, and momentum weighs the old value": (
                    norm_blend(biased, momentum, 1 - momentum)
                ),
                "the running variance holds standard deviations": (
                    norm_blend([variances[0], *(value.sqrt() for value in variances[1:])], 1 - momentum, momentum)
                ),
            }
            case.close(found_var, var, what=f"{what} variance", mistakes=mistakes, **options)
    with case("gradients go through the statistics too", points=1, hint="detach only what is stored, not what is used"):
        built, values = norm_loaded(case, answer, 3, "train")
        x, upstream = case.randn(5, 3, 2, 3), case.randn(5, 3, 2, 3)
        demand(built, values, x, "train")

        def oracle(x, fixed=None):
            mean, var = fixed or (values["running_mean"].clone(), values["running_var"].clone())
            return F.batch_norm(x, mean, var, values["weight"], values["bias"], training=fixed is None)

        (found,) = built.gradients(x, upstream=upstream)
        (right,) = Answer(oracle).gradients(x, upstream=upstream)
        fixed = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        (constant,) = Answer(lambda x: oracle(x, fixed)).gradients(x, upstream=upstream)
        detached = "mean and variance are taken as constants: they depend on x, and the gradient must know it (detach?)"
        case.close(found, right, what="the gradient for x", mistakes={detached: constant})
        missing = [name for name, value in built.parameter_gradients(x, upstream=upstream).items() if value is None]
        case.true(not missing, f"no gradient arrives at {', '.join(missing)}")
        case.true(
            not built.probe(norm_remembers, x, upstream, uses=(Saved,)),
            "the running statistics remember the graph of every batch, and with it the batch: memory grows from step "
            "to step. Store them under torch.no_grad()",
        )


def norm_keeps_still(case, answer):
    """Demand that evaluation mode leaves the running statistics alone."""
    built, _ = norm_loaded(case, answer, 3, "eval")
    x = 5 + 3 * case.randn(4, 3, 2, 3)
    same = alike(built(x), built(x), 1e-5)
    case.true(same, "evaluation mode changes the running statistics; only training mode may")


def norm_blend(values, keep, take):
    """Return the first value after the others were blended in, one by one."""
    blended = values[0]
    for value in values[1:]:
        blended = keep * blended + take * value
    return blended


def norm_running_mistakes(name, values, momentum):
    """Return what common mistakes make of a running statistic; values[0] is the old one."""
    return {
        f"the running {name} is not updated in training mode": values[0],
        "momentum is used the other way round: it weighs the batch, 1 - momentum the old value": norm_blend(
            values, momentum, 1 - momentum
        ),
        f"the running {name} is replaced by the batch's; it must move only by the share momentum": values[-1],
        f"the old running {name} does not fade: weigh it with 1 - momentum": norm_blend(values, 1.0, momentum),
        f"the {name} is summed up over the batches; it must move only by the share momentum": norm_blend(
            values, 1.0, 1.0
        ),
        "momentum is fixed at 0.1; use the one that the module was made with": norm_blend(values, 0.9, 0.1),
        f"the running {name} is updated twice for each batch": norm_blend(
            [values[0], *(value for value in values[1:] for _ in range(2))], 1 - momentum, momentum
        ),
    }


# -- the residual block -----------------------------------------------------------------------------------


def block_names(inside, outside, stride):
    """Return the names of the parameters of a residual block."""
    names = ["conv1.weight", "norm1.weight", "norm1.bias", "conv2.weight", "norm2.weight", "norm2.bias"]
    projects = inside != outside or stride != 1
    return names + (["shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"] if projects else [])


def block_pair(case, answer, inside, outside, stride):
    """Return a student's block and torchvision's, with the same random weights and statistics."""
    built = answer(inside, outside, stride)
    what = f"ResidualBlock({inside}, {outside}, stride={stride})"
    found, wanted = built.parameters(), block_names(inside, outside, stride)
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    biases = [name for name in extra if name in ("conv1.bias", "conv2.bias", "shortcut.0.bias")]
    case.true(not biases, f"{what} has {', '.join(biases)}: no convolution has a bias, since its norm has one")
    needless = "x itself is the shortcut where the shape stays"
    case.true(
        not extra or not all(name.startswith("shortcut") for name in extra),
        f"{what} has {', '.join(extra)}: {needless}",
    )
    case.true(not missing, f"{what} has no parameter {', '.join(missing)}; it has {', '.join(found)}")
    case.true(not extra, f"{what} has more parameters than it needs: {', '.join(extra)}")

    projection = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
    other = BasicBlock(inside, outside, stride, downsample=projection if "shortcut.0.weight" in wanted else None)
    state = {}
    for name, value in other.state_dict().items():
        ours = name.replace("bn", "norm").replace("downsample", "shortcut")
        if value.is_floating_point():
            noise = case.randn(*value.shape) / max(1, value[0].numel()) ** 0.5
            value.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise)
            state[ours] = value
            if ours in found:
                shape = f"{what}: {ours}"
                case.shape(found[ours], tuple(value.shape), what=shape)
    try:
        built.load_state_dict(state)
    except KeyError as error:
        case.true(False, f"{what} has no {error.args[0]}: use nn.BatchNorm2d for each norm")
    return built, other


def block_mistakes(block, x):
    """Return what common mistakes of a residual block lead to, made from torchvision's block."""
    conv1, norm1, conv2, norm2 = block.conv1, block.bn1, block.conv2, block.bn2
    shortcut = block.downsample or nn.Identity()

    def first(x=x):
        return F.relu(norm1(conv1(x)))

    def branch(x=x):
        return norm2(conv2(first(x)))

    def later_stride():
        h = F.relu(norm1(F.conv2d(x, conv1.weight, padding=1)))
        return F.relu(norm2(F.conv2d(h, conv2.weight, stride=conv1.stride, padding=1)) + shortcut(x))

    found = {
        "the ReLU after the addition is missing": lambda: branch() + shortcut(x),
        "the last ReLU stands before the addition; it comes after it": lambda: F.relu(branch()) + shortcut(x),
        "there is a ReLU before the addition and one after it; only the one after belongs there": (
            lambda: F.relu(F.relu(branch()) + shortcut(x))
        ),
        "the shortcut is missing: this is the branch alone": lambda: F.relu(branch()),
        "the shortcut is missing: this is the branch alone, without its last ReLU": branch,
        "the ReLU between the two convolutions is missing": lambda: F.relu(norm2(conv2(norm1(conv1(x)))) + shortcut(x)),
        "the norms are missing": lambda: F.relu(conv2(F.relu(conv1(x))) + shortcut(x)),
        "the first norm is missing": lambda: F.relu(norm2(conv2(F.relu(conv1(x)))) + shortcut(x)),
        "the second norm is missing": lambda: F.relu(conv2(first()) + shortcut(x)),
        "the first norm is used twice; norm2 is not used": lambda: F.relu(norm1(conv2(first())) + shortcut(x)),
        "the first norm comes after its ReLU; it stands between convolution and ReLU": (
            lambda: F.relu(norm2(conv2(norm1(F.relu(conv1(x))))) + shortcut(x))
        ),
        "the addition comes before the second norm; norm first, then add": (
            lambda: F.relu(norm2(conv2(first()) + shortcut(x)))
        ),
        "the shortcut begins after the first convolution; it begins at x": lambda: F.relu(branch() + first()),
        "the branch is subtracted from the shortcut, or the shortcut from the branch": (
            lambda: F.relu(shortcut(x) - branch())
        ),
        "the shortcut is subtracted": lambda: F.relu(branch() - shortcut(x)),
        "branch and shortcut are multiplied; add them": lambda: F.relu(branch() * shortcut(x)),
        "this is the mean of branch and shortcut; add them": lambda: F.relu((branch() + shortcut(x)) / 2),
        "branch and shortcut are stacked as channels; add them": lambda: F.relu(torch.cat([branch(), shortcut(x)], 1)),
        "the second convolution gets x, not the result of the first": lambda: F.relu(norm2(conv2(x)) + shortcut(x)),
        "norms and ReLUs stand before the convolutions (pre-activation); here they come after": (
            lambda: conv2(F.relu(norm2(conv1(F.relu(norm1(x)))))) + shortcut(x)
        ),
        "the shortcut goes through a ReLU of its own": lambda: F.relu(branch() + F.relu(shortcut(x))),
        "x goes through a ReLU before the block (or a ReLU changes it in place)": (
            lambda: F.relu(branch(x.relu()) + shortcut(x.relu()))
        ),
        "only the shortcut is left": lambda: F.relu(shortcut(x)),
    }
    if block.downsample is not None:
        found |= {
            "the shortcut's norm is not used": lambda: F.relu(branch() + shortcut[0](x)),
            "the stride stands in the second convolution; it belongs to the first": later_stride,
        }
    return found


@check("residual-block", points=6, part="cnn")
def residual_block(answer, case):
    """Against `torchvision.models.resnet.BasicBlock`."""

    def demand(inside, outside, stride, mode):
        training = mode == "train"
        built, other = block_pair(case, answer, inside, outside, stride)
        built.train(training)
        other.train(training)
        x = case.randn(3, inside, 6, 8)
        with torch.no_grad():
            right = other(x)
            what = f"ResidualBlock({inside}, {outside}, stride={stride}) in {mode} mode"
            case.close(built(x), right, what=what, mistakes=block_mistakes(other, x), tolerance=1e-5)

    with case("layers and names", points=1, hint="conv1, norm1, conv2, norm2; shortcut only where the shape changes"):
        for sizes in ((4, 4, 1), (4, 6, 1), (4, 4, 2), (3, 6, 2)):
            block_pair(case, answer, *sizes)
    with case(
        "same shape: x itself is added",
        points=2,
        hint="3 × 3 with padding 1 keeps the size; norm after each convolution; the last ReLU after the sum",
    ):
        demand(4, 4, 1, "eval")
        demand(3, 3, 1, "eval")
    with case("other shape: a 1 × 1 convolution in the shortcut", points=1, hint="with the block's stride, and a norm"):
        demand(3, 6, 1, "eval")
        demand(4, 4, 2, "eval")
        demand(3, 5, 2, "eval")
    with case("in training mode too", points=1, hint="register every norm once, and use each once"):
        demand(4, 4, 1, "train")
        demand(3, 6, 2, "train")
    with case("gradients reach every layer", points=1, hint="nothing detached, nothing unused"):
        for sizes in ((4, 4, 1), (3, 6, 2)):
            built, other = block_pair(case, answer, *sizes)
            x = case.randn(3, sizes[0], 6, 8)
            built.train()
            other.train()
            result = other(x)
            upstream = case.randn(*result.shape)
            found = built.parameter_gradients(x, upstream=upstream)
            silent = [name for name, value in found.items() if value is None]
            case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
            (ours,) = built.gradients(x, upstream=upstream)
            (theirs,) = Answer(other).gradients(x, upstream=upstream)
            not_yet = always("the result in training mode is not right yet, so its gradient cannot be")
            case.close(built(x), result, mistakes=not_yet)
            case.close(ours, theirs, what="the gradient for x", tolerance=1e-4)


# -- the network ------------------------------------------------------------------------------------------


def network_shapes(channels, width, classes):
    """Return what each row of the notebook's table learns: its name and the shapes of its parameters."""

    def conv(inside, outside, size=3):
        return [(outside, inside, size, size), (outside,), (outside,)]  # no bias; the norm's weight and bias

    def block(inside, outside):
        return conv(inside, outside) + conv(outside, outside) + conv(inside, outside, 1)

    w = width
    return {
        "the first convolution with its norm": conv(channels, w),
        "the residual block from w to 2w": block(w, 2 * w),
        "the residual block from 2w to 4w": block(2 * w, 4 * w),
        "the residual block from 4w to 8w": block(4 * w, 8 * w),
        "the linear layer": [(classes, 8 * w), (classes,)],
    }


def network_by_shape(case, built, sizes):
    """Give a network random weights, and return them: convolutions and the linear layer, by their shapes.

    Its norms stay as they are made: in evaluation mode they do nothing.
    """
    shapes = [shape for row in network_shapes(*sizes).values() for shape in row if len(shape) > 1]
    bias = (sizes[2],)
    names = {tuple(value.shape): name for name, value in built.parameters().items()}
    missing = [shape for shape in (*shapes, bias) if shape not in names]
    case.true(not missing, "the layers are not yet those of the table, so their order cannot be right")
    weights = {shape: case.randn(*shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5 for shape in shapes}
    weights[bias] = case.randn(*bias)
    built.load_state_dict({names[shape]: value for shape, value in weights.items()})
    return list(weights.values())


def network_start(value, bias):
    """Return what the first norm, whose weight is 1, and the ReLU make of a convolution's result."""
    return F.relu(value + bias)


def network_bias(case, built, width):
    """Give the bias of the first norm random values, and return them; it is known by its shape and its zeros."""
    zeros = [
        name
        for name, value in built.parameters().items()
        if tuple(value.shape) == (width,) and name.endswith("bias") and not value.any()
    ]
    if len(zeros) != 1:
        return torch.zeros(width)
    bias = case.randn(width)
    built.load_state_dict({zeros[0]: bias})
    return bias


def network_at_rest(weights, x, pooled=(1, 2), first=network_start, pool=F.max_pool2d, strides=(), last=torch.amax):
    """Return the logits of three residual blocks whose norms do nothing; the other arguments make mistakes.

    Only the first norm has a bias; `first` is what follows the first convolution, given its result and that bias.
    """
    start, stem, *rest, linear, bias = weights
    x = first(F.conv2d(x, stem, padding=1), start.view(-1, 1, 1))
    for number in range(4):
        if number:
            one, two, shortcut = rest[3 * number - 3 : 3 * number]
            stride = 2 if number in strides else 1
            branch = F.conv2d(F.conv2d(x, one, stride=stride, padding=1).relu(), two, padding=1)
            x = (branch + F.conv2d(x, shortcut, stride=stride)).relu()
        x = pool(x, 2) if number in pooled else x
    return last(x, (2, 3)) @ linear.T + bias


def network_mistakes(weights, x):
    """Return the logits that layers in another order lead to."""
    found = {
        "the ReLU after the first convolution and its norm is missing": {"first": lambda value, bias: value + bias},
        "the first ReLU stands before its norm; it comes after it": {"first": lambda value, bias: F.relu(value) + bias},
        "the first norm uses the statistics of each picture (instance norm); take nn.BatchNorm2d": {
            "first": lambda value, bias: F.relu(F.instance_norm(value) + bias)
        },
        "in evaluation mode the first norm uses the statistics of the batch; take nn.BatchNorm2d as it is": {
            "first": lambda value, bias: F.relu(F.batch_norm(value, None, None, training=True) + bias)
        },
        "the windows of the pooling are 3 × 3; the table has 2 × 2": {"pool": lambda x, size: F.max_pool2d(x, 3, 2, 1)},
        "the first pooling stands before the first residual block; a pooling follows the first and the second block": {
            "pooled": (0, 1)
        },
        "a pooling stands before the first residual block; they follow the first and the second block": {
            "pooled": (0, 2)
        },
        "the second pooling comes after the last block; poolings follow the first and the second block": {
            "pooled": (1, 3)
        },
        "the poolings come after the second and the last block; they follow the first and the second": {
            "pooled": (2, 3)
        },
        "the pooling takes means; the table has max pooling": {"pool": F.avg_pool2d},
        "blocks of stride 2 stand in place of the poolings": {"pooled": (), "strides": (1, 2)},
        "blocks of stride 2 stand in place of the poolings; the strides are in the last blocks": {
            "pooled": (),
            "strides": (2, 3),
        },
    }
    return {
        sentence + end: (lambda options=options, last=last: network_at_rest(weights, x, **options, last=last))
        for sentence, options in found.items()
        for end, last in (("", torch.amax), (" (and the end takes means)", torch.mean))
    } | {
        "the end takes the mean of each channel; the table has its largest value": (
            lambda: network_at_rest(weights, x, last=torch.mean)
        )
    }


def logits_after_training(network, pictures, labels, batches, fresh):
    """As a probe: build and train a network, one step for each row of `batches`; return its logits for `fresh`."""
    built = network(1, 4, 10).train()
    optimizer = torch.optim.Adam(built.parameters(), lr=0.01)
    for chosen in batches:
        optimizer.zero_grad()
        F.cross_entropy(built(pictures[chosen]), labels[chosen]).backward()
        optimizer.step()
    return built.eval()(fresh).detach()


@check("residual-network", points=6, part="cnn")
def residual_network(answer, case):
    """By the properties that the table demands; each runs on a small network."""

    def build(channels=1, width=4, classes=10):
        built = answer(channels, width, classes)
        lively = {name: value + 0.1 * case.randn(*value.shape) for name, value in built.parameters().items()}
        built.load_state_dict(lively)
        return built.eval()

    def call(built, x, classes=10):
        logits = built(x)
        mistakes = {
            "rows and columns are left: pool them away before the linear layer": (len(x), classes, 1, 1),
            "these are the features before the linear layer": (len(x), 32),
            "these are predicted classes; return a logit for each": (len(x),),
        }
        case.shape(logits, (len(x), classes), what=f"the logits for pictures {tuple(x.shape)}", mistakes=mistakes)
        return logits

    with case(
        "a logit for each class, for pictures of any size",
        points=1,
        hint="rows and columns shrink by 4 in all; then global pooling leaves one pixel",
    ):
        call(build(), case.randn(3, 1, 8, 8))
        call(build(3, 4, 7), case.randn(2, 3, 32, 32), 7)
        call(build(), case.randn(1, 1, 12, 20))
        call(build(), case.randn(2, 1, 4, 4))
        logits = call(build(), case.randn(6, 1, 8, 8))
        ones = alike(logits.sum(-1), torch.ones(6), 1e-4) or alike(logits.exp().sum(-1), torch.ones(6), 1e-4)
        case.true(not ones, "there is a softmax at the end: return raw logits (cross_entropy has its own softmax)")
        case.true(
            bool((logits < 0).any()), "no logit is negative: is there a ReLU or a sigmoid at the end? Return them raw"
        )
    with case("the layers of the table", points=1, hint="no bias in a convolution that a norm follows"):
        for sizes in ((1, 4, 10), (3, 5, 7)):
            wanted, found = network_shapes(*sizes), build(*sizes).parameters()
            left = [tuple(value.shape) for value in found.values()]
            for row, shapes in wanted.items():
                for shape in shapes:
                    example = f"{row} is not as in the table: no parameter of shape {shape} is left for it"
                    case.true(shape in left, f"{example} (channels {sizes[0]}, width {sizes[1]}, classes {sizes[2]})")
                    left.remove(shape)
            extra = [name for name, value in found.items() if tuple(value.shape) in left]
            case.true(not left, f"there are more parameters than in the table, of the shapes {left}; see {extra[-3:]}")
    with case("layers in the order of the table, two poolings", points=1, hint="MaxPool2d(2) after blocks 1 and 2"):
        # A small object in a wide empty field: moved by a multiple of the step it makes the same logits.
        built, thing = build(width=2), 3 * case.randn(1, 1, 6, 6)

        def at(row, column):
            field = torch.zeros(1, 1, 96, 96)
            field[..., row : row + 6, column : column + 6] = thing
            return call(built, field)

        def same(a, b):
            return alike(a, b, 1e-4)

        start = at(44, 44)
        case.true(
            not same(start, call(built, torch.zeros(1, 1, 96, 96))),
            "the logits do not depend on the picture",
        )
        case.true(
            same(at(48, 36), start),
            "an object moved by 4 or 8 pixels makes other logits: rows and columns shrink by more than 4 before the "
            "global pooling (a pooling or a stride too many?), or the global pooling is missing",
        )
        case.true(
            not same(at(45, 44), start),
            "an object moved by one pixel makes the same logits: nothing is pooled before the end",
        )
        case.true(
            not same(at(46, 46), start),
            "an object moved by two pixels makes the same logits: there is one pooling; the table has two",
        )
        built = answer(1, 4, 10).eval()
        weights, x = network_by_shape(case, built, (1, 4, 10)), case.randn(3, 1, 12, 20)
        weights = [network_bias(case, built, 4), *weights]
        result, right = call(built, x), network_at_rest(weights, x)
        what = "the logits with random filters (do all layers stand in the order of the table?)"
        case.close(result, right, what=what, mistakes=network_mistakes(weights, x), tolerance=1e-3)
    with case("residual paths and norms are at work", points=1, hint="ResidualBlock three times; nn.BatchNorm2d"):
        built, x = build(), case.randn(5, 1, 8, 8)
        alone = torch.cat([call(built, x[i : i + 1]) for i in range(5)])
        case.true(
            alike(call(built, x), alone, 1e-4),
            "in evaluation mode the logits of a picture depend on the others of its batch",
        )
        case.true(
            not alike(call(built.train(), x), alone, 1e-4),
            "training and evaluation mode give the same logits: there is no batch norm at work",
        )
        case.true(
            alike(call(built, x), call(built, x), 1e-4),
            "in training mode the same pictures get other logits each time: the table has no dropout",
        )
        built = build()
        silent = {
            name: value * 0
            for name, value in built.parameters().items()
            if value.ndim == 4 and value.shape[-1] == 3 and value.shape[1] > 1
        }
        built.load_state_dict(silent)
        case.true(
            not alike(call(built, x), call(built, 2 * x.flip(0)), 1e-4),
            "when the 3 × 3 convolutions of the blocks return zeros, the logits no longer depend on the picture: the "
            "shortcuts do not carry it",
        )
    with case("learns to read digits that it has not seen", points=2, hint="after 60 steps, 90 % of 500 are usual"):
        built = answer(1, 4, 10)
        gradients = built.train().parameter_gradients(case.randn(4, 1, 8, 8), upstream=case.randn(4, 10))
        silent = [name for name, value in gradients.items() if value is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
        x, y, new_x, new_y = images.digits()
        x, new_x = (pictures.view(-1, 1, 8, 8) for pictures in (x, new_x))
        logits = answer.probe(logits_after_training, x, y, case.randint(0, len(x), (60, 64)), new_x)
        accuracy = (logits.argmax(-1) == new_y).float().mean().item()
        case.true(
            accuracy >= 0.85,
            f"after 60 steps it reads {accuracy:.0%} of 500 digits that it has not seen, where 85 % is the least to "
            "expect. Do pooling, norms and shortcuts stand where the table has them?",
        )


# ==============================================================================================================
# rnn
#
# The checks of Homework 2, RNN.
#
# The oracles are torch's own `nn.GRUCell` and `nn.GRU`, torch's layers, and the echo by its definition. Shapes:
# B texts, T steps, I features of an input, H size of the state, V symbols with the blank.
#
# What common mistakes in a GRU would compute is made of torch's cell too: its gates are read out of it one by one, and
# put together wrongly.
# ==============================================================================================================


GRU_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


# -- the echo ---------------------------------------------------------------------------------------------


def echo_by_definition(symbols, delays):
    """Return the echo, symbol by symbol."""
    rows = zip(symbols.tolist(), delays.tolist(), strict=True)
    return torch.tensor([[row[t - d] if t >= d else 0 for t in range(len(row))] for row, d in rows])


def some_delays(case, batch, largest):
    """Return delays (B,) that are not all alike, among them 0 and the largest."""
    delays = case.randint(0, largest + 1, (batch,))
    delays[0], delays[1] = largest, 0
    return delays


def echo_mistakes(symbols, delays):
    """Return the targets that common mistakes lead to."""
    length, right = symbols.shape[1], echo_by_definition(symbols, delays)
    blank = torch.arange(length) < delays[:, None]

    def rolled(shifts):
        return torch.stack([row.roll(int(d)) for row, d in zip(symbols, shifts, strict=True)])

    def other(d):
        return echo_by_definition(symbols, d.clamp(min=0))

    beyond = {"where the delay is T or more there is nothing to echo: blanks only, and no symbols": symbols}
    return (beyond if delays.min() >= length else {}) | {
        "the targets are the symbols as they came in: nothing is delayed": symbols,
        "the shift goes the wrong way: target t is the symbol delays steps before t, not after": lambda: torch.stack(
            [torch.cat([row[int(d) :], row.new_zeros(int(d))]) for row, d in zip(symbols, delays, strict=True)]
        ),
        "the shift goes the wrong way, and wraps round": lambda: rolled(-delays),
        "the end wraps round to the start; before the echo begins the targets are blanks (0)": lambda: rolled(delays),
        "the delay is one step too long": lambda: other(delays + 1),
        "the delay is one step too short": lambda: torch.where(blank, 0, other(delays - 1)),
        "the delay is one step too short (and the blanks are one too few)": lambda: other(delays - 1),
        "every sequence gets the delay of the first; each has its own": lambda: other(delays[:1].expand_as(delays)),
        "every sequence gets the delay of the last; each has its own": lambda: other(delays[-1:].expand_as(delays)),
        "every sequence gets the largest delay; each has its own": lambda: other(delays.amax().expand_as(delays)),
        "before the echo begins the first symbol is repeated; the targets there are blanks (0)": lambda: torch.where(
            blank, symbols[:, :1], right
        ),
        "before the echo begins the symbols themselves stand; the targets there are blanks (0)": lambda: torch.where(
            blank, symbols, right
        ),
        "before the echo begins the targets are -100; they are blanks, number 0": lambda: right.masked_fill(
            blank, -100
        ),
        "before the echo begins the targets are -1; they are blanks, number 0": lambda: right.masked_fill(blank, -1),
        "every target is a blank": torch.zeros_like(symbols),
        "the symbols at the start of the sequence become blanks, but nothing is moved": lambda: symbols.masked_fill(
            blank, 0
        ),
        "one blank too many at the start: symbol 0 is echoed at t = delay": lambda: right.masked_fill(
            torch.arange(length) <= delays[:, None], 0
        ),
        "the symbols count from 0 here: 1 is subtracted": lambda: (right - 1).clamp(min=0),
    }


def demand_echo(case, targets, symbols, delays, what="the targets"):
    """Demand the echo of the symbols."""
    batch, length = symbols.shape
    longest = int(delays.max())
    shapes = {
        "the blanks are put in front, but the end is not cut off: the targets are as long as the symbols": (
            batch,
            length + longest,
        ),
        "the blanks are missing: the targets are as long as the symbols": (batch, length - longest),
        "the batch and the time are exchanged": (length, batch),
        "only one sequence is left": (length,),
        "this is one-hot; the targets are numbers of symbols": (batch, length, 27),
    }
    case.shape(targets, (batch, length), what=f"the tensor of {what.removeprefix('the ')}", mistakes=shapes)
    case.true(
        not targets.is_floating_point(),
        f"{what} have dtype {str(targets.dtype).removeprefix('torch.')}; cross_entropy needs integers (int64)",
    )
    case.true(
        targets.dtype == torch.int64,
        f"{what} have dtype {str(targets.dtype).removeprefix('torch.')}, expected int64, as the symbols have",
    )
    case.equal(targets, echo_by_definition(symbols, delays), what=what, mistakes=echo_mistakes(symbols, delays))


@check("echo-targets", points=5, part="rnn")
def echo_targets(answer, case):
    """Against the definition, symbol by symbol."""
    with case("one target for each symbol, as integers", points=1, hint="shape (B, T), dtype int64"):
        symbols, delays = case.randint(1, 27, (3, 10)), torch.full((3,), 2)
        targets = answer(symbols, delays)
        demand = {"the batch and the time are exchanged": (10, 3)}
        case.shape(targets, (3, 10), what="the tensor of targets", mistakes=demand)
        case.dtype(targets, torch.int64, what="the tensor of targets")
    with case("target t is the symbol at t - delay", points=1, hint="blanks first, then the symbols from the start"):
        symbols = case.randint(1, 27, (4, 12))
        for delay in (4, 1):
            delays = torch.full((4,), delay)
            demand_echo(case, answer(symbols, delays), symbols, delays, what=f"the targets for a delay of {delay}")
    with case("each sequence has its own delay", points=1, hint="delays[b] belongs to symbols[b]"):
        symbols, delays = case.randint(1, 27, (6, 12)), some_delays(case, 6, 8)
        demand_echo(case, answer(symbols, delays), symbols, delays)
    with case("delay 0 changes nothing; a delay of T or more leaves blanks", points=1, hint="row[:-0] is empty"):
        symbols = case.randint(1, 27, (2, 5))
        for delay in (0, 5, 7):
            delays = torch.full((2,), delay)
            demand_echo(case, answer(symbols, delays), symbols, delays, what=f"the targets for delay {delay}, T = 5")
    with case("the symbols stay as they were", points=1, hint="write into a new tensor, or use torch.where"):
        case.unchanged(answer, case.randint(1, 27, (3, 8)), torch.tensor([0, 2, 5]))


def demand_share(case, answer, logits, targets, mistakes=None):
    """Demand the share of right symbols, as a number or a tensor without axes."""
    result = answer(logits, targets)
    guess, said = logits.argmax(-1), targets != 0
    hits = guess == targets
    per_row = (hits & said).sum(-1) / said.sum(-1)
    right = sum(g == t for g, t in zip(guess[said].tolist(), targets[said].tolist(), strict=True)) / int(said.sum())
    known = {
        "the blanks before the echo are counted: they are easy, and make the figure look better": hits.double().mean(),
        "the blanks are left out above the line, but counted below it: divide by the number of symbols": (
            (hits & said).double().mean()
        ),
        "the blanks are counted above the line, but not below it": hits.sum() / said.sum(),
        "this is the share of wrong symbols": torch.tensor(1 - right),
        "this is in per cent; a share lies between 0 and 1": torch.tensor(100 * right),
        "this is a number of symbols, not a share": (hits & said).sum().double(),
        "the mean of the sequences' shares is taken: a sequence with few symbols weighs as much as one with many": (
            per_row[said.any(-1)].double().mean()
        ),
        "a sequence counts only when all of it is right; each symbol counts": ((hits | ~said).all(-1).double().mean()),
        "positions are left out where the model says blank; leave out those where the target is a blank": (
            hits[guess != 0].double().mean()
        ),
        "the argmax runs over the wrong axis, the time; the symbols are the last axis": lambda: (
            (logits.argmax(1)[:, : targets.shape[1]] == targets[:, : logits.shape[2]])[
                (targets != 0)[:, : logits.shape[2]]
            ]
            .double()
            .mean()
        ),
        "the blank is left out of the guesses: a model that says blank where a symbol belongs is wrong": (
            (logits[..., 1:].argmax(-1) + 1 == targets)[said].double().mean()
        ),
        "the blank is left out of the logits, so that every guess is one too low": (
            (logits[..., 1:].argmax(-1) == targets)[said].double().mean()
        ),
        "this is the mean probability of the right symbol; count how often it is the most probable": (
            logits.softmax(-1).gather(-1, targets[..., None])[..., 0][said].double().mean()
        ),
        "only the last step counts": hits[:, -1].double().mean(),
        "symbols are compared with themselves, or not with the model's: the result is 1": torch.tensor(1.0).double(),
    }
    if isinstance(result, torch.Tensor):
        case.shape(result, (), what="the accuracy", mistakes={"this is one figure for each sequence": (len(targets),)})
        result = result.item()
    case.true(
        isinstance(result, (int, float)) and not isinstance(result, bool),
        f"the accuracy is {'None (is a return statement missing?)' if result is None else kind_of(result)}; "
        "return one number",
    )
    actual = torch.tensor(float(result), dtype=torch.float64)
    known = {name: (wrong if callable(wrong) else wrong.double()) for name, wrong in known.items()}
    case.close(actual, torch.tensor(right, dtype=torch.float64), what="the accuracy", mistakes=known, tolerance=1e-5)


def noisy_logits(case, targets, vocabulary, share):
    """Return logits that are right, at random, for about this share of the targets, and always for blanks."""
    wrong = (targets + case.randint(1, vocabulary, tuple(targets.shape))) % vocabulary
    said = torch.where((case.randint(0, 1000, tuple(targets.shape)) < 1000 * share) | (targets == 0), targets, wrong)
    return 0.1 * case.randn(*targets.shape, vocabulary) + 3 * F.one_hot(said, vocabulary)


@check("echo-accuracy", points=4, part="rnn")
def echo_accuracy(answer, case):
    """Against counting."""
    with case("one number between 0 and 1", points=1, hint="the share of right symbols among those that count"):
        targets = echo_by_definition(case.randint(1, 9, (3, 7)), torch.tensor([1, 2, 0]))
        demand_share(case, answer, noisy_logits(case, targets, 9, 0.6), targets)
    with case("the blanks before the echo do not count", points=1, hint="only positions whose target is not 0"):
        targets = echo_by_definition(case.randint(1, 27, (6, 12)), torch.tensor([8, 0, 3, 8, 1, 7]))
        demand_share(case, answer, noisy_logits(case, targets, 27, 0.5), targets)
    with case("a blank where a symbol belongs is wrong", points=1, hint="look at the targets, not at the guesses"):
        targets = echo_by_definition(case.randint(1, 27, (5, 9)), torch.tensor([4, 2, 6, 0, 1]))
        logits = noisy_logits(case, targets, 27, 0.7)
        logits[:, -3:, 0] = 9.0  # the model says blank
        demand_share(case, answer, logits, targets)
    with case("every symbol weighs the same; any shape", points=1, hint="sum over all, divide once"):
        for batch, length in ((1, 1), (1, 9), (7, 5)):
            targets = echo_by_definition(case.randint(1, 5, (batch, length)), torch.arange(batch) % length)
            demand_share(case, answer, noisy_logits(case, targets, 5, 0.5), targets)


# -- a step of the GRU ------------------------------------------------------------------------------------


def torch_gru_cell(case, input_size, hidden_size, scale=1.0):
    """Return torch's cell with random weights, and these weights by name."""
    cell = nn.GRUCell(input_size, hidden_size)
    state = {name: scale * case.randn(*p.shape) / hidden_size**0.5 for name, p in cell.named_parameters()}
    cell.load_state_dict(state)
    return cell, state


def torch_step(state, x, h):
    """Return what torch's cell with these weights makes of x and h, computed in float64."""
    hidden, inputs = state["weight_hh"].shape[1], state["weight_ih"].shape[1]
    cell = nn.GRUCell(inputs, hidden).double()
    cell.load_state_dict(state)
    with torch.no_grad():
        return cell(x.double(), h.double())


def gru_rows(state, order):
    """Return the weights with other rows for r, z and n: `order` says which; the others' rows stay what they were."""
    return {name: torch.cat([value.chunk(3)[i] for i in order]) for name, value in state.items()}


def gru_gate(state, number, x, h):
    """Read gate r (number 0) or z (1) out of torch's cell, by (1 + tanh(a / 2)) / 2 = σ(a) as its candidate."""
    parts = {name: value.chunk(3)[number].double() / 2 for name, value in state.items()}
    alone = {}
    for name, part in parts.items():
        opened = torch.full_like(part, 50.0 if name == "bias_hh" else 0.0)  # r = 1
        alone[name] = torch.cat([opened, -opened, part])  # z = 0, so that the candidate is the new state
    return (1 + torch_step(alone, x, h)) / 2


def gru_parts(state, x, h):
    """Return r and z as torch's cell has them, and the two sums that its candidate is made of, each with its bias."""
    w_in, w_hn = (state[name].chunk(3)[2].double() for name in GRU_NAMES[:2])
    b_in, b_hn = (state[name].chunk(3)[2].double() for name in GRU_NAMES[2:])
    r, z = (gru_gate(state, number, x, h) for number in (0, 1))
    return r, z, (w_in, b_in), (w_hn, b_hn)


def gru_update_closed(state):
    """Return the weights under which z = 0, so that the candidate is the new state."""
    closed = {name: value.clone() for name, value in state.items()}
    for name, value in closed.items():
        value.chunk(3)[1].fill_(-50.0 if name == "bias_ih" else 0.0)
    return closed


def gru_step_mistakes(state, x, h):
    """Return the states that common mistakes in the cell lead to, under the sentence that names each."""
    r, z, (w_in, b_in), (w_hn, b_hn) = gru_parts(state, x, h)
    x64, h64 = x.double(), h.double()
    from_x, from_h = F.linear(x64, w_in), F.linear(h64, w_hn)
    n = torch_step(state | gru_update_closed(state), x, h)

    def with_candidate(n, keep=z):
        return torch.lerp(n, h64, keep)

    def changed(**values):
        return torch_step(state | values, x, h)

    def negated(*blocks):
        signs = torch.ones(3)
        signs[list(blocks)] = -1
        return {
            name: torch.cat([s * part for s, part in zip(signs, value.chunk(3), strict=True)])
            for name, value in state.items()
        }

    zero = torch.zeros_like(state["bias_ih"])
    found = {
        "z and 1 - z are exchanged: z = 1 must keep the old state": torch_step(negated(1), x, h),
        "r acts on h before the matrix product; it belongs after it: r ⊙ (W_hn h + b_hn)": with_candidate(
            torch.tanh(from_x + b_in + F.linear(r * h64, w_hn, b_hn))
        ),
        "b_hn stands outside r ⊙ (...); it belongs inside, beside W_hn h": with_candidate(
            torch.tanh(from_x + b_in + b_hn + r * from_h)
        ),
        "r multiplies the part of x as well; it acts on W_hn h + b_hn only": with_candidate(
            torch.tanh(r * (from_x + b_in + from_h + b_hn))
        ),
        "r multiplies the part of x instead of the part of h": with_candidate(
            torch.tanh(r * (from_x + b_in) + from_h + b_hn)
        ),
        "b_in stands inside r ⊙ (...); only b_hn does": with_candidate(torch.tanh(from_x + r * (from_h + b_hn + b_in))),
        "both biases of the candidate stand on the wrong side: b_hn belongs inside r ⊙ (...), b_in outside": (
            with_candidate(torch.tanh(from_x + b_hn + r * (from_h + b_in)))
        ),
        "the reset gate is not used in the candidate": with_candidate(torch.tanh(from_x + b_in + from_h + b_hn)),
        "r and z are exchanged: the rows stand in the order r, z, n": torch_step(gru_rows(state, (1, 0, 2)), x, h),
        "tanh is missing in the candidate": with_candidate(torch.atanh(n)),
        "the candidate goes through the sigmoid; it is a tanh": with_candidate(torch.atanh(n).sigmoid()),
        "the candidate alone is returned: the update gate is not used": n,
        "z ⊙ h is missing: nothing of the old state is kept": lambda: torch_step(state, x, h) - z * h64,
        "the old state is added whole; it is weighted with z": lambda: torch_step(state, x, h) - z * h64 + h64,
        "the state is not updated: this is h as it came in": h64,
        "the biases of the input part (bias_ih) are not used": changed(bias_ih=zero),
        "the biases of the hidden part (bias_hh) are not used": changed(bias_hh=zero),
        "no bias is used": changed(bias_ih=zero, bias_hh=zero),
        "the part of h is missing everywhere: h itself is not used in the gates": changed(
            weight_hh=torch.zeros_like(state["weight_hh"])
        ),
        "the part of x is missing everywhere": changed(weight_ih=torch.zeros_like(state["weight_ih"])),
        "the gates go through tanh instead of the sigmoid": lambda: tanh_gates(state, x, h),
        "the weights are used the wrong way round: x Wᵀ is what F.linear(x, W) computes": lambda: turned_round(
            state, x, h
        ),
        "bias_ih is used for h as well; bias_hh belongs there": changed(bias_hh=state["bias_ih"]),
        "bias_hh is used for x as well; bias_ih belongs there": changed(bias_ih=state["bias_hh"]),
        "bias_ih and bias_hh are exchanged": changed(bias_ih=state["bias_hh"], bias_hh=state["bias_ih"]),
        "the candidate sees z in the place of r": with_candidate(torch.tanh(from_x + b_in + z * (from_h + b_hn))),
        "the two parts are the wrong way round: r keeps the old state, and z resets": with_candidate(
            torch.tanh(from_x + b_in + z * (from_h + b_hn)), keep=r
        ),
    }
    for number, gate in enumerate(("reset", "update")):
        for side, other in (("hh", "the input x"), ("ih", "the state h")):
            silent = {name: value.clone() for name, value in state.items()}
            for kind in ("weight", "bias"):
                silent[f"{kind}_{side}"].chunk(3)[number].zero_()
            found[f"the {gate} gate looks at {other} alone"] = torch_step(silent, x, h)
            bias = state | {f"bias_{side}": silent[f"bias_{side}"]}
            found[f"one bias of the {gate} gate is missing: bias_{side} belongs to it, too"] = torch_step(bias, x, h)
    found["both gates are made of the rows of r; those of z come after them"] = torch_step(
        gru_rows(state, (0, 0, 2)), x, h
    )
    found["both gates are made of the rows of z; those of r come before them"] = torch_step(
        gru_rows(state, (1, 1, 2)), x, h
    )
    for order in ((0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        names = ", ".join("rzn"[order.index(i)] for i in range(3))
        found[f"the rows are read in the order {names}; they stand in the order r, z, n"] = torch_step(
            gru_rows(state, order), x, h
        )
    return found


def tanh_gates(state, x, h):
    """Make the mistake of tanh for the gates: tanh a = 2 σ(2a) - 1."""
    doubled = {name: 2 * value for name, value in state.items()}
    r, z = (2 * gru_gate(doubled, number, x, h) - 1 for number in (0, 1))
    _, _, (w_in, b_in), (w_hn, b_hn) = gru_parts(state, x, h)
    n = torch.addcmul(F.linear(x.double(), w_in, b_in), r, F.linear(h.double(), w_hn, b_hn)).tanh()
    return torch.lerp(n, h.double(), z)


def turned_round(state, x, h):
    """Make the mistake of using each square block of the hidden weights transposed."""
    blocks = torch.cat([block.T for block in state["weight_hh"].chunk(3)])
    return torch_step(state | {"weight_hh": blocks}, x, h)


def demand_gru_parameters(case, built, state, prefix=""):
    """Demand the parameters that `state` has, and no others."""
    parameters = built.parameters()
    case.true(
        parameters, "the module has no parameters: make each an nn.Parameter (or a module) and an attribute of self"
    )
    for name, value in state.items():
        case.true(
            prefix + name in parameters,
            f"the module has no parameter named {prefix + name}; it has {', '.join(parameters)}",
        )
        exchanged = {"rows and columns are exchanged: torch keeps one row for each output": tuple(value.shape)[::-1]}
        case.shape(parameters[prefix + name], value.shape, what=prefix + name, mistakes=exchanged)
    extra = sorted(set(parameters) - {prefix + name for name in state})
    case.true(not extra, f"the module has parameters that do not belong there: {', '.join(extra)}")


def loaded_gru_cell(case, answer, input_size, hidden_size, scale=1.0):
    """Return a cell of the answer's class with random weights, and these weights."""
    _, state = torch_gru_cell(case, input_size, hidden_size, scale)
    built = answer(input_size, hidden_size)
    demand_gru_parameters(case, built, state)
    built.load_state_dict(state)
    return built, state


def demand_gru_step(case, built, state, x, h, what="the new state"):
    """Demand one step equal to torch's."""
    result = built(x, h)
    if isinstance(result, tuple):
        case.true(False, f"the cell returns a tuple of {len(result)}; it returns one tensor, the new state (B, H)")
    batch, hidden = h.shape
    shapes = {
        "this has the rows of all three gates: cut it into three": (batch, 3 * hidden),
        "the axes are in the wrong order: the batch comes first": (hidden, batch),
        "an axis for the batch is lost": (hidden,),
    }
    case.shape(result, (batch, hidden), what=what, mistakes=shapes)
    expected = torch_step(state, x, h)
    case.close(result.double(), expected, what=what, mistakes=gru_step_mistakes(state, x, h), tolerance=1e-5)


@check("gru-cell", points=10, part="rnn", from_scratch=("gru", "rnn", "lstm"))
def gru_cell(answer, case):
    """Against `nn.GRUCell` with the same weights."""
    with case("four parameters, named and shaped as in nn.GRUCell", points=1, hint="nn.Parameter; 3H rows: r, z, n"):
        for inputs, hidden in ((5, 4), (3, 7)):
            _, state = torch_gru_cell(case, inputs, hidden)
            demand_gru_parameters(case, answer(inputs, hidden), state)
    with case("the weights start between -1/√H and 1/√H", points=1, hint="uniform, as in nn.GRUCell; biases too"):
        hidden = 64
        for name, value in answer(32, hidden).parameters().items():
            bound, largest = hidden**-0.5, value.abs().max().item()
            case.true(value.abs().max() > 0, f"{name} starts with zeros only")
            case.true(
                largest <= bound * 1.0001,
                f"{name} starts with values up to {largest:.3g}; 1/√H is {bound:.3g} for H = {hidden}",
            )
            case.true(
                value.std() > 0.4 * bound and value.min() < 0,
                f"{name} starts with a standard deviation of {value.std().item():.3g}; uniform numbers between "
                f"-1/√H and 1/√H have {bound / 3**0.5:.3g} for H = {hidden}",
            )
    with case("one step agrees with torch", points=3, hint="compare your line for n with the formula, term by term"):
        built, state = loaded_gru_cell(case, answer, 5, 4)
        demand_gru_step(case, built, state, case.randn(3, 5), case.randn(3, 4))
        built, state = loaded_gru_cell(case, answer, 4, 4, scale=2.0)  # square: a transposed matrix shows
        demand_gru_step(case, built, state, case.randn(3, 4), case.randn(3, 4), what="the new state (I = H = 4)")
    with case("z = 1 keeps the state, z = 0 forgets it", points=1, hint="z is the weight of h, 1 - z that of n"):
        built, state = loaded_gru_cell(case, answer, 3, 4)
        x, h = case.randn(2, 3), case.randn(2, 4).tanh()
        for number, kept in ((60.0, True), (-60.0, False)):
            bias = state["bias_ih"].clone()
            bias[4:8] = number
            there = state | {"bias_ih": bias}
            built.load_state_dict(there)
            turned = {"z and 1 - z are exchanged: z = 1 must keep the old state": h if not kept else torch.zeros(0)}
            if kept:
                opened = bias.clone()
                opened[4:8] = -number
                turned = {
                    "z and 1 - z are exchanged: z = 1 must keep the old state": torch_step(
                        state | {"bias_ih": opened}, x, h
                    )
                }
            case.close(
                built(x, h).double(),
                torch_step(there, x, h),
                what=f"the new state where the biases of z are {number:g}",
                mistakes=turned | gru_step_mistakes(there, x, h),
                tolerance=1e-5,
            )
    with case("without a state it starts from zeros", points=1, hint="h=None stands for zeros (B, H)"):
        built, state = loaded_gru_cell(case, answer, 5, 4)
        x = case.randn(3, 5)
        zeros = torch.zeros(3, 4)
        expected = torch_step(state, x, zeros)
        ones = {
            "the first state is made of ones; it is zeros": torch_step(state, x, zeros + 1),
            "the initial state is random: two calls give two results": lambda: not alike(built(x), built(x)),
        }
        apart = gru_step_mistakes(state, x, zeros)
        outside = next(wrong for name, wrong in apart.items() if name.startswith("b_hn stands outside"))
        ones["r does not multiply b_hn, which is there also where h is zero: r ⊙ (W_hn h + b_hn)"] = outside
        case.close(built(x).double(), expected, mistakes=ones | apart, tolerance=1e-5)
    with case("a batch of one, sizes of one", points=1, hint="no squeeze; every size from the arguments"):
        for batch, inputs, hidden in ((1, 5, 4), (3, 1, 1), (1, 1, 6)):
            built, state = loaded_gru_cell(case, answer, inputs, hidden)
            what = f"the new state for B = {batch}, I = {inputs}, H = {hidden}"
            demand_gru_step(case, built, state, case.randn(batch, inputs), case.randn(batch, hidden), what=what)
    with case("gradients agree with torch's", points=1, hint="nothing detached, nothing rounded"):
        built, state = loaded_gru_cell(case, answer, 5, 4)
        x, h, upstream = case.randn(3, 5), case.randn(3, 4), case.randn(3, 4)
        not_yet = always("the state itself is not right yet, so its gradient cannot be")
        case.close(built(x, h).double(), torch_step(state, x, h), mistakes=not_yet, tolerance=1e-5)
        cell = nn.GRUCell(5, 4)
        cell.load_state_dict(state)
        leaves = [x.clone().requires_grad_(), h.clone().requires_grad_()]
        wanted = [*leaves, *cell.parameters()]
        expected = torch.autograd.grad((cell(*leaves) * upstream).sum(), wanted)
        found = built.gradients(x, h, upstream=upstream)
        for name, ours, theirs in zip("xh", found, expected, strict=False):
            case.close(ours, theirs, what=f"the gradient for {name}")
        of_parameters = built.parameter_gradients(x, h, upstream=upstream)
        for name, theirs in zip(dict(cell.named_parameters()), expected[2:], strict=True):
            case.true(
                of_parameters[name] is not None, f"no gradient arrives at {name}: it is not used, or it is detached"
            )
            case.close(of_parameters[name], theirs, what=f"the gradient for {name}")
    with case("x and h stay as they were", points=1, hint="h = ... makes a new tensor; h += ... and h *= ... do not"):
        built, _ = loaded_gru_cell(case, answer, 5, 4)
        case.unchanged(built, case.randn(3, 5), case.randn(3, 4))


# -- the GRU over a sequence ------------------------------------------------------------------------------


def torch_gru(state, x, h=None):
    """Return the states and the last state of torch's GRU with the weights of a cell."""
    hidden, inputs = state["weight_hh"].shape[1], state["weight_ih"].shape[1]
    gru = nn.GRU(inputs, hidden, batch_first=True)
    gru.load_state_dict({f"{name}_l0": value for name, value in state.items()})
    with torch.no_grad():
        states, last = gru(x, None if h is None else h[None])
    return states, last[0]


def gru_sequence_mistakes(state, x, h=None):
    """Return the states (B, T, H) that common mistakes in the loop lead to."""
    batch, length, _ = x.shape
    zeros = torch.zeros(batch, state["weight_hh"].shape[1])
    first = zeros if h is None else h
    right, _ = torch_gru(state, x, h)

    def leaking():
        whole, _ = torch_gru(state, x.reshape(1, batch * length, -1), first[:1])
        return whole.view(batch, length, -1)

    def over_the_batch():
        return torch_gru(state, x.transpose(0, 1))[0].transpose(0, 1)

    return {
        "the state is not carried on: each step starts from the initial state": lambda: torch.stack(
            [torch_step(state, x[:, t], first).float() for t in range(length)], dim=1
        ),
        "the loop starts from zeros: the initial state that is given is not used": lambda: torch_gru(state, x)[0],
        "the loop runs from the last step to the first": lambda: torch_gru(state, x.flip(1), h)[0].flip(1),
        "the loop runs from the last step to the first, and the states stand in that order": lambda: torch_gru(
            state, x.flip(1), h
        )[0],
        "the states leak from one sequence of the batch into the next": leaking,
        "the loop runs over the batch instead of the time: axis 1 is the time": over_the_batch,
        "the states are shifted: the first is the initial state, and the last step is missing": lambda: torch.cat(
            [first[:, None], right[:, :-1]], dim=1
        ),
        "every step holds the last state: append each state when it is made": lambda: right[:, -1:].expand_as(right),
        "every step reads the first input": lambda: torch_gru(state, x[:, :1].expand_as(x), h)[0],
        "the states stand in the wrong order: the first step comes first": lambda: right.flip(1),
        "reshaping mixes the batch and the time; stack the states along axis 1": lambda: right.transpose(0, 1).reshape(
            right.shape
        ),
        "the initial state is made of ones; it is zeros": lambda: torch_gru(state, x, zeros + 1)[0],
    }


def loaded_gru_sequence(case, answer, inputs, hidden):
    """Return a module of the answer's class with random weights in its cell, and these weights."""
    _, state = torch_gru_cell(case, inputs, hidden, scale=1.5)
    built = answer(inputs, hidden)
    demand_gru_parameters(case, built, state, "cell.")
    built.load_state_dict({f"cell.{name}": value for name, value in state.items()})
    return built, state


def call_gru_sequence(case, built, x, hidden, *h):
    """Call the answer and demand the shapes of its two results."""
    states, last = case.parts(built(x, *h), "states", "last state")
    batch, length, _ = x.shape
    shapes = {
        "the time comes first: stack the states along axis 1": (length, batch, hidden),
        "there is one state too many, perhaps the initial one": (batch, length + 1, hidden),
        "only the last state is there; return all of them first, the last one second": (batch, hidden),
        "one state is missing, perhaps the last one": (batch, length - 1, hidden),
        "the states are glued together along the features; stack them along a new axis": (batch, length * hidden),
    }
    case.shape(states, (batch, length, hidden), what="the tensor of states", mistakes=shapes)
    shapes = {
        "the last state has an axis of size 1 too many: torch has it for its layers, this module has not": (
            1,
            batch,
            hidden,
        ),
        "the last state has an axis of size 1 too many; index it with [:, -1]": (batch, 1, hidden),
        "all states stand where the last one belongs": (batch, length, hidden),
        "these are the states of the last sequence, not the last state of each: axis 1 is the time": (length, hidden),
    }
    case.shape(last, (batch, hidden), what="the last state", mistakes=shapes)
    return states, last


@check("gru-sequence", points=7, part="rnn", from_scratch=("gru", "rnn", "lstm"))
def gru_sequence(answer, case):
    """Against `nn.GRU` with the same weights."""
    with case("its only part is a cell", points=1, hint="self.cell = GRUCell(input_size, hidden_size)"):
        _, state = torch_gru_cell(case, 5, 4)
        demand_gru_parameters(case, answer(5, 4), state, "cell.")
    with case("all states agree with nn.GRU", points=1, hint="one cell call a step, each with the state before it"):
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x = case.randn(3, 6, 5)
        states, _ = call_gru_sequence(case, built, x, 4)
        case.close(states, torch_gru(state, x)[0], what="the states", mistakes=gru_sequence_mistakes(state, x))
    with case("the last state comes second", points=1, hint="it equals states[:, -1]"):
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x = case.randn(3, 6, 5)
        states, last = call_gru_sequence(case, built, x, 4)
        right, end = torch_gru(state, x)
        mistakes = {
            "this is the first state": right[:, 0],
            "this is the state before the last": right[:, -2],
            "this is the initial state": torch.zeros(3, 4),
            "the mean of the states is no last state": right.mean(1),
            "the states are not right yet, nor is the last": lambda: alike(last, states[:, -1]),
        }
        case.close(last, end, what="the last state", mistakes=mistakes)
    with case("an initial state that is given is used", points=1, hint="start the loop from h"):
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x, h = case.randn(3, 6, 5), case.randn(3, 4)
        states, _ = call_gru_sequence(case, built, x, 4, h)
        case.close(states, torch_gru(state, x, h)[0], what="the states", mistakes=gru_sequence_mistakes(state, x, h))
    with case("one piece after the other: the same states", points=1, hint="the last state of a piece starts the next"):
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x = case.randn(2, 7, 5)
        front, middle = call_gru_sequence(case, built, x[:, :3], 4)
        back, end = call_gru_sequence(case, built, x[:, 3:], 4, middle)
        right, right_end = torch_gru(state, x)
        pieces = {
            "the states are not right yet, not even within the first piece": lambda: not alike(front, right[:, :3]),
            "the second piece does not start from the state that it is given": lambda: (
                not alike(back[:, 0], right[:, 3])
            ),
        }
        case.close(torch.cat([front, back], dim=1), right, what="the states of both pieces", mistakes=pieces)
        case.close(end, right_end, what="the last state of the second piece")
    with case("nothing is left over from the call before", points=1, hint="no state in self between two calls"):
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x, other = case.randn(3, 6, 5), case.randn(3, 6, 5)
        call_gru_sequence(case, built, other, 4)
        states, _ = call_gru_sequence(case, built, x, 4)
        kept = {
            "the state of the call before leaks into this one: each call without h starts from zeros": lambda: (
                torch_gru(state, x, torch_gru(state, other)[1])[0]
            )
        }
        mistakes = kept | gru_sequence_mistakes(state, x)
        case.close(states, torch_gru(state, x)[0], what="the states of a second call", mistakes=mistakes)
        call_gru_sequence(case, built, case.randn(2, 3, 5), 4)  # another size of batch
    with case("length 1, batch 1, and gradients through time", points=1, hint="no squeeze, no detach"):
        for batch, length in ((3, 1), (1, 6), (1, 1)):
            built, state = loaded_gru_sequence(case, answer, 5, 4)
            x = case.randn(batch, length, 5)
            states, _ = call_gru_sequence(case, built, x, 4)
            what = f"the states for B = {batch}, T = {length}"
            case.close(states, torch_gru(state, x)[0], what=what, mistakes=gru_sequence_mistakes(state, x))
        built, state = loaded_gru_sequence(case, answer, 5, 4)
        x, h, upstream = case.randn(2, 6, 5), case.randn(2, 4), case.randn(2, 4)
        gru = nn.GRU(5, 4, batch_first=True)
        gru.load_state_dict({f"{name}_l0": value for name, value in state.items()})
        leaves = [x.clone().requires_grad_(), h.clone().requires_grad_()]
        expected = torch.autograd.grad((gru(leaves[0], leaves[1][None])[1][0] * upstream).sum(), leaves)
        found = built.gradients(x, h, output=1, upstream=upstream)
        cut = {
            "the gradient does not reach the earlier steps: the state is detached between steps": lambda: (
                not found[0][:, :-1].any()
            )
        }
        case.close(found[0], expected[0], what="the gradient of the last state for x", mistakes=cut)
        case.close(found[1], expected[1], what="the gradient of the last state for h")


# -- the models -------------------------------------------------------------------------------------------


def echo_state(case, inputs, hidden, vocabulary):
    """Return random weights of an echo model by name, the cell's among them."""
    _, cell = torch_gru_cell(case, inputs, hidden, scale=1.5)
    state = {f"memory.cell.{name}": value for name, value in cell.items()}
    state |= {"head.weight": case.randn(vocabulary, hidden), "head.bias": case.randn(vocabulary)}
    return state, cell


def head_mistakes(states, state, extra=None):
    """Return logits that common mistakes at the head lead to, from the states (B, T, H) of the memory."""
    weight, bias = state["head.weight"], state["head.bias"]
    right = F.linear(states, weight, bias)
    found = {
        "these are probabilities: a softmax is applied. Return raw logits": lambda: right.softmax(-1),
        "these are logarithms of probabilities: return raw logits": lambda: right.log_softmax(-1),
        "there is a ReLU after the head: logits may be negative": lambda: right.relu(),
        "there is a ReLU between the memory and the head": lambda: F.linear(states.relu(), weight, bias),
        "there is a tanh between the memory and the head": lambda: F.linear(states.tanh(), weight, bias),
        "a sigmoid is applied: return raw logits": lambda: right.sigmoid(),
        "every step gets the logits of the last state; each step has its own state": lambda: right[:, -1:].expand_as(
            right
        ),
        "a softmax is applied over the time: return raw logits": lambda: right.softmax(1),
    }
    return found | (extra or {})


def demand_logits(case, logits, batch, length, vocabulary, hidden=-1):
    """Demand logits (B, T, V)."""
    case.true(not isinstance(logits, tuple), "the model returns a tuple; return the logits alone")
    shapes = {
        "only the last step has logits; every step has a target": (batch, vocabulary),
        "there are logits for one step only": (batch, 1, vocabulary),
        "the last two axes are in the wrong order: the symbols come last": (batch, vocabulary, length),
        "these are states: the head that maps them to symbols is missing": (batch, length, hidden),
        "the batch and the time are exchanged": (length, batch, vocabulary),
        "the batch and the time are made one axis; keep both": (batch * length, vocabulary),
        "these are symbols (an argmax?), not a logit for each": (batch, length),
    }
    case.shape(logits, (batch, length, vocabulary), what="the tensor of logits", mistakes=shapes)


@check("echo-model", points=5, part="rnn")
def echo_model(answer, case):
    """Against `nn.GRU` and `F.linear` with the same weights."""

    def loaded(inputs, hidden, vocabulary):
        state, cell = echo_state(case, inputs, hidden, vocabulary)
        built = answer(inputs, hidden, vocabulary)
        demand_gru_parameters(case, built, state)
        built.load_state_dict(state)
        return built, state, cell

    def demand(built, state, cell, x):
        logits = built(x)
        batch, length, _ = x.shape
        vocabulary, hidden = state["head.weight"].shape
        demand_logits(case, logits, batch, length, vocabulary, hidden)
        states, _ = torch_gru(cell, x)
        extra = {
            name: (lambda wrong=wrong: F.linear(wrong(), state["head.weight"], state["head.bias"]))
            for name, wrong in gru_sequence_mistakes(cell, x).items()
        }
        expected = F.linear(states, state["head.weight"], state["head.bias"])
        twice = {
            "the same input gives other logits when it comes again: nothing may be kept or random": lambda: (
                not alike(built(x), logits)
            )
        }
        mistakes = head_mistakes(states, state, extra) | twice
        case.close(logits, expected, what="the logits", mistakes=mistakes)

    with case("two parts: memory and head", points=1, hint="a GRUSequence and an nn.Linear, with these names"):
        state, _ = echo_state(case, 6, 5, 7)
        demand_gru_parameters(case, answer(6, 5, 7), state)
    with case("logits (B, T, V): one prediction at each step", points=1, hint="the head takes all states at once"):
        built, state, _ = loaded(6, 5, 7)
        demand_logits(case, built(case.randn(3, 4, 6)), 3, 4, 7, 5)
    with case("the head reads the states", points=1, hint="raw logits: head(states), nothing between or after"):
        built, state, cell = loaded(6, 5, 7)
        demand(built, state, cell, case.randn(3, 8, 6))
    with case("any batch, any length, and again", points=1, hint="nothing fixed, and nothing kept between two calls"):
        built, state, cell = loaded(6, 5, 7)
        for batch, length in ((1, 1), (1, 9), (4, 2)):
            demand(built, state, cell, case.randn(batch, length, 6))
    with case("every parameter learns", points=1, hint="nothing is detached"):
        built, state, cell = loaded(6, 5, 7)
        x, upstream = case.randn(2, 5, 6), case.randn(2, 5, 7)
        demand_logits(case, built(x), 2, 5, 7, 5)
        gradients = built.parameter_gradients(x, upstream=upstream)
        silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")


@check("echo-inputs", points=3, part="rnn")
def echo_inputs(answer, case):
    """Against the definition, entry by entry."""

    def by_definition(symbols, delays, vocabulary, largest):
        batch, length = symbols.shape
        wanted = torch.zeros(batch, length, vocabulary + largest + 1)
        for b in range(batch):
            for t in range(length):
                wanted[b, t, symbols[b, t]] = 1
                wanted[b, t, vocabulary + delays[b]] = 1
        return wanted

    def mistakes_for(symbols, delays, vocabulary, largest):
        right = by_definition(symbols, delays, vocabulary, largest)
        letters, knob = right.split((vocabulary, largest + 1), dim=-1)
        first = torch.zeros_like(knob)
        first[:, 0] = knob[:, 0]
        last = torch.zeros_like(knob)
        last[:, -1] = knob[:, -1]
        return {
            "the delay comes first; the symbol comes first, then the delay": torch.cat([knob, letters], dim=-1),
            "the delay stands at the first step only; it is given at every step": torch.cat([letters, first], dim=-1),
            "the delay stands at the last step only; it is given at every step": torch.cat([letters, last], dim=-1),
            "every sequence gets the delay of the first": torch.cat([letters, knob[:1].expand_as(knob)], dim=-1),
            "the delays run along the time instead of the batch": lambda: torch.cat(
                [letters, knob[:, 0][None].expand_as(knob)], dim=-1
            ),
            "the symbols are counted from 1: symbol 1 belongs into column 1, the blank has column 0": torch.cat(
                [letters.roll(-1, -1), knob], dim=-1
            ),
            "the delays are counted from 1: delay 0 has a column too": torch.cat([letters, knob.roll(-1, -1)], dim=-1),
            "the delay is marked by its number; one-hot holds a 1": torch.cat(
                [letters, knob * delays[:, None, None]], -1
            ),
            "the blank, symbol 0, is all zeros; it has a column like every other": torch.cat(
                [letters * (symbols != 0)[..., None], knob], dim=-1
            ),
            "the columns of the delay run backwards: delay 0 has the first": torch.cat([letters, knob.flip(-1)], -1),
            "the delay is marked from the step on at which the echo begins; mark it at every step": torch.cat(
                [letters, knob * (torch.arange(symbols.shape[1]) >= delays[:, None])[..., None]], dim=-1
            ),
            "the delay stands in the columns of the symbols; it has columns of its own, behind them": lambda: (
                F.pad(letters, (0, largest + 1)) + F.pad(knob, (0, vocabulary))
            ),
            "batch and time of the delays are mixed: after repeat, view tears sequences apart": lambda: torch.cat(
                [letters, knob[:, 0].repeat(symbols.shape[1], 1).view(knob.shape)], dim=-1
            ),
            "the part of the delay is empty": torch.cat([letters, torch.zeros_like(knob)], dim=-1),
            "the delays that are already over are marked as well: exactly one column holds a 1": lambda: torch.cat(
                [letters, knob.flip(-1).cumsum(-1).flip(-1)], dim=-1
            ),
        }

    def demand(symbols, delays, vocabulary, largest):
        inputs = answer(symbols, delays, vocabulary, largest)
        batch, length = symbols.shape
        shapes = {
            "the delay has one column too few: delays 0 … max_delay are max_delay + 1": (
                batch,
                length,
                vocabulary + largest,
            ),
            "the delay is missing: these are the symbols alone": (batch, length, vocabulary),
            "the symbols are missing: this is the delay alone": (batch, length, largest + 1),
            "the delay is one number, not one-hot": (batch, length, vocabulary + 1),
            "the columns are as many as this batch happens to need; they follow from max_delay": (
                batch,
                length,
                vocabulary + int(delays.max()) + 1,
            ),
            "the columns are as many as this batch happens to need; they follow from num_symbols and max_delay": (
                batch,
                length,
                int(symbols.max()) + int(delays.max()) + 2,
            ),
            "the sizes 27 and 9 stand in the code; take them from num_symbols and max_delay": (batch, length, 36),
            "symbols and delay stand one after the other in time; put them side by side, along the last axis": (
                batch,
                2 * length,
                vocabulary,
            ),
        }
        case.shape(inputs, (batch, length, vocabulary + largest + 1), what="the tensor of inputs", mistakes=shapes)
        case.true(
            inputs.is_floating_point(),
            "the inputs are integers: F.one_hot gives int64, and a matrix product needs .float()",
        )
        wanted = by_definition(symbols, delays, vocabulary, largest)
        case.close(inputs, wanted, what="the inputs", mistakes=mistakes_for(symbols, delays, vocabulary, largest))

    with case("symbol and delay side by side, as floats", points=1, hint="V + max_delay + 1 columns"):
        demand(case.randint(1, 8, (3, 5)), torch.tensor([2, 0, 1]), 8, 2)
    with case("the delay of each sequence, at every step", points=1, hint="expand the one-hot delay along the time"):
        symbols = case.randint(0, 27, (9, 9))
        demand(symbols, (torch.arange(9) * 4) % 9, 27, 8)
    with case("delays that do not occur still have a column", points=1, hint="one_hot(delays, max_delay + 1)"):
        demand(case.randint(1, 27, (2, 6)), torch.tensor([1, 3]), 27, 8)
        demand(case.randint(1, 5, (1, 1)), torch.tensor([0]), 5, 0)


def reader_state(case, largest, hidden, vocabulary):
    """Return random weights of an echo reader by name, and those of its cell."""
    state, cell = echo_state(case, vocabulary, hidden, vocabulary)
    return state | {"keys.weight": case.randn(largest + 1, hidden)}, cell


def reader_mistakes(state, cell, symbols, delays):
    """Return the logits that common mistakes in the reader lead to."""
    vocabulary = len(state["head.weight"])
    keys, weight, bias = state["keys.weight"], state["head.weight"], state["head.bias"]
    x = F.one_hot(symbols, vocabulary).float()
    states, _ = torch_gru(cell, x)
    own = keys[delays][:, None]  # (B, 1, H)

    def read(view):
        return F.linear(view, weight, bias)

    return {
        "the key is not used: these are the logits of the bare state": lambda: read(states),
        "the key is added to the state; it multiplies it": lambda: read(states + own),
        "the key is multiplied with the state and added to it again": lambda: read(states * own + states),
        "every sequence reads with the key of the first delay": lambda: read(states * own[:1]),
        "the keys are laid along the time instead of the batch": lambda: read(states * keys[delays][None]),
        "the key is taken for delay - 1": lambda: read(states * keys[delays - 1][:, None]),
        "the key goes through a softmax": lambda: read(states * own.softmax(-1)),
        "the key goes through a sigmoid": lambda: read(states * own.sigmoid()),
        "the key goes through a tanh": lambda: read(states * own.tanh()),
        "the key is applied inside the memory: it starts from the key as its initial state": lambda: read(
            torch_gru(cell, x, keys[delays])[0]
        ),
        "the key changes the logits, not the state: multiply before the head": lambda: F.linear(states * own, weight),
        "every step reads the last state": lambda: read((states[:, -1:] * own).expand_as(states)),
        "symbol 0, the blank, is all zeros at the input of the memory; it is one-hot like the letters": lambda: read(
            torch_gru(cell, x * (symbols != 0)[..., None])[0] * own
        ),
        "the key is scaled to length 1": lambda: read(states * F.normalize(own, dim=-1)),
        "the key is shortened where it is longer than 1 (max_norm?)": lambda: read(
            states * own / own.norm(dim=-1, keepdim=True).clamp(min=1)
        ),
        "the blank is taken to be symbol 1: the symbols are shifted by one before they are one-hot": lambda: read(
            torch_gru(cell, x.roll(-1, -1))[0] * own
        ),
    } | {
        f"{name}, after the key": (lambda wrong=wrong: wrong())
        for name, wrong in head_mistakes(states * own, state).items()
    }


@check("echo-reader", points=5, part="rnn")
def echo_reader(answer, case):
    """Against `nn.GRU` and `F.linear` with the same weights, and the properties that the design is chosen for."""

    def loaded(largest, hidden, vocabulary):
        state, cell = reader_state(case, largest, hidden, vocabulary)
        built = answer(largest, hidden, vocabulary)
        demand_gru_parameters(case, built, state)
        built.load_state_dict(state)
        return built, state, cell

    def demand(built, state, cell, symbols, delays):
        logits = built(symbols, delays)
        vocabulary, hidden = state["head.weight"].shape
        demand_logits(case, logits, *symbols.shape, vocabulary, hidden)
        states, _ = torch_gru(cell, F.one_hot(symbols, vocabulary).float())
        view = torch.einsum("bth,bh->bth", states, state["keys.weight"][delays])
        expected = F.linear(view, state["head.weight"], state["head.bias"])
        mistakes = reader_mistakes(state, cell, symbols, delays)
        case.close(logits, expected, what="the logits", mistakes=mistakes)

    with case("three parts: memory, keys and head", points=1, hint="one key for each delay 0 … max_delay"):
        for largest in (3, 0):
            state, _ = reader_state(case, largest, 5, 7)
            demand_gru_parameters(case, answer(largest, 5, 7), state)
        spread = answer(8, 64, 7).parameters()["keys.weight"]
        case.true(
            spread.std(0).mean() > 0.3,
            "the keys start nearly equal; they must differ from delay to delay (nn.Embedding draws them from N(0, 1))",
        )
    with case("state times key, then the head", points=1, hint="head(states * key), the key of the sequence's delay"):
        built, state, cell = loaded(3, 5, 7)
        demand(built, state, cell, case.randint(1, 7, (6, 8)), some_delays(case, 6, 3))
        demand(built, state, cell, torch.arange(12).view(2, 6) % 7, torch.tensor([1, 3]))  # blanks, too
    with case("as many sequences as steps", points=1, hint="the key needs an axis for the time: (B, 1, H)"):
        built, state, cell = loaded(3, 5, 7)
        demand(built, state, cell, case.randint(1, 7, (6, 6)), some_delays(case, 6, 3))
        demand(built, state, cell, case.randint(1, 7, (1, 1)), torch.tensor([2]))
    with case("the memory does not know the delay", points=1, hint="the memory gets the symbols alone"):
        # With all keys alike, no trace of the delay may be left.
        built, state, _ = loaded(3, 5, 7)
        built.load_state_dict({"keys.weight": state["keys.weight"][:1].expand(4, -1)})
        symbols = case.randint(1, 7, (1, 8)).expand(4, -1)
        logits = built(symbols, torch.arange(4))
        demand_logits(case, logits, 4, 8, 7, 5)
        case.true(
            alike(logits, logits[:1].expand_as(logits)),
            "with equal keys the logits still depend on the delay: it has come into the memory or the head",
        )
    with case("every parameter learns", points=1, hint="nothing is detached"):
        built, _, _ = loaded(3, 5, 7)
        symbols, delays = case.randint(1, 7, (8, 6)), torch.arange(8) % 4
        demand_logits(case, built(symbols, delays), 8, 6, 7, 5)
        gradients = built.parameter_gradients(symbols, delays, upstream=case.randn(8, 6, 7))
        silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
        still = [str(d) for d, gradient in enumerate(gradients["keys.weight"]) if not gradient.any()]
        case.true(not still, f"no gradient arrives at the key of delay {', '.join(still)}: has it a padding_idx?")


# -- training ---------------------------------------------------------------------------------------------

ECHO_RUN = {"max_delay": 3, "hidden_size": 64, "steps": 150, "lr": 3e-2, "length": 12, "batch_size": 64}


def read_back(case, built, delay, length=16, count=120):
    """Return which share of symbols the trained module gives back for this delay, by how far back they stand.

    Entry k is the share of answers that equal the symbol k steps before, counted where all of them exist.
    """
    symbols = case.randint(1, 27, (count, length))
    logits = built(symbols, torch.full((count,), delay))
    demand_logits(case, logits, count, length, 27)
    said = logits.argmax(-1)
    far = 8
    return [(said[:, far:] == symbols[:, far - k : length - k]).double().mean().item() for k in range(far)]


def training_story(shares, largest):
    """Say what a trained module gives back instead of the echo, as far as it can be told; '' when it cannot."""
    chance = 0.1
    best = [max(range(len(row)), key=row.__getitem__) for row in shares]
    learnt = [row[k] > 0.5 for row, k in zip(shares, best, strict=True)]
    hits = [shares[d][d] for d in range(largest + 1)]
    if all(learnt) and largest and all(k == best[0] for k in best):
        return (
            f"whatever delay is asked for, it gives back the symbol {best[0]} steps before: the delays are the same in "
            "every batch, or do not reach the targets"
        )
    shifts = {best[d] - d for d in range(largest + 1) if learnt[d]}
    if any(learnt) and all(shift for shift in shifts):
        return (
            f"asked for delay {largest} it gives back the symbol {best[largest]} steps before: targets and delays do "
            "not belong together"
        )
    alike_rows = all(abs(a - b) < 0.1 for row in shares for a, b in zip(row, shares[0], strict=True))
    if largest and alike_rows and max(shares[0]) > 2 * chance:
        return (
            "whatever delay is asked for, its answers are the same mixture of delays: does the module get the delays "
            "that the targets are made with?"
        )
    if max(hits) < chance:
        return (
            "for every delay it is hardly better than guessing (1/26): is the module trained at all, with the "
            "targets of these symbols and with its own delays?"
        )
    untaught = [d for d in range(largest + 1) if hits[d] < chance < 0.5 < max(hits)]
    if untaught == [largest]:
        return f"delay {largest}, the largest, is not learned at all: torch.randint leaves out its upper end"
    if untaught:
        names = ", ".join(map(str, untaught))
        return f"delay {names} is not learned at all: 0 … {largest} should all occur, and steps and lr be used"
    return ""


def trained_reader(answer, **changes):
    """Train quietly, and return what the answer returns."""
    with contextlib.redirect_stderr(io.StringIO()):  # the bar of the progress
        return answer(**ECHO_RUN | changes)


def demand_reader_and_losses(case, result, steps):
    """Demand a pair of a module and a list of losses, as long as the training."""
    case.true(result is not None, "the result is None (is a return statement missing?)")
    pair = isinstance(result, tuple) and len(result) == 2
    kind = "the module alone" if hasattr(result, "parameters") else f"a {kind_of(result)}"
    case.true(pair, f"the result is {kind}, expected a tuple (model, losses); fit returns the losses")
    trained, losses = result
    swapped = isinstance(trained, list) and hasattr(losses, "parameters")
    case.true(not swapped, "model and losses are exchanged: the model comes first")
    case.true(hasattr(trained, "parameters"), f"the first part is a {kind_of(trained)}, expected the module")
    case.true(isinstance(losses, list), f"the second part is a {kind_of(losses)}, expected the list that fit returns")
    numbers = all(isinstance(loss, float) for loss in losses)
    case.true(numbers, f"the losses are not numbers but {kind_of((losses or [0])[0])}s; .item() makes a number")
    case.true(len(losses) == steps, f"there are {len(losses)} losses for steps = {steps}: is the argument steps used?")
    return trained, losses


def demand_keys(case, trained, largest, hidden):
    """Demand an EchoReader of these sizes."""
    keys = trained.parameters().get("keys.weight")
    case.true(keys is not None, "the module has no keys.weight: is it an EchoReader?")
    case.true(
        tuple(keys.shape) == (largest + 1, hidden),
        f"for max_delay = {largest} and hidden_size = {hidden} the keys have shape {tuple(keys.shape)}, expected "
        f"{(largest + 1, hidden)}: are the sizes those of the arguments?",
    )


@check("echo-training", points=6, part="rnn")
def echo_training(answer, case):
    """By what the trained module does on fresh sequences; small, so that it takes a few seconds."""
    largest, hidden = ECHO_RUN["max_delay"], ECHO_RUN["hidden_size"]
    result, shares, hits = None, [], []
    nothing = "there is no trained module to look at yet"
    with case("returns the reader and its losses", points=1, hint="make the model, fit it, return both"):
        result = trained_reader(answer)
        trained, _ = demand_reader_and_losses(case, result, ECHO_RUN["steps"])
        demand_keys(case, trained, largest, hidden)
    parts = result if isinstance(result, tuple) else (result,)
    trained = next((part for part in parts if hasattr(part, "parameters")), None)
    with case("delay 0 comes back", points=1, hint="is the loss that of the targets, step by step?"):
        case.true(trained is not None and "keys.weight" in trained.parameters(), nothing)
        shares = [read_back(case, trained, delay) for delay in range(largest + 1)]
        hits = [shares[d][d] for d in range(largest + 1)]
        case.true(
            hits[0] > 0.95,
            training_story(shares, largest)
            or f"delay 0 is echoed in {hits[0]:.0%} of the steps, where more than 95% is usual after these steps",
        )
        symbols = case.randint(1, 27, (100, 16))
        said = trained(symbols, torch.zeros(100, dtype=torch.int64)).argmax(-1)
        never = [letter for letter in range(1, 27) if not (said == symbols)[symbols == letter].any()]
        names = ", ".join("abcdefghijklmnopqrstuvwxyz"[letter - 1] for letter in never)
        case.true(not never, f"the letter {names} is never echoed: 1 … 26 should all occur in training")
    with case("every delay comes back", points=2, hint="draw a new delay for each sequence of each batch"):
        case.true(hits, nothing)
        worst = min(range(largest + 1), key=hits.__getitem__)
        case.true(
            hits[worst] > 0.9,
            training_story(shares, largest)
            or f"delay {worst} is echoed in {hits[worst]:.0%} of the steps, where more than 90% is usual; is each "
            "batch new, has each sequence a delay of its own, and are lr, steps and length used?",
        )
    with case(
        "blanks before the echo, and only there", points=1, hint="blanks are targets, but the symbols are 1 … 26"
    ):
        case.true(hits, nothing)
        symbols = case.randint(1, 27, (200, 6))
        said = trained(symbols, torch.full((200,), largest)).argmax(-1)[:, :largest]
        share = (said == 0).double().mean().item()
        why = "are the blanks left out of the loss?" if hits[largest] > 0.5 else "see the cases above"
        case.true(share > 0.9, f"before the echo begins it says blank in {share:.0%} of the steps: {why}")
        # The weights of an input that never occurs stay where they started, between -1/√H and 1/√H.
        moved = trained.parameters()["memory.cell.weight_ih"][:, 0].abs().max() > 1.01 * hidden**-0.5
        case.true(not moved, "symbol 0, the blank, was among the symbols of the training; letters are 1 … 26")
    with case("all arguments are used", points=1, hint="steps and lr go to training.fit, the sizes to torch.randint"):
        still, few = {}, 40
        for size in (1, 256):
            found = trained_reader(answer, steps=few, lr=1e-9, max_delay=1, hidden_size=9, length=1, batch_size=size)
            other, losses = demand_reader_and_losses(case, found, few)
            demand_keys(case, other, 1, 9)
            still[size] = torch.tensor(losses)
        fall = (still[256][:5].mean() - still[256][-5:].mean()).item()
        case.true(
            fall < 0.1, f"with a learning rate of 10⁻⁹ the loss falls by {fall:.2f} in {few} steps: lr is not used"
        )
        case.true(
            still[1].std() > 4 * still[256].std(),
            "batch_size is not used: with batches of 1 the losses scatter as little as with batches of 256",
        )
        _, short = demand_reader_and_losses(case, trained_reader(answer, max_delay=8, length=1, steps=30), 30)
        end = sum(short[-5:]) / 5
        case.true(
            end < 2.2,
            "length is not used: with length 1 and delays up to 8 most targets are blanks, which is learned at once, "
            f"but the loss is still {end:.2f} after 30 steps",
        )


# -- the networks of the theory, as modules ---------------------------------------------------------------


def gated_state(case, inputs, hidden):
    """Return random weights of a gated RNN by name."""
    shapes = {"W_c": (hidden, inputs), "W_h": (hidden, hidden), "W_x": (hidden, inputs)}
    return {name: case.randn(*shape) for name, shape in shapes.items()}


def gated_step(x, h, W_c, W_h, W_x):
    """Return the new state, between W_x x and h by the share of the gate."""
    return torch.lerp(F.linear(x, W_x), h, torch.special.expit(F.linear(x, W_c) + F.linear(h, W_h)))


def gated_run(state, x, h=None, step=gated_step):
    """Return all states (B, T, H) and the last, in float64."""
    state = {name: value.double() for name, value in state.items()}
    h = torch.zeros(len(x), len(state["W_h"])).double() if h is None else h.double()
    states = []
    for now in x.double().unbind(1):
        h = step(now, h, **state)
        states.append(h)
    return torch.stack(states, dim=1), h


def gated_run_mistakes(state, x, h=None):
    """Return the states that common mistakes in the gated RNN lead to."""

    def by(step):
        return lambda: gated_run(state, x, h, step)[0]

    def gate(x, h, W_c, W_h):
        return torch.special.expit(F.linear(x, W_c) + F.linear(h, W_h))

    first = torch.zeros(len(x), len(state["W_h"])) if h is None else h

    def from_the_start():
        return torch.cat([gated_run(state, x[:, t : t + 1], first)[0] for t in range(x.shape[1])], dim=1)

    return {
        "W_h h is added to what is written: this network writes W_x x alone": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(F.linear(x, W_x) + F.linear(h, W_h), h, gate(x, h, W_c, W_h))
        ),
        "the gate looks at the new value W_x x instead of the old state": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(
                F.linear(x, W_x), F.linear(x, W_x), gate(x, F.linear(x, W_x), W_c, W_h)
            )
        ),
        "c and 1 - c are exchanged: c = 1 must keep the old state": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(h, F.linear(x, W_x), gate(x, h, W_c, W_h))
        ),
        "there is a tanh around W_x x: this network has none": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(F.linear(x, W_x).tanh(), h, gate(x, h, W_c, W_h))
        ),
        "there is a tanh around the new state: this network has none": by(
            lambda x, h, W_c, W_h, W_x: gated_step(x, h, W_c, W_h, W_x).tanh()
        ),
        "the gate goes through tanh instead of the sigmoid": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(
                F.linear(x, W_x), h, 2 * torch.special.expit(2 * (F.linear(x, W_c) + F.linear(h, W_h))) - 1
            )
        ),
        "the gate has no sigmoid": by(
            lambda x, h, W_c, W_h, W_x: torch.lerp(F.linear(x, W_x), h, F.linear(x, W_c) + F.linear(h, W_h))
        ),
        "the gate does not look at the state: W_h h is missing": by(
            lambda x, h, W_c, W_h, W_x: gated_step(x, h, W_c, 0 * W_h, W_x)
        ),
        "the gate does not look at the input: W_c x is missing": by(
            lambda x, h, W_c, W_h, W_x: gated_step(x, h, 0 * W_c, W_h, W_x)
        ),
        "W_h is used transposed: F.linear(h, W_h) or h @ W_h.T": by(
            lambda x, h, W_c, W_h, W_x: gated_step(x, h, W_c, W_h.T, W_x)
        ),
        "W_c and W_x are exchanged": by(lambda x, h, W_c, W_h, W_x: gated_step(x, h, W_x, W_h, W_c)),
        "W_x x is added whole; it is weighted with 1 - c": by(
            lambda x, h, W_c, W_h, W_x: torch.addcmul(F.linear(x, W_x), gate(x, h, W_c, W_h), h)
        ),
        "the old state is added whole; it is weighted with c": by(
            lambda x, h, W_c, W_h, W_x: h + torch.lerp(F.linear(x, W_x), 0 * h, gate(x, h, W_c, W_h))
        ),
        "the state is not carried on: each step starts from the initial state": from_the_start,
        "the loop starts from zeros: the initial state that is given is not used": lambda: gated_run(state, x)[0],
        "the loop runs from the last step to the first": lambda: gated_run(state, x.flip(1), h)[0].flip(1),
        "the states are shifted: the first is the initial state, and the last step is missing": lambda: torch.cat(
            [first.double()[:, None], gated_run(state, x, h)[0][:, :-1]], dim=1
        ),
        "every step holds the last state: append each state when it is made": lambda: gated_run(state, x, h)[1][
            :, None
        ].expand(-1, x.shape[1], -1),
        "the loop runs over the batch instead of the time: axis 1 is the time": lambda: gated_run(
            state, x.transpose(0, 1)
        )[0].transpose(0, 1),
    }


def demand_small_start(case, built, hidden):
    """Demand that all parameters start between -1/√H and 1/√H, and not all alike."""
    bound = hidden**-0.5
    for name, value in built.parameters().items():
        case.true(
            0.3 * bound < value.std() and value.abs().max() <= bound * 1.0001,
            f"{name} starts with values up to {value.abs().max().item():.3g} and a standard deviation of "
            f"{value.std().item():.3g}; uniform between -1/√H and 1/√H gives at most {bound:.3g} and about "
            f"{bound / 3**0.5:.3g}",
        )
    whole = torch.cat([value.flatten() for value in built.parameters().values()])
    case.true(
        whole.mean().abs() < 4.5 * bound / (3 * len(whole)) ** 0.5,
        f"the mean of all parameters is {whole.mean().item():.3g}: uniform between -1/√H and 1/√H has the mean 0",
    )


LEFT_OVER = "the first call is right, a second is not: something of the first is left over; keep no state in self"


@check("gated-rnn", points=4, part="rnn")
def gated_rnn(answer, case):
    """Against the two formulas in float64, and autograd."""

    def loaded(inputs, hidden):
        state = gated_state(case, inputs, hidden)
        built = answer(inputs, hidden)
        demand_gru_parameters(case, built, state)
        built.load_state_dict(state)
        return built, state

    def demand(built, state, x, *h, again=False):
        states, last = call_gru_sequence(case, built, x, len(state["W_h"]), *h)
        right, end = gated_run(state, x, *h)
        mistakes = always(LEFT_OVER) if again else gated_run_mistakes(state, x, *h)
        case.close(states.double(), right, what="the states", mistakes=mistakes, tolerance=1e-5)
        not_yet = {"this is the first state": right[:, 0], "this is the initial state": lambda: not last.any()}
        case.close(last.double(), end, what="the last state", mistakes=not_yet, tolerance=1e-5)

    with case("three parameters, between -1/√H and 1/√H", points=1, hint="nn.Parameter W_c, W_h, W_x; no biases"):
        for inputs, hidden in ((5, 4), (3, 7)):
            demand_gru_parameters(case, answer(inputs, hidden), gated_state(case, inputs, hidden))
        demand_small_start(case, answer(32, 64), 64)
    with case("the states of a sequence", points=1, hint="the two formulas, once for each step"):
        for sizes in ((3, 6, 5, 4), (4, 4, 4, 4)):
            built, state = loaded(*sizes[2:])
            demand(built, state, case.randn(*sizes[:3]))
            demand(built, state, case.randn(*sizes[:3]), again=True)
    with case("a given initial state, sizes of one", points=1, hint="start from h; axis 1 is the time"):
        for batch, length, inputs, hidden in ((3, 6, 5, 4), (1, 1, 5, 4), (1, 4, 1, 1)):
            built, state = loaded(inputs, hidden)
            demand(built, state, case.randn(batch, length, inputs), case.randn(batch, hidden))
    with case("gradients go through time", points=1, hint="no detach, no .item(), no .data"):
        built, state = loaded(5, 4)
        x, h, upstream = case.randn(2, 6, 5), case.randn(2, 4), case.randn(2, 4)
        states, _ = call_gru_sequence(case, built, x, 4, h)
        not_yet = always("the states themselves are not right yet, so their gradients cannot be")
        case.close(states.double(), gated_run(state, x, h)[0], mistakes=not_yet, tolerance=1e-5)
        leaves = [value.double().requires_grad_() for value in (x, h)]
        right = torch.autograd.grad((gated_run(state, *leaves)[1] * upstream).sum(), leaves)
        found = built.gradients(x, h, output=1, upstream=upstream)
        cut = {
            "the gradient does not reach the earlier steps: the state is detached between steps": lambda: (
                not found[0][:, :-1].any()
            )
        }
        case.close(found[0].double(), right[0], what="the gradient for x", mistakes=cut, tolerance=1e-4)
        case.close(found[1].double(), right[1], what="the gradient for h[0]", tolerance=1e-4)


def jacobian_at(function, at):
    """Return the Jacobian of a function at a vector, by autograd."""
    return torch.autograd.functional.jacobian(function, at)


def jacobians_turned(right):
    """Return what a stack of Jacobians becomes by mistakes of layout and order."""
    return {
        "each matrix is transposed: one row for each entry of the new state": right.mT,
        "the matrices stand in reverse order": right.flip(0),
        "the sign is wrong": -right,
    }


@check("gated-jacobians", points=2, part="rnn", autograd=False)
def gated_jacobians(answer, case):
    """Against autograd in float64, step by step."""

    def demand(length, inputs, hidden):
        state = {name: value.double() for name, value in gated_state(case, inputs, hidden).items()}
        x, first = case.randn(1, length, inputs).double(), case.randn(1, hidden).double()
        states = torch.cat([first[:, None], gated_run(state, x, first)[0]], dim=1)[0]
        found = answer(x[0], states, **state)
        pairs = list(zip(x[0], states, strict=False))
        right = torch.stack([jacobian_at(lambda h, now=now: gated_step(now, h, **state), h) for now, h in pairs])
        shapes = {
            "there is a matrix too many: h[0] … h[T] are T + 1 states, but T steps": (length + 1, hidden, hidden),
            "a matrix for each step: this is only its diagonal": (length, hidden),
            "this is one matrix; return those of all steps": (hidden, hidden),
            "a matrix is missing: T steps have T of them": (length - 1, hidden, hidden),
        }
        case.shape(found, (length, hidden, hidden), what="the tensor of Jacobians", mistakes=shapes)
        gates = [torch.special.expit(F.linear(now, state["W_c"]) + F.linear(h, state["W_h"])) for now, h in pairs]

        def by(function):
            return lambda: torch.stack(
                [
                    jacobian_at(lambda v, now=now, h=h, c=c: function(v, now, h, c), h)
                    for (now, h), c in zip(pairs, gates, strict=True)
                ]
            )

        def moving(v, now):
            return torch.special.expit(F.linear(now, state["W_c"]) + F.linear(v, state["W_h"]))

        def lever(function):
            return by(lambda v, now, h, c: c * v + function(now, h, c) * F.linear(v, state["W_h"]))

        after = torch.stack(
            [
                jacobian_at(lambda v, now=now: gated_step(now, v, **state), h)
                for now, h in zip(x[0], states[1:], strict=True)
            ]
        )
        plain = partial(F.linear, weight=state["W_x"])
        mistakes = jacobians_turned(right) | {
            "the states are one step off: step t starts from the state before it": after,
            "only the direct path is there: the gate depends on the old state, too": by(lambda v, now, h, c: c * v),
            "only the path through the gate is there": by(
                lambda v, now, h, c: torch.lerp(plain(now), h, moving(v, now))
            ),
            "1 - c depends on the old state, too: the term with W_x x is missing": by(
                lambda v, now, h, c: moving(v, now) * v + (1 - c) * plain(now)
            ),
            "the derivative of 1 - c has a minus": by(lambda v, now, h, c: moving(v, now) * (v + plain(now))),
            "the derivative of the sigmoid is missing": lever(lambda now, h, c: h - plain(now)),
            "the derivative of the sigmoid is not complete: σ' has two factors": lever(
                lambda now, h, c: (h - plain(now)) * c
            ),
            "the derivative of the sigmoid is not complete, σ' has two factors": lever(
                lambda now, h, c: (h - plain(now)) * (1 - c)
            ),
            "the path through the gate has the wrong sign: which of h and W_x x is weighted with c?": lever(
                lambda now, h, c: (plain(now) - h) * c * (1 - c)
            ),
            "the identity is added: h stands in the new state only with its weight c": right
            + torch.eye(hidden).double(),
            "c stands in every column of the direct path; it belongs on the diagonal (torch.diag)": (
                right + torch.stack(gates)[:, :, None] * (1 - torch.eye(hidden).double())
            ),
            "these are products of all steps so far; return the Jacobian of each step alone": lambda: torch.stack(
                [reduce(torch.matmul, reversed(right[: t + 1])) for t in range(length)]
            ),
            "h - W_x x is missing in the path through the gate": lever(lambda now, h, c: c * (1 - c)),
            "that is the derivative of a tanh; c is a sigmoid": lever(lambda now, h, c: (h - plain(now)) * (1 - c**2)),
            "1 - c stands in the direct path; c belongs there": by(
                lambda v, now, h, c: (1 - c) * v + (h - plain(now)) * moving(v, now)
            ),
            "the direct path is the identity; it is multiplied by c": by(
                lambda v, now, h, c: v + (h - plain(now)) * moving(v, now)
            ),
            "W_h is transposed": by(
                lambda v, now, h, c: c * v + (h - plain(now)) * c * (1 - c) * F.linear(v, state["W_h"].T)
            ),
            "the new state stands where the old one belongs": by(
                lambda v, now, h, c: (
                    c * v + (gated_step(now, h, **state) - plain(now)) * c * (1 - c) * F.linear(v, state["W_h"])
                )
            ),
            "the factor before W_h scales its columns; it scales its rows": by(
                lambda v, now, h, c: c * v + F.linear((h - plain(now)) * c * (1 - c) * v, state["W_h"])
            ),
        }
        what = f"the Jacobians for T = {length}, I = {inputs}, H = {hidden}"
        case.close(found, right, what=what, mistakes=mistakes, tolerance=1e-6)

    with case("all steps of a run", points=1, hint="your ∂h[t]/∂h[t-1] of the theory, once for each step"):
        demand(5, 3, 4)
        demand(4, 4, 4)
    with case("one step, sizes of one", points=1, hint="no size may be fixed; no squeeze"):
        for sizes in ((1, 3, 4), (4, 1, 1), (3, 5, 1), (2, 1, 3)):
            demand(*sizes)


def slot_state(case, inputs, hidden, key, reach):
    """Return random weights of AttentionRNN(k) by name."""
    shapes = {"Q_x": (key, inputs), "K_x": (key, inputs), "V_x": (hidden, inputs)}
    shapes |= {"Q": (reach, key, hidden), "K": (reach, key, hidden), "V": (reach, hidden, hidden)}
    return {name: 0.6 * case.randn(*shape) for name, shape in shapes.items()}


def slot_rows(x, slots, own, others):
    """Return a row for each slot: (k + 1, …), the input's first."""
    return torch.cat([(own @ x)[None], torch.einsum("kdh,kh->kd", others, slots)])


def slot_step(x, slots, Q_x, K_x, V_x, Q, K, V, weigh=None):
    """Return the new state (H,) and the weights (k + 1,) for one input (I,) and k states (k, H)."""
    queries, keys = slot_rows(x, slots, Q_x, Q), slot_rows(x, slots, K_x, K)
    weights = F.softmax(torch.linalg.vecdot(queries, keys), dim=0) if weigh is None else weigh(queries, keys)
    return F.linear(weights, slot_rows(x, slots, V_x, V).T), weights


def slot_run(state, x, before=None, step=slot_step, remember=None):
    """Return the states (B, T, H) and weights (B, T, k + 1), in float64, one sequence after the other.

    `remember(new, slots)` makes the next slots, newest first.
    """
    state = {name: value.double() for name, value in state.items()}
    reach, hidden = state["V"].shape[:2]
    remember = remember or (lambda new, slots: torch.cat([new[None], slots[:-1]]))
    starts = torch.zeros(len(x), reach, hidden).double() if before is None else before.double()
    rows = []
    for sequence, slots in zip(x.double(), starts, strict=True):
        row = []
        for now in sequence:
            new, weights = step(now, slots, **state)
            slots = remember(new, slots)
            row.append((new, weights))
        rows.append([torch.stack(part) for part in zip(*row, strict=True)])
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def slot_run_mistakes(state, x, before=None):
    """Return the pairs of states and weights that common mistakes in AttentionRNN(k) lead to."""
    reach = len(state["V"])

    def weighing(weigh):
        return lambda: slot_run(state, x, before, partial(slot_step, weigh=weigh))

    def tied(name):
        return lambda: slot_run(state | {name: state[name][:1].expand_as(state[name])}, x, before)

    def scores(queries, keys):
        return torch.linalg.vecdot(queries, keys)

    def with_tanh(x, slots, **state):
        new, weights = slot_step(x, slots, **state)
        return new.tanh(), weights

    def bare_values(x, slots, **state):
        _, weights = slot_step(x, slots, **state)
        return weights[0] * (state["V_x"] @ x) + weights[1:] @ slots, weights

    found = {
        "there is a tanh around the new state: this network has none": lambda: slot_run(state, x, before, with_tanh),
        "the states are added up as they are: each goes through its V_i first": lambda: slot_run(
            state, x, before, bare_values
        ),
        "the queries of the states stand in the place of their keys": lambda: slot_run(
            state | {"K": state["Q"]}, x, before
        ),
        "the keys of the states stand in the place of their queries": lambda: slot_run(
            state | {"Q": state["K"]}, x, before
        ),
        "the matrices V_i are used transposed": lambda: slot_run(state | {"V": state["V"].mT}, x, before),
        "slots that are still zero are left out of the softmax; they have a weight, too": lambda: slot_run(
            state,
            x,
            before,
            partial(
                slot_step, weigh=lambda q, k: F.softmax(scores(q, k).masked_fill((k == 0).all(-1), -torch.inf), dim=0)
            ),
        ),
        "the states that are given are taken oldest first; they stand newest first": lambda: slot_run(
            state, x, None if before is None else before.flip(1)
        ),
        "every key is compared with the query of the input: here each slot has its own": weighing(
            lambda q, k: F.softmax(k @ q[0], dim=0)
        ),
        "the scores are divided by √d; this model does not": weighing(
            lambda q, k: F.softmax(scores(q, k) / q.shape[1] ** 0.5, dim=0)
        ),
        "the softmax is missing": weighing(scores),
        "the softmax runs over the entries of a key; it runs over the slots": weighing(
            lambda q, k: F.softmax(q * k, dim=1).sum(1)
        ),
        "all slots have the same weight": weighing(lambda q, k: F.softmax(0 * scores(q, k), dim=0)),
        "the input has no weight: it is slot 0 of the softmax": weighing(
            lambda q, k: F.pad(F.softmax(scores(q, k)[1:], dim=0), (1, 0))
        ),
        "the input is added whole, beside the softmax over the states: it is slot 0 of the softmax": weighing(
            lambda q, k: F.pad(F.softmax(scores(q, k)[1:], dim=0), (1, 0), value=1.0)
        ),
        "the weights go through a sigmoid instead of a softmax": weighing(lambda q, k: scores(q, k).sigmoid()),
        "the states before the first step that are given are not used": lambda: slot_run(state, x),
    }
    if reach > 1:
        found |= {
            "the states stand oldest first; slot 1 is the newest": lambda: slot_run(
                {name: value.flip(0) if name in "QKV" else value for name, value in state.items()},
                x,
                None if before is None else before.flip(1),
            ),
            "all slots use the queries of slot 1": tied("Q"),
            "all slots use the keys of slot 1": tied("K"),
            "all slots use the values of slot 1": tied("V"),
            "the older states are never replaced: each step moves all slots on by one": lambda: slot_run(
                state, x, before, remember=lambda new, slots: torch.cat([new[None], slots[1:]])
            ),
            "every slot holds the newest state": lambda: slot_run(
                state, x, before, remember=lambda new, slots: new[None].expand_as(slots)
            ),
        }
    return found | {
        "no state is carried on: every step sees the slots of the start": lambda: slot_run(
            state, x, before, remember=lambda new, slots: slots
        ),
    }


@check("attention-rnn", points=4, part="rnn")
def attention_rnn(answer, case):
    """Against the formulas, slot by slot and sequence by sequence, in float64."""

    def loaded(inputs, hidden, key, reach):
        state = slot_state(case, inputs, hidden, key, reach)
        built = answer(inputs, hidden, key, reach)
        demand_gru_parameters(case, built, state)
        built.load_state_dict(state)
        return built, state

    def call(built, x, hidden, reach, *before):
        states, weights = case.parts(built(x, *before), "states", "weights")
        batch, length, _ = x.shape
        shapes = {
            "the states of before the first step are among them": (batch, length + reach, hidden),
            "the time comes first: stack along axis 1": (length, batch, hidden),
            "these are the weights: the states come first": (batch, length, reach + 1),
        }
        case.shape(states, (batch, length, hidden), what="the tensor of states", mistakes=shapes)
        shapes = {
            "the weight of the input is missing": (batch, length, reach),
            "these are the weights of the last step alone": (batch, reach + 1),
            "the time comes first: stack along axis 1": (length, batch, reach + 1),
            "this is the last state, as of a GRU; return the weights of all steps": (batch, hidden),
        }
        case.shape(weights, (batch, length, reach + 1), what="the tensor of weights", mistakes=shapes)
        return states, weights

    def demand(built, state, x, *before, again=False):
        reach, hidden = state["V"].shape[:2]
        states, weights = call(built, x, hidden, reach, *before)
        right, shares = slot_run(state, x, *before)
        text = f"of AttentionRNN({reach})"
        wrong = slot_run_mistakes(state, x, *before)
        of_states = {name: (lambda pair=pair: pair()[0]) for name, pair in wrong.items()}
        of_states = always(LEFT_OVER) if again else of_states
        of_weights = {
            "the weight of the input stands last; it comes first": shares.roll(-1, dims=-1),
            "these do not add up to 1 over the slots: return the weights after the softmax": lambda: (
                not alike(weights.double().sum(-1), shares.sum(-1), 1e-4)
            ),
        } | {name: (lambda pair=pair: pair()[1]) for name, pair in wrong.items()}
        case.close(states.double(), right, what=f"the states {text}", mistakes=of_states, tolerance=1e-4)
        case.close(weights.double(), shares, what=f"the weights {text}", mistakes=of_weights, tolerance=1e-4)

    with case("six parameters, between -1/√H and 1/√H", points=1, hint="three matrices, three stacks of k matrices"):
        for sizes in ((3, 5, 2, 4), (4, 3, 6, 1)):
            demand_gru_parameters(case, answer(*sizes), slot_state(case, *sizes))
        demand_small_start(case, answer(32, 64, 16, 2), 64)
    with case("AttentionRNN(2)", points=1, hint="own query times own key; softmax over k + 1 slots; add a v"):
        built, state = loaded(3, 5, 2, 2)
        demand(built, state, case.randn(2, 6, 3))
        built, state = loaded(4, 4, 4, 2)
        demand(built, state, case.randn(3, 4, 4))
    with case("AttentionRNN(k)", points=1, hint="after each step the new state becomes slot 1, and the oldest leaves"):
        for reach in (1, 3, 5):
            built, state = loaded(3, 4, 2, reach)
            demand(built, state, case.randn(2, 7, 3))
            demand(built, state, case.randn(2, 7, 3), again=True)
        built, state = loaded(1, 1, 1, 2)
        demand(built, state, case.randn(1, 1, 1))
    with case("states from before the first step; gradients", points=1, hint="newest first; no detach"):
        built, state = loaded(3, 4, 2, 3)
        x, before, upstream = case.randn(2, 5, 3), case.randn(2, 3, 4), case.randn(2, 5, 4)
        demand(built, state, x, before)
        leaves = [value.double().requires_grad_() for value in (x, before)]
        right = torch.autograd.grad((slot_run(state, *leaves)[0] * upstream).sum(), leaves)
        found = built.gradients(x, before, output=0, upstream=upstream)
        held = [value.double().requires_grad_() for value in (x, before)]
        cut_run = slot_run(state, *held, remember=lambda new, slots: torch.cat([new[None].detach(), slots[:-1]]))[0]
        cut = torch.autograd.grad((cut_run * upstream).sum(), held)
        for name, ours, theirs, wrong in zip(("x", "the states before"), found, right, cut, strict=True):
            mistakes = {"the gradient does not go through the slots: the new state is detached": wrong}
            case.close(ours.double(), theirs, what=f"the gradient for {name}", mistakes=mistakes, tolerance=1e-4)


@check("slot-jacobians", points=2, part="rnn", autograd=False)
def slot_jacobians(answer, case):
    """Against autograd in float64, slot by slot."""

    def demand(inputs, hidden, key, reach):
        state = {name: value.double() for name, value in slot_state(case, inputs, hidden, key, reach).items()}
        x, slots = case.randn(inputs).double(), case.randn(reach, hidden).double()
        found = answer(x, slots, **state)

        def of(function):
            return torch.autograd.functional.jacobian(function, slots).transpose(0, 1)

        right = of(lambda s: slot_step(x, s, **state)[0])
        shapes = {
            "the slot is axis 0, then the rows: (k, H, H)": (hidden, reach, hidden),
            "the input is no state: return k matrices": (reach + 1, hidden, hidden),
        }
        case.shape(found, (reach, hidden, hidden), what="the tensor of Jacobians", mistakes=shapes)
        new, a = slot_step(x, slots, **state)
        values = slot_rows(x, slots, state["V_x"], state["V"])

        def score(s, frozen=""):
            q = slot_rows(x, slots if frozen == "q" else s, state["Q_x"], state["Q"])
            k = slot_rows(x, slots if frozen == "k" else s, state["K_x"], state["K"])
            return torch.linalg.vecdot(q, k)

        direct = of(lambda s: F.linear(a, slot_rows(x, s, state["V_x"], state["V"]).T))
        through = of(lambda s: F.linear(F.softmax(score(s), dim=0), values.T))
        slope = torch.stack([jacobian_at(lambda s, i=i: score(s)[1 + i], slots)[i] for i in range(reach)])
        ones = a[1:, None, None]

        def weights_by(part):
            return of(lambda s: F.linear(F.softmax(score(s, part), dim=0), values.T))

        of_query, of_key = weights_by("k"), weights_by("q")
        squares = torch.stack(
            [
                jacobian_at(lambda s, i=i: ((state["Q"][i] @ s) ** 2 + (state["K"][i] @ s) ** 2).sum() / 2, slots[i])
                for i in range(reach)
            ]
        )

        mistakes = jacobians_turned(right) | {
            "only the path through the value is there: the weights depend on the state, too": direct,
            "only the path through the weights is there: the value depends on the state, too": through,
            "the score depends on the state twice, through query and key: only the query is there": direct + of_query,
            "the score depends on the state twice, through query and key: only the key is there": direct + of_key,
            "all weights move when one score does: the others' part, the mean of the values, is missing": (
                direct + torch.einsum("kg,kh->kgh", a[1:, None] * values[1:], slope)
            ),
            "the softmax has the slope a (1 - a) for its own weight alone here; the other weights fall": (
                direct + torch.einsum("kg,kh->kgh", (a * (1 - a))[1:, None] * values[1:], slope)
            ),
            "V_i is transposed": direct.mT + through,
            "the value of another slot stands in the path through the weights: the input is slot 0": (
                direct + torch.einsum("kg,kh->kgh", a[1:, None] * (values[:-1] - new), slope)
            ),
            "the matrices V_i are shifted by one slot: V[0] belongs to slot 1": (
                ones * state["V"].roll(-1, 0) + through
            ),
            "the input is left out of the mean of the values": (
                direct + torch.einsum("kg,kh->kgh", a[1:, None] * (values[1:] - a[1:] @ values[1:]), slope)
            ),
            "the score has two different factors, Q_i s and K_i s: this is twice the derivative of one": lambda: (
                alike(found, direct + 2 * of_query) or alike(found, direct + 2 * of_key)
            ),
            "query and key are not crossed: of a product, one factor stands still while the other moves": lambda: (
                direct + torch.einsum("kg,kh->kgh", a[1:, None] * (values[1:] - new), squares)
            ),
            "the scores are divided by √d; this model does not": lambda: of(
                lambda s: slot_step(
                    x, s, **state, weigh=lambda q, k: F.softmax(torch.linalg.vecdot(q, k) / key**0.5, dim=0)
                )[0]
            ),
            "the input is left out of the softmax": lambda: of(
                lambda s: slot_step(
                    x, s, **state, weigh=lambda q, k: F.pad(F.softmax(torch.linalg.vecdot(q, k)[1:], dim=0), (1, 0))
                )[0]
            ),
            "this is nearly right: a difference quotient? Write the closed form": lambda: alike(found, right, 1e-2),
            "a_i is missing before V_i": through + state["V"],
            "a_i is missing in the path through the weights": direct + through / ones,
            "the path through the weights has the wrong sign": direct - through,
            "the weights and values of another slot are used: slot i has a[i], with the input at a[0]": (
                a[:-1, None, None] * state["V"] + torch.einsum("kg,kh->kgh", a[:-1, None] * (values[1:] - new), slope)
            ),
            "the outer product is the wrong way round: rows belong to the new state": direct + through.mT,
        }
        what = f"the Jacobians for I = {inputs}, H = {hidden}, d = {key}, k = {reach}"
        case.close(found, right, what=what, mistakes=mistakes, tolerance=1e-6)

    with case("AttentionRNN(2)", points=1, hint="your ∂h[t]/∂h[t-i] of the theory, once for each slot"):
        demand(3, 4, 2, 2)
        demand(4, 4, 4, 2)
    with case("other k, sizes of one", points=1, hint="no size may be fixed; no squeeze"):
        for sizes in ((3, 5, 2, 1), (2, 3, 4, 5), (1, 1, 1, 1), (2, 1, 3, 2)):
            demand(*sizes)


# ==============================================================================================================
# sequence_classification
#
# The checks of Homework 2, sequence classification.
#
# Nothing that a student's code prints or plots counts: every loss, every step and every spike is recomputed here from
# the checkpoints that it returns, on strings that it has not seen.
# ==============================================================================================================


# What the notebook gives: its strings, its untouched model, its training.
SEQUENCE_UNITS, SEQUENCE_SEED = 24, 0
SEQUENCE_EVERY = 64  # strings from one checkpoint to the next
SEQUENCE_STRINGS, SEQUENCE_LENGTH = 25_600, 12
SEQUENCE_SPIKE = 0.4  # the notebook: a loss that is higher above the lowest one so far is a spike
SEQUENCE_OTHER_SEEDS = (*range(1, 100), 123, 1234, 1337, 2024, 2025, 2026, 12345)
SEQUENCE_ALLOWED = 0.5  # what the check lets pass: its strings may be less lucky than a student's
MEASURED_NOT_DERIVED = "near, but not exact: are these figures measured? They follow from the definition alone"
UNTIL_NOW = "the curve is compared with the lowest loss up to each checkpoint"


def sequence_data(case, count, length=SEQUENCE_LENGTH, classes=(0, 1, 2, 3)):
    """Return strings as the notebook makes them; `classes` renames the four classes."""
    strings = case.randint(2, 6, (count, length))
    strings[:, 0], strings[:, -1] = 0, 1
    scores = case.randn(count, length - 2)
    places = scores.argsort(1)[:, :2].sort(1)[0] + 1
    marks = case.randint(0, 2, (count, 2))
    strings.scatter_(1, places, 6 + marks)
    return strings, torch.tensor(classes)[2 * marks[:, 0] + marks[:, 1]]


class SequenceReader(nn.Module):
    """The notebook's model."""

    def __init__(self, units=SEQUENCE_UNITS):
        """Make the weights; torch's global generator draws them."""
        super().__init__()
        self.lstm = nn.LSTM(8, units, batch_first=True)
        self.head = nn.Linear(units, 4)

    def forward(self, strings):
        """Map symbols (N, T) to logits (N, 4)."""
        states, _ = self.lstm(F.one_hot(strings, 8).float())
        return self.head(states[:, -1])


def sequence_model(seed=SEQUENCE_SEED):
    """Return the model with the weights that a seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for CUDA each time
        return SequenceReader()


def sequence_steps(strings, labels, batch_size=16, rates=None):
    """Go through the given training without any bound; `rates` are the learning rates of the steps, 1 without them.

    Returns:
        The weights after every step, as one vector each (the first one before training), and the gradients of every
        step, as a list of tensors each.
    """
    model, weights, gradients = sequence_model(), [], []
    parameters = list(model.parameters())
    weights.append(nn.utils.parameters_to_vector(parameters).detach().clone())
    batches = zip(strings.split(batch_size), labels.split(batch_size), strict=True)
    for i, (part, wanted) in enumerate(batches):
        found = torch.autograd.grad(F.cross_entropy(model(part), wanted), parameters)
        gradients.append(found)
        rate = 1.0 if rates is None else rates[i]
        moved = weights[-1] - rate * torch.cat([one.flatten() for one in found])
        nn.utils.vector_to_parameters(moved, parameters)
        weights.append(moved)
    return weights, gradients


def sequence_norms(strings, labels):
    """Return the norm of the untouched model's gradient on every 64 strings."""
    model, norms = sequence_model(), []
    for part, wanted in zip(strings.split(SEQUENCE_EVERY), labels.split(SEQUENCE_EVERY), strict=True):
        found = torch.autograd.grad(F.cross_entropy(model(part), wanted), list(model.parameters()))
        norms.append(torch.cat([one.flatten() for one in found]).double().norm())
    return torch.stack(norms)


def sequence_sums(strings, labels):
    """Return the weights after the first checkpoint's strings if gradients were never cleared."""
    model = sequence_model()
    parameters = list(model.parameters())
    strings, labels = strings[:SEQUENCE_EVERY], labels[:SEQUENCE_EVERY]
    for part, wanted in zip(strings.split(16), labels.split(16), strict=True):
        F.cross_entropy(model(part), wanted).backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= parameter.grad
    return nn.utils.parameters_to_vector(parameters).detach()


def demand_that(case, condition, message):
    """Demand a condition whose failure explains itself, so that the hint is left out."""
    case.equal(torch.tensor(bool(condition)), torch.tensor(True), mistakes=always(message))


# -- where training begins --------------------------------------------------------------------------------


def sequence_classes(chance):
    """Count how often each class occurs among all equally likely pairs of marks."""
    marks = [0] * chance.numerator + [1] * (chance.denominator - chance.numerator)  # 0 is X
    pairs = list(itertools.product(marks, marks))
    return torch.tensor([pairs.count(one) / len(pairs) for one in ((0, 0), (0, 1), (1, 0), (1, 1))])


def initial_parts(case, result):
    """Demand the dictionary that `initial_expectation` returns."""
    case.true(isinstance(result, dict), "the result is not a dictionary")
    names = ["classes", "accuracy", "loss", "plateau"]
    missing = [name for name in names if name not in result]
    case.true(not missing, f"the dictionary has no {missing}; it needs {names}")
    classes = torch.as_tensor(result["classes"]).float()
    return classes, *(torch.as_tensor(result[name]).float() for name in names[1:])


@check("initial-expectation", points=4, part="sequence_classification")
def initial_expectation(answer, case):
    """By counting pairs of marks, and by torch's cross-entropy and entropy."""
    chances = [Fraction(1, 2), Fraction(3, 4), case.choice(Fraction(1, 5), Fraction(2, 5)), Fraction(7, 10)]
    with case("how often each class occurs", points=1, hint="the two marks are drawn independently: multiply"):
        for chance in chances:
            x, right = float(chance), sequence_classes(chance)
            mistakes = {
                "the four classes are equally frequent only if X and Y are": torch.full((4,), 0.25),
                "the order is Q = XX, R = XY, S = YX, U = YY; here X and Y are exchanged": right.flip(0),
                "these are the probabilities of the two marks, not of the four pairs": torch.tensor([x, 1 - x]),
                "R and S are two classes: XY and YX are told apart": torch.stack(
                    [right[0], right[1] + right[2], right[3]]
                ),
                "XY and YX have half of 2·P(X)·P(Y) each": torch.stack(
                    [right[0], 2 * right[1], 2 * right[2], right[3]]
                ),
                "P(X) is not squared for XX: both marks must be X": torch.tensor([x, x * (1 - x), x * (1 - x), 1 - x]),
            }
            classes = initial_parts(case, answer(x))[0]
            case.true(
                classes.shape == (4,),
                f"classes has shape {tuple(classes.shape)}, expected (4,): the probabilities of Q, R, S, U in a row"
                + (", not of the two marks" if classes.shape == (2,) else ""),
            )
            mistakes[MEASURED_NOT_DERIVED] = lambda classes=classes, right=right: alike(classes, right, 0.1)
            case.close(classes, right, what="classes", mistakes=mistakes)
    with case(
        "accuracy and loss of a model that knows nothing",
        points=1,
        hint="it gives every class 1/4; what is the cross-entropy of that, whatever class comes?",
    ):
        for chance in chances:
            right, even = sequence_classes(chance), torch.zeros(1, 4)
            _, accuracy, loss, _ = initial_parts(case, answer(float(chance)))
            case.close(
                accuracy,
                torch.tensor(0.25),
                what="accuracy",
                mistakes={
                    "the accuracy is a share between 0 and 1, not per cent": torch.tensor(25.0),
                    "50 % would be two classes": torch.tensor(0.5),
                    "1/8 would be one of the eight symbols; the model names one of four classes": torch.tensor(0.125),
                    MEASURED_NOT_DERIVED: lambda accuracy=accuracy: bool((accuracy - 0.25).abs() < 0.01),
                    "the untrained model does not know which class is the most frequent": right.max(),
                    "this guesses each class as often as it occurs; an untrained model does not know how often": (
                        right.square().sum()
                    ),
                },
            )
            case.close(
                loss,
                F.cross_entropy(even, right[None]),
                what="loss",
                mistakes={
                    "this is measured in bits (log2); cross-entropy in torch uses the natural logarithm": (
                        torch.tensor(2.0)
                    ),
                    "the sign is wrong: a loss is -ln p": -F.cross_entropy(even, right[None]),
                    "this is a probability, or 1 minus one; the loss is -ln of it": (
                        lambda loss=loss: bool((loss - 0.25).abs() < 1e-6) or bool((loss - 0.75).abs() < 1e-6)
                    ),
                    "ln 8 is for eight symbols; the model chooses among four classes": torch.tensor(math.log(8)),
                    "ln 2 is for two classes": torch.tensor(math.log(2)),
                    MEASURED_NOT_DERIVED: lambda loss=loss: bool((loss - math.log(4)).abs() < 0.03),
                    "this is the entropy of the classes, which is less: the untrained model gives each class 1/4, "
                    "because it does not know how often they occur": (torch.distributions.Categorical(right).entropy()),
                },
            )
    with case(
        "the lowest loss without looking at the string",
        points=1,
        hint="which four fixed probabilities cost least when class c comes with probability p_c?",
    ):
        for chance in chances:
            right = sequence_classes(chance)
            _, _, _, plateau = initial_parts(case, answer(float(chance)))
            entropy = torch.distributions.Categorical(right).entropy()
            marks = torch.tensor([float(chance), 1 - float(chance)])
            case.close(
                plateau,
                entropy,
                what="plateau",
                mistakes={
                    "this is the loss of equal guesses; knowing how often the classes occur is worth something": (
                        torch.tensor(math.log(4))
                    ),
                    "this is measured in bits (log2), not with the natural logarithm": entropy / math.log(2),
                    "the sign is wrong: a loss is not negative": -entropy,
                    "this is the entropy of one mark; the class depends on two": (
                        torch.distributions.Categorical(marks).entropy()
                    ),
                    "this is the mean over the classes; a class that comes more often counts more": entropy / 4,
                    "this is the loss of always naming the most frequent class, where it comes": -right.max().log(),
                    "-Σ ln p_c without the weights p_c: a class that comes more often counts more": (
                        -right.log().sum()
                    ),
                    "this treats the p_c as logits, through a softmax; they are probabilities already": (
                        F.cross_entropy(right, right)
                    ),
                    "near, but not exact: is something added to the probabilities against ln 0, or are they measured? "
                    "torch.xlogy and torch.special.entr need no such help": (
                        lambda plateau=plateau, entropy=entropy: bool((plateau - entropy).abs() < 0.06)
                    ),
                },
            )
    with case("classes that never occur", points=1, hint="0 · ln 0 counts as 0: what never comes costs nothing"):
        for chance in (Fraction(1), Fraction(0)):
            classes, _, loss, plateau = initial_parts(case, answer(float(chance)))
            case.close(classes, sequence_classes(chance), what="classes")
            case.close(loss, torch.tensor(math.log(4)), what="loss")
            mistakes = {
                "0 · ln 0 gives NaN; what never comes must cost nothing": lambda plateau=plateau: bool(plateau.isnan())
            }
            case.close(plateau, torch.tensor(0.0), what="plateau", mistakes=mistakes)


# -- what a spike is --------------------------------------------------------------------------------------


def planted_curve(case, spikes=3, floor=4.0, last=False):
    """Make a falling curve with spikes put into it, so that they are known without looking for them.

    Returns:
        The losses, and the spikes above a rise of 0.5 by the number of their top. All values are multiples of 1/64,
        so that sums and differences are exact.
    """
    losses, known, lowest = [floor], {}, floor
    for spike in range(spikes):
        for _ in range(int(case.randint(1, 5))):  # falls, with ripples that are no spikes
            lowest -= int(case.randint(1, 9)) / 64
            losses += [lowest, lowest + int(case.randint(0, 33)) / 64]
        width = int(case.randint(1, 5))
        rises = [int(rise) / 64 for rise in 33 + torch.randperm(160)[:width]]
        known[len(losses) + rises.index(max(rises))] = max(rises)
        losses += [lowest + rise for rise in rises]
        if not (last and spike == spikes - 1):
            losses.append(lowest)
    return losses, known


def demand_spikes(case, found, losses, right, mistakes=None):
    """Demand the spikes `right`, a dictionary: number of the top -> height."""
    case.true(found is not None, "the result is None (is a return statement missing?)")
    case.true(isinstance(found, dict), f"the result is a {kind_of(found)}, expected a dictionary")
    found = {int(top): float(height) for top, height in found.items()}

    def same(a, b):
        return list(a) == list(b) and all(x == b[top] or abs(x - b[top]) < 1e-6 for top, x in a.items())

    if same(dict(sorted(found.items())), dict(sorted(right.items()))):
        return
    for sentence, wrong in (mistakes or {}).items():
        if same(dict(sorted(found.items())), dict(sorted(wrong.items()))):
            demand_that(case, False, sentence)
    curve = f"the losses {[round(loss, 2) for loss in losses]}, threshold 0.5: " if len(losses) <= 12 else ""
    if found.keys() == right.keys():
        top = next(top for top in right if not same({0: found[top]}, {0: right[top]}))
        text = f"{curve}the height at checkpoint {top} is {found[top]:.3g}; it is measured from the lowest loss so far"
        case.true(False, text + f", and the loss there is {losses[top]:.3g}")
    missed, invented = sorted(right.keys() - found.keys()), sorted(found.keys() - right.keys())
    text = "" if not missed else f"{len(missed)} spike(s) not found, the first has its top at checkpoint {missed[0]}"
    text += " and " if missed and invented else ""
    text += "" if not invented else f"{len(invented)} that are none, the first at checkpoint {invented[0]}"
    case.true(False, curve + text)


def spike_misreadings(losses, threshold):
    """Return the spikes that common misreadings of the definition find."""
    steps = range(len(losses))
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    rise = [finite[t] - min(min(finite[: t + 1]), 1e9) for t in steps]
    before = [0.0] + [finite[t] - finite[t - 1] for t in steps[1:]]
    above = [t for t in steps if rise[t] > threshold]

    def tops(values, least):
        """Every checkpoint that is higher than its neighbours and than `least`."""
        padded = [-math.inf, *values, -math.inf]
        return {t: values[t] for t in steps if values[t] > least and padded[t] < values[t] >= padded[t + 2]}

    starts = [t for t in above if t - 1 not in above]
    runs = {start: [t for t in above if t >= start and all(u in above for u in range(start, t))] for start in starts}
    best = {max(run, key=lambda t: rise[t]): run for run in runs.values()}

    def spikes(rises, least=threshold, inclusive=False, later=False):
        """The top of each unbroken run of `rises` above `least`, by another measure of the rise."""
        found, top = {}, None
        for t, value in enumerate(rises):
            if not (value > least or (inclusive and value == least)):
                top = None
            elif top is None or value > found[top] or (later and value == found[top]):
                found.pop(top, None)
                top, found[t] = t, value
        return found

    records = {t: rise[t] for run in runs.values() for t in run if all(rise[u] < rise[t] for u in run if u < t)}
    again, low, inside = [], math.inf, False  # the lowest loss is forgotten when a spike ends
    for loss in finite:
        low = min(low, loss)
        low = loss if inside and loss - low <= threshold else low
        inside = loss - low > threshold
        again.append(loss - low)
    lasting, top, low = {}, None, math.inf
    for t, loss in enumerate(finite):
        top, low = (None, loss) if loss <= low else (top, low)
        if loss - low > threshold and (top is None or loss - low > lasting[top]):
            lasting.pop(top, None)
            top, lasting[t] = t, loss - low
    ratio = [b / max(min(finite[: t + 1]), 1e-9) - 1 for t, b in enumerate(finite)]
    return {
        "a rise of just the threshold is counted; a spike rises by more than the threshold": spikes(
            rise, inclusive=True
        ),
        "of several checkpoints that are equally high, the first is the top": spikes(rise, later=True),
        "a spike ends where the rise is no longer above the threshold; it need not reach a new low": lasting,
        "the lowest loss so far is forgotten when a spike ends; it goes on to count": spikes(again),
        "the tops are counted from 0: the first checkpoint is number 0": {t + 1: rise[t] for t in best},
        "an earlier top of the same spike is kept when a higher one follows": records,
        "the rise is a difference of two losses, not their ratio": spikes(ratio),
        "the height of a spike is its whole rise, not only the part above the threshold": {
            t: rise[t] - threshold for t in best
        },
        "every checkpoint above the threshold is counted; an unbroken run of them is one spike": {
            t: rise[t] for t in above
        },
        "every local top is counted; as long as the rise stays above the threshold it is the same spike": tops(
            rise, threshold
        ),
        "the rise is measured from the loss before, not from the lowest loss so far": spikes(before),
        "the rise is measured from the first loss, not from the lowest loss so far": spikes(
            [loss - losses[0] for loss in finite]
        ),
        "the rise is measured from the lowest loss of the whole curve; a checkpoint may be compared only with those "
        "before it": spikes([loss - min(finite) for loss in finite]),
        "the loss itself is compared with the threshold, not its rise": tops(finite, threshold),
        "the height of a spike is its rise above the lowest loss so far, not the loss itself": {
            t: finite[t] for t in best
        },
        "a spike is named by its top, the checkpoint with the largest rise, not by its first checkpoint": {
            start: max(rise[t] for t in run) for start, run in runs.items()
        },
        "the first checkpoint of a spike is reported; its top, with the largest rise, is wanted": {
            start: rise[start] for start in starts
        },
        "the last checkpoint of a spike is reported; its top, with the largest rise, is wanted": {
            run[-1]: rise[run[-1]] for run in runs.values()
        },
        "a spike that lasts to the end of the curve is lost": {
            t: rise[t] for t, run in best.items() if run[-1] != steps[-1]
        },
        "only the highest spike is reported": {t: rise[t] for t in sorted(best, key=lambda t: -rise[t])[:1]},
    }


@check("spike-heights", points=6, part="sequence_classification")
def spike_heights(answer, case):
    """On curves into which the spikes were put, so that nothing needs to look for them."""

    def demand(losses, right, found=None):
        mistakes = {name: wrong for name, wrong in spike_misreadings(losses, 0.5).items() if wrong != right}
        found = answer(list(losses), 0.5) if found is None else found
        demand_spikes(case, found, losses, right, mistakes)

    with case(
        "one spike: the number of its top and its height", points=1, hint="height: loss minus lowest loss so far"
    ):
        demand([2.0, 1.0, 3.0, 1.0], {2: 2.0})
        demand([2.0, 1.5, 1.0, 1.75, 2.5, 1.75, 1.0], {4: 1.5})
    with case("an unbroken run is one spike", points=1, hint="a spike ends where the rise is no longer above"):
        demand([1.0, 2.0, 1.75, 2.5, 3.0, 1.0], {4: 2.0})
        demand([1.0, 2.0, 1.0, 3.0, 1.375, 2.0, 1.25], {1: 1.0, 3: 2.0, 5: 1.0})
        demand([1.0, 2.0, 2.0, 1.0], {1: 1.0})
    with case("the rise is measured from the lowest loss so far", points=1, hint=UNTIL_NOW):
        demand([4.0, 1.0, 3.0, 1.0, 0.25], {2: 2.0})  # a later loss is lower
        demand([4.0, 3.75, 3.5, 3.25, 2.0], {})
        demand([1.0, 1.25, 1.5, 1.75, 2.0, 1.0], {4: 1.0})  # climbs in small steps
    with case("no spike; a rise of just the threshold; a spike at the end", points=1, hint="more than the threshold"):
        losses, wide = [2.0, 1.0, 1.75, 1.0], 1.0
        fixed = answer(list(losses), 0.5) == answer(list(losses), wide) == {2: 0.75}
        demand_that(case, not fixed, "the threshold in the arguments is not used: 0.5 and 1.0 give the same spikes")
        demand([1.5, 1.0, 1.5, 0.75], {})
        demand([1.0], {})
        demand([1.5, 1.0, 2.0, 3.0], {3: 2.0})
        demand([1.0, 2.0], {1: 1.0})
    with case("long curves with several spikes", points=1, hint="go through the curve once, from left to right"):
        for spikes, last in ((3, False), (4, True), (5, False)):
            demand(*planted_curve(case, spikes, last=last))
    with case("a loss that is NaN or infinite is infinitely high", points=1, hint="math.isfinite; NaN < 1 is False"):
        for bad in (math.nan, math.inf):
            losses, right = [2.0, 1.0, bad, 1.5, 1.0, 0.5, bad], {2: math.inf, 6: math.inf}
            found = answer(list(losses), 0.5)
            if isinstance(found, dict):
                demand_that(
                    case,
                    found,
                    "a loss of NaN or infinity does not count; a training that broke down is no smooth one",
                )
                demand_that(
                    case,
                    found.keys() != right.keys() or all(float(height) == math.inf for height in found.values()),
                    "the rise of a loss that is NaN or infinite is infinite: its height is math.inf",
                )
            demand(losses, right, found)
            demand([2.0, bad, bad], {1: math.inf})


# -- training with knobs ----------------------------------------------------------------------------------


def sequence_run(case, answer, *data, **knobs):
    """Call `train_with`; return the weights of each checkpoint as one vector, and the norms."""
    result = answer(*data, **knobs)
    case.true(
        isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[0], (list, tuple)),
        "the result is not a tuple (checkpoints, norms)",
    )
    checkpoints, norms = result
    expected = len(data[0]) // SEQUENCE_EVERY + 1
    steps = len(data[0]) // knobs.get("batch_size", 16)
    case.true(
        len(checkpoints) == expected,
        f"{len(checkpoints)} checkpoints for {len(data[0])} strings with {knobs or 'the defaults'}; expected "
        f"{expected}: one before training, then one after every {SEQUENCE_EVERY} strings (not steps or batches)",
    )
    case.true(len(norms) == steps, f"{len(norms)} norms for {steps} steps; expected one for each step")
    names = list(sequence_model().state_dict())
    for number, state in enumerate(checkpoints):
        good = isinstance(state, dict) and list(state) == names
        case.true(good, f"checkpoint {number} is no dictionary of the model's weights {names}")
    vectors = [torch.cat([state[name].detach().flatten() for name in names]) for state in checkpoints]
    return vectors, torch.tensor([float(norm) for norm in norms])


def step_lengths(vectors):
    """How far the weights moved from one checkpoint to the next."""
    return torch.stack([(after - before).double().norm() for before, after in itertools.pairwise(vectors)])


def gradient_norm_mistakes(gradients, weights):
    """Return, for every step, what is taken for the norm of the gradient."""

    def each(measure):
        return torch.stack([measure(torch.cat([part.flatten() for part in one])) for one in gradients])

    parts = torch.stack([torch.stack([part.norm() for part in one]) for one in gradients])
    return {
        "the square root is missing: these are squared norms": each(lambda g: g.square().sum()),
        "these are the norms of the weights, not of the gradient": torch.stack([one.norm() for one in weights[:-1]]),
        "this is the norm of the last tensor's gradient alone": parts[:, -1],
        "this is the norm of the first tensor's gradient alone": parts[:, 0],
        "the norms of the tensors are added up; all gradients together are one long vector": parts.sum(1),
        "this is the largest norm of a single tensor; all gradients together are one long vector": parts.amax(1),
        "this is the mean norm of the tensors; all gradients together are one long vector": parts.mean(1),
        "this is the largest entry of the gradient, not its length": each(lambda g: g.abs().max()),
        "this is the sum of the entries' sizes, not the root of the sum of squares": each(lambda g: g.abs().sum()),
        "the norm is divided by the number of entries": each(lambda g: g.norm() / g.numel()),
        "this is the root of the mean square; the norm is the root of the sum": each(
            lambda g: g.square().mean().sqrt()
        ),
    }


@check("train-with", points=9, part="sequence_classification")
def train_with(answer, case):
    """Against the given training step by step, and by how far each step goes."""
    with case(
        "the defaults are the given training", points=2, hint="compare your loop with given_training, line by line"
    ):
        data = sequence_data(case, 4 * SEQUENCE_EVERY)
        vectors, _ = sequence_run(case, answer, *data)
        weights, _ = sequence_steps(*data)
        right = torch.stack(weights[:: SEQUENCE_EVERY // 16])
        found = torch.stack(vectors)
        demand_that(
            case,
            not (found == found[0]).all() or alike(found[0], right[0], 1e-3),
            "all checkpoints are the same, the final weights: a state_dict holds the weights themselves, which later "
            "steps change. Store copies; the helper `checkpoint` makes them",
        )
        demand_that(case, alike(found[0], right[0], 1e-4), "the first checkpoint is not the untouched model")
        demand_that(case, not (found == found[0]).all(), "no checkpoint differs from the first: nothing is trained")
        mistakes = {
            "the gradient is not cleared before the next step, so that gradients add up": (
                lambda: alike(found[1], sequence_sums(*data), 1e-3)
            ),
            "the steps go uphill": lambda: float((found[1] - found[0]) @ (right[1] - right[0])) < 0,
        }
        case.close(found, right, what="the weights", mistakes=mistakes, tolerance=1e-3)
    with case(
        "the norm of each step's gradient, as it was before clipping",
        points=2,
        hint="after loss.backward() and before anything is changed; all parameters are one long vector",
    ):
        data = sequence_data(case, 2 * SEQUENCE_EVERY)
        weights, gradients = sequence_steps(*data)
        right = torch.stack([torch.cat([part.flatten() for part in one]).norm() for one in gradients])
        _, norms = sequence_run(case, answer, *data)
        mistakes = gradient_norm_mistakes(gradients, weights)
        mistakes["these norms belong to the step before; is the norm taken before loss.backward()?"] = lambda: (
            alike(norms[1:], right[:-1], 1e-3) or bool((norms == 0).all())
        )
        mistakes["the norms are divided by the size of the batch or by its root"] = lambda: (
            alike(norms * 16, right, 1e-3) or alike(norms * 4, right, 1e-3)
        )
        case.close(norms, right, what="the norms", mistakes=mistakes, tolerance=1e-3)
        bound = float(right.min()) / 2
        _, norms = sequence_run(case, answer, *data, clip=bound)
        mistakes = {
            "the norms are taken after clipping; they are to say how long the gradients were": (
                lambda: bool((norms <= 1.01 * bound).all())
            )
        }
        case.close(norms[0], right[0], what="the first norm with a clip", mistakes=mistakes, tolerance=1e-3)
    with case(
        "batch_size strings in each step", points=1, hint="also in the loop's stride and in the checkpoints' rhythm"
    ):
        data = sequence_data(case, 4 * SEQUENCE_EVERY)
        for size in (64, 32, 8):
            right = torch.stack(sequence_steps(*data, size)[0][:: SEQUENCE_EVERY // size])
            vectors, _ = sequence_run(case, answer, *data, batch_size=size)
            sixteen = sequence_steps(*data)[0]
            mistakes = {
                "the batches have 16 strings, whatever batch_size says": torch.stack(sixteen[:: SEQUENCE_EVERY // 16]),
                "the batches have 16 strings, only their number follows batch_size": torch.stack(
                    sixteen[: len(sixteen) // 4 * 4 * 16 // size + 1][:: SEQUENCE_EVERY // size]
                ),
            }
            case.close(torch.stack(vectors), right, what="the weights", mistakes=mistakes, tolerance=1e-3)
    data = sequence_data(case, 8 * SEQUENCE_EVERY)  # with batches of 64, one step between two checkpoints
    tiny = {"batch_size": SEQUENCE_EVERY, "clip": 0.002, "lr": 4.0}  # shorter than every gradient here
    full = 0.008

    def same_lengths(found, right, mistakes):
        case.close(
            found,
            torch.as_tensor(right, dtype=found.dtype),
            what="the lengths of the steps",
            mistakes=mistakes,
            tolerance=full / 50,
        )

    with case(
        "clip bounds the gradient of all parameters together",
        points=2,
        hint="one factor for all tensors, at most 1, before the optimizer's step",
    ):
        vectors, _ = sequence_run(case, answer, *data, **tiny)
        found = step_lengths(vectors)
        free = step_lengths(sequence_steps(*data, SEQUENCE_EVERY)[0])
        mistakes = {
            "clip changes nothing: does it come after optimizer.step(), or before loss.backward()?": (
                lambda: float(found[0]) > 0.9 * 4 * float(free[0])
            ),
            "each tensor is clipped by itself; all of them together are to be as long as clip, with one factor": (
                lambda: bool((found / full - 6**0.5).abs().max() < 0.05)
            ),
            "the entries are clipped one by one (clip_grad_value_), which changes the direction": (
                lambda: float(found[0]) > 1.5 * full and float((vectors[1] - vectors[0]).abs().max()) < 1.02 * full
            ),
            "clip shortens the steps, but not to lr times clip: is the gradient clipped, or the loss?": (
                lambda: bool((found > 1.1 * full).all()) and float(found.max() / found.min()) > 1.02
            ),
            "the steps have the length of clip, without the learning rate": lambda: bool(
                (found / 0.002 - 1).abs().max() < 0.05
            ),
        }
        same_lengths(found, [full] * 8, mistakes)
        weights, _ = sequence_steps(*data, SEQUENCE_EVERY)
        along = F.cosine_similarity(vectors[1] - vectors[0], weights[1] - weights[0], dim=0)
        case.true(
            along > 0.999, "the clipped step has another direction than the gradient; scale all tensors by one factor"
        )
        vectors, _ = sequence_run(case, answer, *data, batch_size=SEQUENCE_EVERY, clip=1000.0)
        mistakes = {
            "gradients that are shorter than clip are made longer; the factor is at most 1": (
                lambda: float((vectors[1] - vectors[0]).norm()) > 10
            )
        }
        case.close(vectors[1], weights[1], what="the weights with clip=1000", mistakes=mistakes, tolerance=1e-3)

    def factors(**knobs):
        """Each step's share of a full one: with so small a rate the gradients are those of the untouched model."""
        vectors, _ = sequence_run(case, answer, *data, batch_size=SEQUENCE_EVERY, lr=small, **knobs)
        return step_lengths(vectors) / (small * still)

    def same_factors(found, right, mistakes):
        what = "the learning rate of each step, as a share of lr"
        case.close(found, torch.as_tensor(right, dtype=found.dtype), what=what, mistakes=mistakes, tolerance=0.02)

    def every_step(right, mistakes, **knobs):
        """Four steps between two checkpoints: the rates must follow the steps."""

        def weights(rates):
            return torch.stack(sequence_steps(*data, 16, rates)[0][::4])

        vectors, _ = sequence_run(case, answer, *data, **knobs)
        mistakes = {sentence: weights(rates) for sentence, rates in mistakes.items()}
        case.close(torch.stack(vectors), weights(right), what="the weights", mistakes=mistakes, tolerance=1e-3)

    small = 1e-3
    still = sequence_norms(*data)
    ramp, ones = torch.tensor([0.25, 0.5, 0.75, 1, 1, 1, 1, 1]), torch.ones(8)
    with case(
        "warmup: the steps grow evenly", points=1, hint="step i, counted from 0, has min(1, (i + 1) / warmup) of lr"
    ):
        found = factors(warmup=4)
        mistakes = {
            "warmup has no effect": ones,
            "the first step has no length: steps are counted from 0, and step 0 uses lr / warmup": (
                lambda: float(found[0]) < 1e-3
            ),
            "the learning rate goes on growing after the warmup; it ends at lr": lambda: float(found[-1]) > 1.2,
            "the learning rate stays too low after the warmup; it ends at lr": lambda: float(found[-1]) < 0.9,
            "the learning rate falls during the warmup": lambda: float(found[0]) > float(found[3]) * 1.1,
        }
        same_factors(found, ramp, mistakes)
        mistakes = {"warmup counts steps, whatever their number": ones}
        same_factors(factors(warmup=16), torch.arange(1, 9) / 16, mistakes)
        grown = [min(1, (i + 1) / 12) for i in range(32)]
        mistakes = {
            "the warmup counts checkpoints, or batches of 64; it counts steps": [
                min(1, (i // 4 + 1) / 12) for i in range(32)
            ],
            "with batches of 16 the warmup has no effect": None,
        }
        every_step(grown, mistakes, warmup=12)
    with case("decay: the steps shrink evenly towards 0", points=1, hint="step i of n has 1 - i / n of lr"):
        fall = 1 - torch.arange(8) / 8
        found = factors(decay=True)
        mistakes = {
            "decay has no effect": ones,
            "the last step has no length: step i of n has 1 - i/n, so the last has 1/n": 1 - torch.arange(8) / 7,
            "the first step is already shortened: step i, counted from 0, has 1 - i/n": 1 - torch.arange(1, 9) / 8,
            "the factors multiply up: set the learning rate anew from lr at each step": (
                lambda: alike(found, fall.cumprod(0).double(), 0.02)
            ),
            "the learning rate grows": lambda: float(found[-1]) > 1.02,
        }
        same_factors(found, fall, mistakes)
        mistakes = {
            "the decay goes from checkpoint to checkpoint; it goes from step to step": [
                1 - i // 4 / 8 for i in range(32)
            ],
            "with batches of 16 the decay has no effect": None,
        }
        every_step([1 - i / 32 for i in range(32)], mistakes, decay=True)
        mistakes = {
            "warmup and decay together: the warmup is lost": fall,
            "warmup and decay together: the decay is lost": ramp,
            "warmup and decay together: their factors are to be multiplied": torch.minimum(ramp, fall),
        }
        same_factors(factors(decay=True, warmup=4), fall * ramp, mistakes)


# -- training without spikes ------------------------------------------------------------------------------


def sequence_checkpoints(case, answer, strings, labels):
    """Call `train_smoothly` and demand checkpoints of the untouched model, the first one before any training."""
    states, untouched = answer(strings, labels), sequence_model().state_dict()
    case.true(states is not None, "the result is None (is a return statement missing?)")
    pair = isinstance(states, tuple) and len(states) == 2 and isinstance(states[0], list)
    demand_that(
        case, not pair, "the result is a pair; train_with returns checkpoints and norms, only the first is wanted"
    )
    case.true(isinstance(states, (list, tuple)) and len(states) > 0, "the result is not a list of checkpoints")
    for number, state in enumerate(states):
        good = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
        case.true(good, f"checkpoint {number} is not a dictionary of tensors, as `checkpoint(model)` makes it")
        case.true(
            state.keys() == untouched.keys(),
            f"checkpoint {number} is of another model: it has the tensors {sorted(state)}, the given one "
            f"{sorted(untouched)}. Model and seed stay as they are",
        )
        for name, value in untouched.items():
            case.true(
                state[name].shape == value.shape,
                f"checkpoint {number} is of another model: {name} has shape {tuple(state[name].shape)} instead of "
                f"{tuple(value.shape)}. Only the training may change, not the model or its size",
            )
    states = [{name: value.detach().float() for name, value in state.items()} for state in states]
    demand_untouched(case, states, untouched)
    wanted, given = len(strings) // SEQUENCE_EVERY + 1, len(strings)
    case.true(
        len(states) <= wanted,
        f"{len(states)} checkpoints for {given} strings, expected {wanted}: is there more than one pass through the "
        f"strings, or one checkpoint too often? Each string may be used in its turn only",
    )
    case.true(
        len(states) == wanted,
        f"{len(states)} checkpoints for {given} strings, expected {wanted}: one before training, then one after "
        f"every {SEQUENCE_EVERY} strings, so a batch has at most {SEQUENCE_EVERY}. What lies between would be unseen",
    )
    return states


def demand_untouched(case, states, untouched):
    """Demand that training starts from the weights that the given seed makes, and that every checkpoint is honest."""

    def same(a, b):
        return all(alike(a[name], b[name], 1e-6) for name in untouched)

    def vector(state):
        return torch.cat([state[name].flatten() for name in untouched]).double()

    still = [k for k in range(1, len(states)) if all(states[k][n].equal(states[k - 1][n]) for n in untouched)]
    fresh = same(states[0], untouched)
    demand_that(
        case,
        fresh or len(states) < 2 or len(still) < len(states) - 1,
        "all checkpoints are the same, and none is the untouched model: a state_dict holds the weights themselves, "
        "which later steps change. Store copies; the helper `checkpoint` makes them",
    )
    start = vector(untouched)
    others = {seed: vector(sequence_model(seed).state_dict()) for seed in SEQUENCE_OTHER_SEEDS}
    if not fresh:
        for seed, other in others.items():
            known = (vector(states[0]) - other).norm() < 1e-5
            demand_that(case, not known, f"the model's seed was changed, to {seed}; it stays {SEQUENCE_SEED}")
    demand_that(
        case,
        fresh,
        "the first checkpoint is not the untouched model that make_model() returns: it was taken after the training "
        "had begun, or the weights were changed before it",
    )
    demand_that(
        case,
        len(states) < 2 or len(still) < len(states) - 1,
        "all checkpoints are the untouched model: nothing is trained. Is the learning rate 0, is optimizer.step() "
        "missing, or does the optimizer hold the parameters of another model?",
    )
    moved = next((k for k in range(1, len(states)) if k not in still), 0)  # a warmup may begin with the rate 0
    if moved and vector(states[moved]).isfinite().all():
        first = vector(states[moved])
        near = [seed for seed, other in others.items() if 2 * (first - other).norm() < (first - start).norm()]
        demand_that(
            case,
            not near,
            f"checkpoint 0 is the untouched model, but checkpoint {moved} comes from another one, made with the seed "
            f"{near}: "
            "the model that is trained must be the one of make_model()",
        )
        demand_that(
            case,
            F.cosine_similarity(first, start, dim=0) > 0.3,
            f"checkpoint {moved} has next to nothing in common with the untouched model: was another model trained, or "
            "were the first steps so long that nothing of the initial weights is left?",
        )
    moves = max((k for k in range(1, len(states)) if k not in still), default=0)
    held = [k for k in still if moved < k < moves]  # a training that stops for good hides nothing
    case.true(
        not held,
        f"{len(held)} checkpoint(s) are the same as the one before although the training goes on later, the first is "
        f"checkpoint {min(held, default=0)}. Each must hold the weights after its own {SEQUENCE_EVERY} strings: bad "
        f"moments are not left out, held back or undone, and a batch has at most {SEQUENCE_EVERY} strings",
    )


def demand_same_start(case, runs):
    """Demand that the first strings, not something else, move the weights from the untouched model."""
    moves = []
    for states in runs:
        vectors = [torch.cat([value.flatten() for value in state.values()]).double() for state in states[:2]]
        moves.append(vectors[1] - vectors[0])
    moves = torch.stack(moves)
    shared = moves.mean(0).norm()  # strings that are drawn anew move the weights in different directions
    case.true(
        not (shared > 0.5 and shared > 0.95 * moves.norm(dim=1).mean()),
        "between checkpoint 0 and checkpoint 1 the weights change by the same large amount whatever the strings are: "
        "something else than training changes them. The model that is trained must be the one of make_model()",
    )


class SequenceCurve:
    """The loss of every checkpoint on fresh strings, and what became of the last one."""

    def __init__(self, states, strings, labels, last, classes):
        """Follow `states` on strings; `last` are more of them for the end, `classes` the numbers of the classes."""
        model, losses = sequence_model(), []
        with torch.no_grad():
            for state in states:
                model.load_state_dict(state)
                logits = model(strings)
                losses.append(F.cross_entropy(logits, labels))
            named = model(last[0]).argmax(1)
        labels = last[1]
        self.losses = torch.stack(losses).nan_to_num(math.inf, posinf=math.inf)
        self.lowest = self.losses.cummin(0)[0]
        self.rise = self.losses - self.lowest
        self.accuracy = (named == labels).float().mean().item()
        self.usual = (torch.tensor(classes)[named] == labels).float().mean().item()  # with the notebook's numbers


def sequence_curve(case, answer, sound):
    """Train on strings drawn for it and follow the training; the four classes are renamed at random."""
    case.true(
        len(sound) == 2,
        "not judged yet: first the checkpoints must be those of one pass with the given model, see the cases above",
    )
    classes = torch.randperm(4).tolist()
    data = sequence_data(case, SEQUENCE_STRINGS, classes=classes)
    states = sequence_checkpoints(case, answer, *data)
    curve, last = (sequence_data(case, count, classes=classes) for count in (400, 2000))
    return SequenceCurve(states, *curve, last, classes)


@check("train-smoothly", points=7, part="sequence_classification")
def train_smoothly(answer, case):
    """From the checkpoints alone: every loss is recomputed on strings that the answer has not seen."""
    sound, curve = [], None  # trained once, looked at twice
    with case("the given model and seed, a checkpoint every 64 strings", points=1, hint="start from make_model()"):
        runs = [sequence_checkpoints(case, answer, *sequence_data(case, 8 * SEQUENCE_EVERY)) for _ in range(4)]
        demand_same_start(case, runs)
        sound.append("model")
    with case(
        "one pass: checkpoint k depends on the first 64·k strings only",
        points=1,
        hint="go through the strings once, in their order",
    ):
        strings, labels = sequence_data(case, 8 * SEQUENCE_EVERY)
        half = len(strings) // 2
        later, later_labels = sequence_data(case, half)
        torch.manual_seed(0)
        before = sequence_checkpoints(case, answer, strings, labels)
        torch.manual_seed(0)
        after = sequence_checkpoints(
            case, answer, torch.cat([strings[:half], later]), torch.cat([labels[:half], later_labels])
        )
        places = range(half // SEQUENCE_EVERY + 1)
        changed = [k for k in places if not all(alike(before[k][name], after[k][name], 1e-5) for name in before[k])]
        case.true(
            not changed,
            f"checkpoint {min(changed, default=0)} of {len(before) - 1} changes when only strings after the first "
            f"{half} are exchanged. Are they shuffled, used more than once, or are checkpoints changed afterwards "
            "(averaged with later ones, chosen among several runs)?",
        )
        demand_that(
            case,
            not all(alike(before[-1][name], after[-1][name], 1e-7) for name in before[-1]),
            f"the last checkpoint stays the same when all strings after the first {half} are exchanged: these strings "
            "are not used. Each string is to be used in its turn",
        )
        sound.append("one pass")
    with case(
        "at least 99 % of fresh strings right at the end", points=2, hint="is it too slow, or does it stop early?"
    ):
        curve = sequence_curve(case, answer, sound)
        demand_learned(case, curve)
    with case("no spike while it learns", points=3, hint="what bounds the length of a single step?"):
        if len(sound) == 2:
            case.true(curve is not None, "the training did not come to its end, see the case above")
        demand_calm(case, curve or sequence_curve(case, answer, sound))


def demand_learned(case, curve):
    """Demand that the last checkpoint names the right class for 99 % of the strings."""
    right = f"{curve.accuracy:.1%} of fresh strings are right at the end"
    demand_that(
        case,
        curve.accuracy > 0.9 or curve.usual < 0.9,
        "the model has learned other class numbers than those it was given: it must be trained on the strings "
        "and labels in the arguments, not on strings or labels that the function makes itself",
    )
    last = curve.losses[-1].item()
    case.true(math.isfinite(last), f"{right}: the loss is no longer a number; the training broke down")
    case.true(
        curve.accuracy > 0.4,
        f"{right}, and the loss is {last:.2f}: it knows nothing yet (ln 4 = 1.39). The steps are too small, or "
        "so large that the training breaks down",
    )
    case.true(
        curve.accuracy >= 0.99,
        f"{right}, the loss is {last:.2f}, and the lowest was {curve.losses.min():.2f}: "
        + (
            "it had been better, and a spike threw it back"
            if last > 2 * curve.losses.min() + 0.05
            else "calm is not enough. The steps are too small, or shrink too early, for the strings that there are"
        ),
    )


def demand_calm(case, curve):
    """Demand that no loss rises by more than the threshold above the lowest one before, and that the loss falls."""
    case.true(
        curve.accuracy > 0.9 or curve.usual < 0.9, "the training is not that of the given labels, see the case above"
    )
    above = curve.rise > SEQUENCE_ALLOWED
    if above.any():
        top = int(curve.rise.argmax())
        starts = above & ~torch.cat([torch.tensor([False]), above[:-1]])
        first = int(above.nonzero()[0])
        text = f"{int(starts.sum())} spike(s) above {SEQUENCE_ALLOWED:g}. The highest is at "
        text += f"checkpoint {top}, after "
        text += (
            f"{top * SEQUENCE_EVERY} strings: the loss is {curve.losses[top]:.2f} there, {curve.rise[top]:.2f} above "
        )
        text += f"the lowest before. The first one comes after {first * SEQUENCE_EVERY} strings, "
        if curve.lowest[first] > 1.2:
            text += "when hardly anything is learned yet"
        elif curve.lowest[first] > 0.1:
            text += "while the model is learning"
        else:
            text += "when nearly everything is learned"
        if curve.rise.max() < 2 * SEQUENCE_SPIKE:
            text += ". Not by much: with other strings it may pass, but the procedure should hold for all. Look at the "
            text += "margins, in the cell below the check"
        case.true(False, text)
    last = curve.losses[-1].item()
    case.true(
        last < 0.5 * math.log(4),
        f"no spike, but too little is learned: the loss is {last:.2f} at the end. A curve that does not fall has "
        "nowhere to rise from",
    )
