"""The checks of Homework 2: one section for each notebook."""

import itertools
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.functional import jacobian

from common.checks import alike, always, check

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
            "F belongs in front: (F, height, width)": lambda: (*plus(0)[1:], filters),
            "F is missing: (F, height, width)": lambda: plus(0)[1:],
        }
    )


@check("convolution-output-size", points=5, part="theory")
def convolution_output_size(answer, case):
    """Against the shape that `F.conv2d` returns."""

    def trial(size, kernel, filters, padding=(0, 0), stride=(1, 1), dilation=(1, 1)):
        settings = size, kernel, filters, padding, stride, dilation
        found = answer(*settings)
        case.true(found is not None, "the result is None (is a return statement missing?)")
        case.true(
            isinstance(found, (tuple, list)), f"the result is a {type(found).__name__}, expected (F, height, width)"
        )
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


@check("correlate-1d", points=2, part="theory")
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


@check("convolve-1d", points=2, part="theory")
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
        x, w = double(case, 4), double(case, 4)
        unequal = always("x * w and w * x differ, but a convolution commutes")
        case.close(answer(w, x), answer(x, w), mistakes=unequal, tolerance=DERIVED)


# -- the layer f and its derivatives ----------------------------------------------------------------------


def conv_layer(x, W, s, flip=False):
    """Return f (n', F) from x (n, d) and W (F, k, d), by torch's own convolution."""
    taps = W.flip(1) if flip else W
    return F.conv1d(x.T[None], taps.mT, stride=s)[0].T


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
            mistakes = {
                "it is transposed: a matrix that maps n numbers to m has m rows": right[::-1],
                "the gate has one number for each entry of h": (1,),
                "a row vector in numerator layout has one row: (1, m)": (m,) if key == "dl_dh" else right,
                "numerator layout: one row for each entry of what is differentiated, here a number": (m, 1),
                "the gradient of W_x is to be given in the shape of W_x, not as a row of m·n numbers": (1, m * n),
                "every entry of c[t] depends on every entry of h[t-1], through W_h: a matrix": (m,),
                "what W_h multiplies is h[t-1], and c[t] is multiplied entry by entry with h[t-1]": (m, n),
                "what this matrix multiplies is x[t], which has n entries": (m, m),
            }
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
        case.true(isinstance(given, list), f"the result is a {type(given).__name__}, expected a list of pairs")
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
        back = sorted(pair for pair in given - right if pair[::-1] in right)
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
        case.true(bool((gate > 0).all() and (gate < 1).all()), "c[t] is not between 0 and 1: is the sigmoid there?")
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
        case.close(answer(J), by_definition(J), what=what, mistakes=mistakes_of(J), tolerance=DERIVED)

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

    right = each.sum(0)
    return {
        "only the last step counts; W_x is used at every step, so add over all of them": each[-1],
        "the first step is left out of the sum": lambda: each[1:].sum(0),
        "the last step is left out of the sum": lambda: each[:-1].sum(0),
        "only the first step counts (= instead of +=?)": lambda: each[0],
        "the average over the steps is taken; the chain rule adds": lambda: right / len(xs),
        "nothing flows from h[t] back to h[t-1]: each step gets only its own ∂ℓ/∂h[t]": by(cut_state),
        "∂ℓ/∂h[t] is used for t = K only; every step brings its own": by(gated_model, last),
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


def wrong_step(answer, case, steps=4, m=3):
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

    def seconds(numbers, repeats):
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            answer(*numbers)
            taken.append(time.perf_counter() - start)
        return min(taken)

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
        short, long = (gated_sequence(case, steps, 2, 2) for steps in (20, 400))
        right = step_by_step(*short)[0].sum(0)
        not_yet = always("the result itself is not right yet, so its time says nothing")
        case.close(answer(*short), right, mistakes=not_yet, tolerance=DERIVED)
        ratio = math.inf
        for _ in range(3):  # the machine may be busy with something else
            if ratio > 60:
                ratio = min(ratio, seconds(long, 1) / seconds(short, 3))
        case.true(
            ratio < 60,
            "a sequence 20 times as long takes more than 60 times as long: the products of Jacobians are made anew "
            "for each t. Carry the gradient along: that of h[t-1] follows from that of h[t] in one step",
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
        case.close(weights.sum()[None], torch.ones(1, dtype=torch.float64), what="the sum of a[t]", mistakes=mistakes)
    with case("AttentionRNN(2)", points=1, hint="w_i = q_i · k_i for each slot; then softargmax; then add a_i v_i"):
        demand(3, 4, 2, 2)
        demand(2, 3, 5, 2)
    with case("AttentionRNN(k) for other k, sizes of 1", points=1, hint="let the lists say how many slots there are"):
        for sizes in ((3, 4, 2, 1), (2, 3, 3, 5), (1, 1, 1, 2), (4, 4, 4, 3)):
            demand(*sizes)


def infinite_model(xs, Q, K, V, memory=None, empty=0, reverse=False):
    """Return the states and weights of AttentionRNN(∞), or of one that sees only the latest `memory` states.

    `empty` is how many states of zeros stand before the first.
    """
    steps, m = len(xs), len(V[0])
    states, rows = xs.new_zeros(empty, m), []
    history = [*states]
    for x in xs:
        seen = history[::-1][:memory]
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
        case.close(weights.sum(1), one, what="the sum of each row of weights", tolerance=DERIVED)
        future = "weights stand beyond the states that exist: row t has t numbers (counted from 1), then zeros"
        case.true(not weights.triu(1).any(), future)
    with case("any length", points=1, hint="the same three matrices for all states"):
        for sizes in ((2, 3, 4, 2), (5, 2, 3, 4), (9, 1, 1, 1)):
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
        }
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
        }
        mistakes = mistakes if len(w) > 1 else {}
        what = f"∂a/∂w for {len(w)} scores"
        case.close(answer(w), right, what=what, mistakes=mistakes, tolerance=DERIVED)

    with case("agrees with autograd", points=1, hint="differentiate e^{w_i} / Σ e^{w_j} by w_i, and by another w_j"):
        for size in (2, 3, 6):
            demand(double(case, size))
    with case("large scores, and a single one", points=1, hint="use torch.softmax, which does not overflow"):
        demand(torch.tensor([1000.0, 999.0, 998.5], dtype=torch.float64))
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
                mistakes |= {
                    f"this is the derivative by h[t-{other}]; asked is that by h[t-{i}], states[{i - 1}]": (
                        lambda other=other: derivative(other, x, states, Q, K, V)
                    )
                }
        if n == m:
            mistakes |= {
                "this is the derivative by x[t]: slot 0 is the input, slot i the state h[t-i]": lambda: jacobian(
                    lambda x: attention_model(x, states, Q, K, V)[0], x
                )
            }
        result = answer(i, x, states, Q, K, V)
        if m > 1 and not alike_tensor(result, right):
            value = derivative(i, x, states, [0 * W for W in Q], [0 * W for W in K], V)
            _, a = attention_model(x, states, Q, K, V)
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
            "nothing flows back: ∂ℓ/∂h[T] has a part through each later state": lambda: direct,
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
            "the direct gradient is added once for each later state": lambda: (
                right + direct * torch.arange(steps).flip(0)[:, None]
            ),
            "only ∂ℓ/∂h of the first state is there; asked is one for each": lambda: right[0],
            "the first state is left without what flows back": lambda: torch.cat([direct[:1], right[1:]]),
        }

    def demand(steps, m, reach):
        direct, jacobians = draw(steps, m, reach)
        text = f"∂ℓ/∂h for N = {steps}, m = {m}, k = {reach}"
        right = linear_chain(direct, jacobians)
        mistakes = mistakes_of(direct, jacobians) if steps > 1 else {}
        result = answer(direct, jacobians)
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
                "the sign is wrong: a cross-entropy is not negative": -right,
            }
            number("loss_sure", p, sure, right, mistakes)


@check("clip-to-norm", points=2, part="theory")
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
            }
            mistakes = {name: wrong for name, wrong in mistakes.items() if not torch.allclose(wrong, right, atol=1e-6)}
            what = f"gradient {place} {'above' if large else 'below'} max_norm"
            case.close(found[place], right, what=what, mistakes=mistakes, tolerance=1e-5)

    def draw():
        return [double(case, 3, 4), double(case, 5), double(case, 2)]

    with case("a long gradient keeps its direction", points=1, hint="one norm over all entries of all gradients"):
        demand([10 * gradient for gradient in draw()], 2.0, True)
        demand(draw(), 0.5, True)
        before = draw()
        (after, _) = answer.inputs_after(before, 0.5)
        same = all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
        case.true(same, "your code changes the gradients in place; make new tensors instead")
    with case("a short one stays as it is", points=1, hint="the factor is never above 1"):
        demand([0.01 * gradient for gradient in draw()], 2.0, False)
        demand([torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)], 1.0, False)
