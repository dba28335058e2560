"""The checks of Homework 1: one section for each notebook."""

import itertools
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn
from torch.autograd.functional import jacobian

from common.checks import alike, always, check, kind_of

# ==============================================================================================================
# theory
#
# The checks of Homework 1, theory.
#
# Shapes: n inputs, h hidden units, k outputs, B examples. A single example is a column, (n, 1); a batch has one example
# in each row, (B, n).
#
# The oracle of every derivation is `torch.autograd` in float64. Its mistakes are found in the same way: the network
# is differentiated once more with a wrong slope in place of the right one (`with_slope`), so no formula of an answer
# stands here.
# ==============================================================================================================


F64 = torch.float64
TINY = 1e-6  # how far a derivation may be off, as a share of the largest value
SIZES = ((3, 4, 2), (2, 5, 3), (4, 3, 1), (1, 1, 1), (3, 2, 2))  # (n, h, k)
OTHER_SIZES = "nothing may be fixed to one size; a column of one entry is still (1, 1)"


# -- the network ------------------------------------------------------------------------------------------


def five_relu(z):
    """The nonlinearity of the regression network."""
    return 5 * F.relu(z)


def as_it_is(z):
    """The output function of the regression network."""
    return z


def through_layers(parameters, rows, f, g):
    """Return z1, z2, z3 and y_hat, each with one example in a row."""
    W1, b1, W2, b2 = parameters
    z1 = F.linear(rows, W1, b1.flatten())
    z2 = f(z1)
    z3 = F.linear(z2, W2, b2.flatten())
    return z1, z2, z3, g(z3)


def with_slope(f, slope):
    """Return a function with the values of `f` that autograd differentiates as if its slope were `slope(z)`."""

    def function(z):
        return f(z).detach() + slope(z).detach() * (z - z.detach())

    return function


def slopes_of_layers(parameters, rows, upstream, f, g):
    """Return the gradients of `sum(y_hat * upstream)`: of the four parameters, then of z1, z2 and z3."""
    parameters = [one.clone().requires_grad_() for one in parameters]
    z1, z2, z3, y_hat = through_layers(parameters, rows, f, g)
    return torch.autograd.grad(y_hat, (*parameters, z1, z2, z3), upstream, allow_unused=True, materialize_grads=True)


def draw_network(case, n, h, k):
    """Draw a column x and W1, b1, W2, b2 such that hidden units 0, 2, 4, … are on at x, and the others off."""
    x, W1, W2, b2 = (case.randn(*shape, dtype=F64) for shape in ((n, 1), (h, n), (k, h), (k, 1)))
    sign = torch.ones(h, 1, dtype=F64)
    sign[1::2] = -1
    b1 = sign * (0.3 + case.randn(h, 1, dtype=F64).abs()) - W1 @ x
    return x, W1, b1, W2, b2


def to_the_kink(rows, parameters):
    """Return rows and parameters such that z1 of hidden unit 0 is exactly 0 at the first row, however it is summed."""
    rows, (W1, b1, W2, b2) = rows.clone(), (one.clone() for one in parameters)
    before = rows[0].clone()
    rows[0] = torch.arange(1.0, rows.shape[1] + 1)
    if len(rows) == 1:
        b1 = b1 + W1 @ (before - rows[0])[:, None]  # the other units stay on or off
    W1[0], b1[0] = 1.0, -rows[0].sum()
    return rows, [W1, b1, W2, b2]


def draw_batch(case, B, n, h, k):
    """Draw rows X (B, n) and W1, b1, W2, b2 such that each hidden unit is on for half of several rows."""
    x, W1, b1, W2, b2 = draw_network(case, n, h, k)
    rows = torch.cat([x.T, case.randn(B - 1, n, dtype=F64)])
    if B > 1:
        sorted_z1 = (rows @ W1.T).sort(dim=0).values
        b1 = -sorted_z1[B // 2 - 1 : B // 2 + 1].mean(0)[:, None]
    return rows, [W1, b1, W2, b2]


def jacobian_of_columns(function, column):
    """Return the Jacobian in numerator layout of a function from columns to columns."""
    return jacobian(function, column)[:, 0, :, 0]


def columns_through_layers(x, parameters, f, g):
    """Return z1, z2, z3 and y_hat for a column."""
    return tuple(z.T for z in through_layers(parameters, x.T, f, g))


def of_sizes(n, h, k):
    """Name the sizes in a message."""
    return f"(n = {n}, h = {h}, k = {k})"


def turned(right):
    """Return, as a mistake, that a matrix is transposed."""
    return {"this is the transpose of what is asked: a row for each entry above the ∂ line (numerator layout)": right.T}


def as_vector(jacobian_matrix):
    """Return, as mistakes, that the diagonal stands for a diagonal matrix."""
    diagonal = jacobian_matrix.diagonal()
    sentence = (
        "this is the diagonal alone. The Jacobian of a function that acts on each entry is a square matrix with these "
        "numbers on its diagonal and zeros elsewhere"
    )
    return {
        sentence: diagonal[:, None],
        sentence + " (and not a row of them)": diagonal[None],
        sentence + " (and not a flat list)": diagonal,
        "every column is the same: the off-diagonal entries must be 0, for entry i depends on entry i only": (
            diagonal[:, None].expand(len(diagonal), len(diagonal))
        ),
        "every row is the same: the off-diagonal entries must be 0, for entry i depends on entry i only": (
            diagonal.expand(len(diagonal), len(diagonal))
        ),
    }


FIVE_RELU_SLOPES = {
    "the factor 5 of f is missing from its derivative": lambda z: (z > 0).double(),
    "the derivative of f is missing: what comes back passes through f as if its slope were 1": torch.ones_like,
    "the slope of f is taken as 5 everywhere; units with z1 < 0 are off and pass nothing": lambda z: 5 + 0 * z,
    "on and off are exchanged: f has its slope where z1 > 0": lambda z: 5.0 * (z < 0),
    "z2 = f(z1) stands where its derivative f'(z1) belongs": five_relu,
    "z1 stands where the derivative f'(z1) belongs": as_it_is,
    "the factor 5 is there twice": lambda z: 25.0 * (z > 0),
    "the slope of f is 1 where a unit is off; there it is 0": lambda z: torch.where(z > 0, 5.0, 1.0).double(),
    "where z1 is exactly 0 the slope of f is 0, as on its left side: ask z1 > 0, not z1 ≥ 0": lambda z: 5.0 * (z >= 0),
}

TANH_SLOPES = {
    "1 - z1²: the slope of tanh is 1 - tanh², of its output z2, not of its input": lambda z: 1 - z**2,
    "tanh is applied twice: z2 is tanh(z1) already": lambda z: 1 - z.tanh().tanh() ** 2,
    "1 - z2: the square is missing from the slope of tanh": lambda z: 1 - z.tanh(),
    "z2 (1 - z2) is the slope of a sigmoid; f is tanh here": lambda z: z.tanh() * (1 - z.tanh()),
    "σ(z1)(1 - σ(z1)) is the slope of a sigmoid; f is tanh here": lambda z: z.sigmoid() * (1 - z.sigmoid()),
    "the derivative of tanh is missing: what comes back passes through f as if its slope were 1": torch.ones_like,
    "tanh itself stands where its derivative belongs": torch.tanh,
    "the slope of tanh has the wrong sign: it never falls": lambda z: z.tanh() ** 2 - 1,
    "1 + z2²: the slope of tanh is at most 1": lambda z: 1 + z.tanh() ** 2,
    "the slope of tanh is squared, or used twice": lambda z: (1 - z.tanh() ** 2) ** 2,
    "this is the slope of f = 5 ReLU, from the regression network; f is tanh now": lambda z: 5.0 * (z > 0),
    "this is the slope of a ReLU; f is tanh now": lambda z: 1.0 * (z > 0),
}


def sequence_of(case, result, *names):
    """Demand a tuple or list with one part for each name."""
    wanted = f"a tuple ({', '.join(names)})"
    case.true(isinstance(result, tuple | list), f"the result is a {kind_of(result)}, expected {wanted}")
    case.true(len(result) == len(names), f"the result has {len(result)} parts, expected {wanted}")
    return result


def number(case, value, what):
    """Demand one number, as a float or as a tensor that holds one, and return it as a tensor without axes."""
    if isinstance(value, torch.Tensor):
        one = f"{what} has shape {tuple(value.shape)}; one number is asked"
        case.true(value.numel() == 1, one)
        return value.detach().flatten()[0]
    forgotten = " (is a return statement missing?)" if value is None else ""
    case.true(isinstance(value, int | float), f"{what} is {value!r}{forgotten}, expected a number")
    return torch.tensor(value, dtype=F64)


# -- the five steps ---------------------------------------------------------------------------------------


def descend(parameters, batches, lr, *, keep=False, late=False, sign=1, loss_of=F.mse_loss, frozen=False):
    """Run gradient descent without an optimizer, with one thing changed for each option.

    Args:
        parameters: W1, b1, W2, b2.
        batches: pairs (X, Y).
        lr: step size.
        keep: gradients pile up, as without `zero_grad`.
        late: each update takes the gradient of the batch before it.
        sign: -1 climbs.
        loss_of: the loss.
        frozen: nothing is updated.
    """
    parameters, losses = [one.clone() for one in parameters], []
    held = [torch.zeros_like(one) for one in parameters]
    for X, Y in batches:
        leaves = [one.requires_grad_() for one in parameters]
        loss = loss_of(through_layers(leaves, X, F.relu, as_it_is)[3], Y)
        found = torch.autograd.grad(loss, leaves)
        before, held = held, [old + new if keep else new for old, new in zip(held, found, strict=True)]
        used = before if late else held
        step = 0.0 if frozen else sign * lr
        parameters = [(one - step * gradient).detach() for one, gradient in zip(leaves, used, strict=True)]
        losses.append(loss.item())
    return parameters, losses


DESCENT_MISTAKES = {
    "the gradients of earlier batches are still there: each backward pass adds to .grad": {"keep": True},
    "each update uses the gradient of the batch before it: the optimizer steps before the backward pass": {
        "late": True
    },
    "the parameters do not change: the optimizer's step is missing, or it finds no gradients (they are cleared "
    "after the backward pass, or there was none)": {"frozen": True},
    "the step goes uphill: the loss is to fall": {"sign": -1},
    "the loss is the sum of the squared errors, not their mean": {"loss_of": lambda a, b: ((a - b) ** 2).sum()},
    "the loss is half the mean squared error; use F.mse_loss": {"loss_of": lambda a, b: ((a - b) ** 2).mean() / 2},
    "the loss is the mean absolute error; use F.mse_loss": {"loss_of": F.l1_loss},
}


@check("five-steps", points=5, part="theory")
def five_steps(answer, case):
    """Against gradient descent without an optimizer."""

    def draw(count, B=4):
        _, parameters = draw_batch(case, B, 3, 5, 2)
        return parameters, [(case.randn(B, 3, dtype=F64), case.randn(B, 2, dtype=F64)) for _ in range(count)]

    def demand_parameters(parameters, batches, lr):
        result, _ = sequence_of(case, answer(parameters, batches, lr), "parameters", "losses")
        found = sequence_of(case, result, "W1", "b1", "W2", "b2")
        right, _ = descend(parameters, batches, lr)
        count = len(batches)
        for name, one, expected, position in zip(("W1", "b1", "W2", "b2"), found, right, range(4), strict=True):
            mistakes = {
                sentence: lambda options=options, position=position: descend(parameters, batches, lr, **options)[0][
                    position
                ].reshape(expected.shape)  # noqa: B023
                for sentence, options in DESCENT_MISTAKES.items()
            }
            mistakes |= {
                "only the first batch is used: there is one update for each batch": lambda position=position: descend(
                    parameters, batches[:1], lr
                )[0][position],
                "only the last batch is used: there is one update for each batch": lambda position=position: descend(
                    parameters, batches[-1:], lr
                )[0][position],
            }
            what = f"{name} after {count} {'batch' if count == 1 else 'batches'}"
            one = one.reshape(expected.shape) if getattr(one, "numel", lambda: 0)() == expected.numel() else one
            case.close(one, expected, what=what, mistakes=mistakes, tolerance=TINY)

    with case("one loss for each batch, before its update", points=2, hint="forward pass, then F.mse_loss"):
        parameters, batches = draw(3)
        _, losses = sequence_of(case, answer(parameters, batches, 0.01), "parameters", "losses")
        case.true(len(losses) == 3, f"there are {len(losses)} losses for 3 batches; append one for each batch")
        found = torch.tensor([float(loss) for loss in losses], dtype=F64)
        mistakes = {
            sentence: lambda options=options: torch.tensor(descend(parameters, batches, 0.01, **options)[1], dtype=F64)
            for sentence, options in DESCENT_MISTAKES.items()
        }
        expected = torch.tensor(descend(parameters, batches, 0.01)[1], dtype=F64)

        def after():
            return torch.tensor(
                [
                    F.mse_loss(through_layers(descend(parameters, batches[: i + 1], 0.01)[0], *pair)[3], Y).item()
                    for i, (X, Y) in enumerate(batches)
                    for pair in [(X, F.relu, as_it_is)]
                ],
                dtype=F64,
            )

        mistakes |= {"each loss is measured after the update; it belongs to the prediction before it": after}
        case.close(found, expected, what="the losses", mistakes=mistakes, tolerance=TINY)
    with case("one batch moves the parameters as it should", points=1, hint="old value minus lr times gradient"):
        demand_parameters(*draw(1), 0.05)
    with case("so do several batches", points=2, hint="what does a backward pass do with the gradients that it finds?"):
        demand_parameters(*draw(4), 0.02)


@check("forgotten-zero-grad", points=3, part="theory")
def forgotten_zero_grad(answer, case):
    """Against torch itself, which is never told to clear a gradient."""

    def with_torch(start, lr, steps):
        w, path = torch.tensor(start, dtype=F64, requires_grad=True), [start]
        for _ in range(steps):
            (w**2 / 2).backward()
            with torch.no_grad():
                w -= lr * w.grad
            path.append(w.item())
        return torch.tensor(path, dtype=F64)

    def by_rule(start, steps, rule):
        path, held = [start], 0.0
        for _ in range(steps):
            held, new = rule(held, path[-1])
            path.append(new)
        return torch.tensor(path, dtype=F64)

    def demand(start, lr, steps):
        right = with_torch(start, lr, steps)
        result = answer(start, lr, steps)
        if isinstance(result, list | tuple):
            result = torch.tensor([float(one) for one in result], dtype=F64)
        mistakes = {
            "this is the path with cleared gradients; nobody clears them here": lambda: by_rule(
                start, steps, lambda held, w: (0, w - lr * w)
            ),
            "the steps go uphill: the update subtracts": lambda: by_rule(
                start, steps, lambda held, w: (held + w, w + lr * (held + w))
            ),
            "the slope of w²/2 is w, not 2w": lambda: by_rule(
                start, steps, lambda held, w: (held + 2 * w, w - lr * (held + 2 * w))
            ),
            "each update uses the sum of the slopes before it, without the newest one": lambda: by_rule(
                start, steps, lambda held, w: (held + w, w - lr * held)
            ),
            "lr is not used": lambda: by_rule(start, steps, lambda held, w: (held + w, w - (held + w))),
            "the slope is always taken at the start; it belongs to where w is now": lambda: by_rule(
                start, steps, lambda held, w: (held + start, w - lr * (held + start))
            ),
            "the gradients are averaged over the steps so far; backward adds them up": lambda: torch.tensor(
                averaged(start, lr, steps), dtype=F64
            ),
            "the path begins after the first step; it begins at the start": lambda: with_torch(start, lr, steps)[1:],
            "one step is missing at the end: the start and a value after each step": lambda: right[:-1],
            "there is one step too many": lambda: with_torch(start, lr, steps + 1),
            "these are the gradients that pile up, not the values of w": lambda: torch.cat(
                [torch.zeros(1, dtype=F64), right[:-1].cumsum(0)]
            ),
            "only the last value is returned; the whole path is asked": lambda: right[-1:],
        }
        what = f"the path from {start:g} with lr = {lr:g}"
        case.close(result, right, what=what, mistakes=mistakes, tolerance=TINY)

    def averaged(start, lr, steps):
        path = [start]
        for _ in range(steps):
            path.append(path[-1] - lr * sum(path) / len(path))
        return path

    with case("the first two steps", points=1, hint="after the first step .grad is not 0"):
        demand(1.0, 0.5, 2)
    with case("many steps, from anywhere", points=2, hint="keep the sum of all slopes so far beside w"):
        demand(2.0, 0.1, 40)
        demand(float(case.randn(1)), 0.25, 17)


# -- forward ----------------------------------------------------------------------------------------------


@check("forward-variables", points=4, part="theory", autograd=False)
def forward_variables(answer, case):
    """Against `torch.nn.functional.linear` on rows."""
    names = ("z1", "z2", "z3", "y_hat")

    def mistakes_for(x, W1, b1, W2, b2):
        right = dict(zip(names, columns_through_layers(x, (W1, b1, W2, b2), five_relu, as_it_is), strict=True))
        none1, none2 = torch.zeros_like(b1), torch.zeros_like(b2)

        def net(f, g=as_it_is, first=b1, last=b2):
            return dict(zip(names, columns_through_layers(x, (W1, first, W2, last), f, g), strict=True))

        wrong = {
            "the bias b1 is missing": net(five_relu, first=none1),
            "the bias b2 is missing": net(five_relu, last=none2),
            "the bias b1 is subtracted": net(five_relu, first=-b1),
            "the factor 5 of f is missing": net(F.relu),
            "the nonlinearity f is missing": net(as_it_is),
            "f is 5 z, without the ReLU": net(lambda z: 5 * z),
            "f keeps the negative part of z1 and drops the positive one": net(lambda z: -five_relu(-z)),
            "f takes the absolute value": net(lambda z: 5 * z.abs()),
            "f is 1 or 0 (or 5 or 0): a step, not a ramp": net(lambda z: 5.0 * (z > 0).double()),
            "the ReLU cuts at 5 instead of being multiplied by 5": net(lambda z: z.clamp(0, 5)),
            "f is max(5, z), not 5 max(0, z)": net(lambda z: z.clamp(min=5)),
            "f belongs to the hidden layer only; here it acts on the output too": net(five_relu, five_relu),
            "a ReLU acts on the output; g leaves z3 as it is": net(five_relu, F.relu),
            "a sigmoid acts on the output; g leaves z3 as it is in the regression network": net(
                five_relu, torch.sigmoid
            ),
        }
        return right, {
            name: {sentence: values[name] for sentence, values in wrong.items()}
            | {
                f"this is {other}, not {name}": value
                for other, value in right.items()
                if other != name and not (value.shape == right[name].shape and torch.equal(value, right[name]))
            }
            | {
                f"{name} is a flat list; it is a column, with two axes": right[name].flatten(),
                f"{name} is a row; it is a column": right[name].T,
            }
            for name in names
        }

    def demand(position, sizes):
        name = names[position]
        for n, h, k in sizes:
            inputs = draw_network(case, n, h, k)
            inputs[2][0] += 6  # a z1 above 5, so that a ReLU that is cut there shows
            right, mistakes = mistakes_for(*inputs)
            found = case.parts(answer(*inputs), *names)[position]
            square = "a column and a flat list (or a row) are added somewhere: the result is a square"
            mistakes[name] |= {square: lambda found=found: found.ndim == 2 and found.shape[1] > 1}
            case.close(
                found, right[name], what=f"{name} for {of_sizes(n, h, k)}", mistakes=mistakes[name], tolerance=TINY
            )

    with case("z1 comes out of the first linear layer", points=1, hint="a matrix times a column, plus a column"):
        demand(0, SIZES[:2])
    with case("z2 comes out of f", points=1, hint="f acts on each entry: 5 times the positive part"):
        demand(1, SIZES[:2])
    with case("z3 comes out of the second linear layer", points=1, hint="what is the input of the second layer?"):
        demand(2, SIZES[:2])
    with case("y_hat comes out of g, for any sizes", points=1, hint=OTHER_SIZES):
        demand(3, SIZES)
        x, *parameters = draw_network(case, 3, 4, 2)
        x = torch.cat([x, case.randn(3, 5, dtype=F64)], dim=1)
        right = columns_through_layers(x, parameters, five_relu, as_it_is)
        for name, found, expected in zip(names, case.parts(answer(x, *parameters), *names), right, strict=True):
            case.close(found, expected, what=f"{name} for 6 columns side by side", tolerance=TINY)


@check("layout-shapes", points=4, part="theory")
def layout_shapes(answer, case):
    """Against the number of entries above and below each ∂."""
    groups = {
        "the parameters and forward variables": (1, ("W1", "b1", "W2", "Z1"), "a matrix has a row for each output"),
        "the Jacobians": (
            2,
            ("dz1_dx", "dz2_dz1", "dz3_dz2", "dy_hat_dx"),
            "a row for each entry of what is above the ∂ line, a column for each entry of what is below it",
        ),
        "the gradients of the loss": (
            1,
            ("dl_dy_hat", "dl_dz1", "dl_dW1", "dJ_dZ1"),
            "a scalar has one entry; the gradient for a weight matrix takes the shape of the matrix",
        ),
    }

    def right_shapes(n, h, k, B):
        rows, parameters = draw_batch(case, B, n, h, k)
        z1, z2, z3, y_hat = through_layers(parameters, rows[:1], five_relu, as_it_is)
        columns = {"x": rows[:1], "z1": z1, "z2": z2, "z3": z3, "y_hat": y_hat, "l": y_hat[0, 0]}
        found = {name: tuple(one.shape) for name, one in zip(("W1", "b1", "W2"), parameters, strict=False)}
        found["dl_dW1"] = tuple(parameters[0].shape)
        found["Z1"] = found["dJ_dZ1"] = tuple(through_layers(parameters, rows, five_relu, as_it_is)[0].shape)
        for _, names, _ in groups.values():
            for name in names:
                if name not in found:
                    above, below = name.removeprefix("d").split("_d")
                    found[name] = (columns[above].numel(), columns[below].numel())
        return found

    def explain(name, given, right, sizes):
        given_for = f"{name} is {given} for {sizes}"
        if not isinstance(given, tuple | list) or not all(isinstance(one, int) for one in given):
            return f"{given_for}; write a tuple of integers"
        if tuple(given) == right[::-1]:
            turned_shape = "the two sizes are exchanged"
            if name in ("Z1", "dJ_dZ1"):
                return f"{given_for}: {turned_shape}; a batch has one example in each row"
            if name.startswith("d") and name != "dl_dW1":
                return f"{given_for}: {turned_shape}; that is denominator layout"
            return f"{given_for}: {turned_shape}"
        if len(given) == 1:
            return f"{given_for}: one axis only. Columns, rows and matrices all have two"
        if len(given) == 0:
            return f"{given_for}: no axis at all; in this homework even a row of one entry has two"
        if name == "dl_dW1" and len(given) > 2:
            return f"{given_for}; we write this gradient in the shape of W1"
        if name in ("W1", "b1", "W2") or len(given) != 2:
            return f"{given_for}, which is not right"
        if name in ("Z1", "dJ_dZ1"):
            return f"{given_for}, which is not right: one row for each example of the batch"
        above, below = name.removeprefix("d").split("_d")
        if given[0] != right[0]:
            return f"{given_for}: the number of rows is not right; how many entries has {above}?"
        return f"{given_for}: the number of columns is not right; how many entries has {below}?"

    for title, (points, names, hint) in groups.items():
        with case(f"{title}: {', '.join(names)}", points=points, hint=hint):
            for n, h, k, B in ((3, 5, 2, 7), (4, 2, 6, 3), (2, 7, 1, 5)):
                given, right = answer(n, h, k, B), right_shapes(n, h, k, B)
                case.true(isinstance(given, dict), f"the result is a {kind_of(given)}, expected a dict")
                for name in names:
                    case.true(name in given, f"there is no entry {name!r}")
                    sizes = f"n = {n}, h = {h}, k = {k}, B = {B}"
                    message = explain(name, given[name], right[name], sizes)
                    fits = isinstance(given[name], tuple | list) and tuple(given[name]) == right[name]
                    case.true(fits, message)


# -- Jacobians --------------------------------------------------------------------------------------------


@check("layer-jacobians", points=5, part="theory", autograd=False)
def layer_jacobians(answer, case):
    """Against `torch.autograd.functional.jacobian`, layer by layer."""
    names = ("dz1_dx", "dz2_dz1", "dz3_dz2", "dy_hat_dz3")

    def layers(x, W1, b1, W2, b2):
        z1, z2, z3, y_hat = columns_through_layers(x, (W1, b1, W2, b2), five_relu, as_it_is)
        first = jacobian_of_columns(lambda one: F.linear(one.T, W1, b1.flatten()).T, x)
        second = jacobian_of_columns(lambda one: F.linear(one.T, W2, b2.flatten()).T, z2)
        right = first, jacobian_of_columns(five_relu, z1), second, torch.eye(len(z3), dtype=F64)
        slopes = {
            sentence: jacobian_of_columns(with_slope(five_relu, slope), z1)
            for sentence, slope in FIVE_RELU_SLOPES.items()
        }
        off_by = "f acts on each entry by itself: entry i of z2 depends on entry i of z1 only"
        k = len(z3)
        linear = "the Jacobian of a linear layer does not hold its "
        mistakes = (
            turned(first)
            | {
                linear + "input x": W1 * x.T,
                linear + "bias": W1 + b1,
                linear + "output z1": z1 @ x.T,
                "the factor 5 belongs to f; the linear layer has none": 5 * W1,
                "this is W2; the first layer has W1": W2,
                "f is not part of the first linear layer: this is dz2/dx": lambda: right[1] @ first,
            },
            as_vector(right[1])
            | slopes
            | {
                "this is dz2/dx; only the step from z1 to z2 is asked": right[1] @ first,
                off_by + ", so the matrix has zeros off its diagonal": (z1 > 0) * torch.full_like(right[1], 5),
                off_by + ". This is an outer product": z2 @ z1.T,
                "f' is taken at W1 x: the bias b1 decides too which units are on": jacobian_of_columns(
                    with_slope(five_relu, lambda z: slope_at(five_relu, z - b1)), z1
                ),
            },
            turned(second)
            | {
                linear + "input z2": W2 * z2.T,
                linear + "output z3": z3 @ z2.T,
                "the factor 5 belongs to f; the linear layer has none": 5 * W2,
                "this is W1; the second layer has W2": W1,
                "f is not part of the second linear layer: this is dz3/dz1": second @ right[1],
                "this is dz3/dx: only the step from z2 to z3 is asked": second @ right[1] @ first,
            },
            {
                "every entry is 1: but entry i of y_hat depends on entry i of z3 only": torch.ones(k, k, dtype=F64),
                "this is a single 1 (or a column of them): a matrix is asked, one row for each entry of y_hat": (
                    torch.ones(k, 1, dtype=F64)
                ),
                "this is a row of ones: a matrix is asked, one row for each entry of y_hat": torch.ones(
                    1, k, dtype=F64
                ),
                "this is a flat list of ones: a matrix is asked": torch.ones(k, dtype=F64),
                "g changes nothing, but its slope is not 0: y_hat moves exactly as z3 does": torch.zeros(
                    k, k, dtype=F64
                ),
                "y_hat itself stands on the diagonal; its slope belongs there": torch.diag(y_hat.flatten()),
                "g is the identity in the regression network; this is the slope of f": torch.diag(
                    5.0 * (z3.flatten() > 0)
                ),
                "g has no factor 5": 5 * torch.eye(k, dtype=F64),
                "this is dy_hat/dz2: only the step from z3 to y_hat is asked": second,
            },
        )
        return right, mistakes

    def demand(position, sizes=SIZES, at_the_kink=False):
        for n, h, k in sizes:
            inputs = draw_network(case, n, h, k)
            right, mistakes = layers(*inputs)
            found = case.parts(answer(*inputs), *names)[position]
            what = f"{names[position]} for {of_sizes(n, h, k)}"
            case.close(found, right[position], what=what, mistakes=mistakes[position], tolerance=TINY)
        if at_the_kink:
            x, W1, b1, W2, b2 = draw_network(case, 3, 4, 2)
            rows, (W1, b1, W2, b2) = to_the_kink(x.T, (W1, b1, W2, b2))
            x = rows.T
            found = case.parts(answer(x, W1, b1, W2, b2), *names)[position]
            kink = always("where z1 is exactly 0 the slope of f is 0, as on its left side: ask z1 > 0, not z1 ≥ 0")
            right, _ = layers(x, W1, b1, W2, b2)
            case.close(found, right[position], mistakes=kink, tolerance=TINY)

    with case("dz1/dx", points=1, hint="z1 is linear in x: entry (i, j) says how much z1_i changes with x_j"):
        demand(0)
    with case("dz2/dz1", points=2, hint="write entry (i, j) for i = j, and for i ≠ j"):
        demand(1, at_the_kink=True)
    with case("dz3/dz2", points=1, hint="the second linear layer, seen as a function of z2"):
        demand(2)
    with case("dy_hat/dz3", points=1, hint="y_hat = z3, entry by entry"):
        demand(3)


@check("dy-hat-dx", points=3, part="theory", autograd=False)
def dy_hat_dx(answer, case):
    """Against `torch.autograd.functional.jacobian` of the whole network."""

    def of_network(x, parameters, f=five_relu):
        return jacobian_of_columns(lambda one: columns_through_layers(one, parameters, f, as_it_is)[3], x)

    def demand(sizes, at_the_kink=False):
        for n, h, k in sizes:
            x, *parameters = draw_network(case, n, h, k)
            if at_the_kink:
                rows, parameters = to_the_kink(x.T, parameters)
                x = rows.T
            W1, b1, W2, b2 = parameters
            right = of_network(x, parameters)
            mistakes = {
                sentence: lambda slope=slope, x=x, parameters=parameters: of_network(
                    x, parameters, with_slope(five_relu, slope)
                )
                for sentence, slope in FIVE_RELU_SLOPES.items()
            }
            without_biases = [W1, torch.zeros_like(b1), W2, b2]
            mistakes |= {
                "f' is taken at W1 x: the bias b1 decides too which units are on": lambda x=x, p=without_biases: (
                    of_network(x, p)
                ),
                "x is multiplied in: the slope of a linear layer does not hold its input": right * x.T,
                "this is W2 alone: the network has three more steps": W2,
                "this is dz1/dx; y_hat is three steps further": W1,
                "the slopes of f are summed before the product: each hidden unit has its own": (
                    5.0 * (W1 @ x + b1 > 0).sum() * (W2 @ W1)
                ),
            } | turned(right)
            found = answer(x, *parameters)
            case.close(found, right, what=f"dy_hat/dx for {of_sizes(n, h, k)}", mistakes=mistakes, tolerance=TINY)

    with case("the whole Jacobian", points=2, hint="the chain rule multiplies from the left: last layer first"):
        demand(SIZES[:2])
    with case("other sizes, and a unit with z1 = 0", points=1, hint=OTHER_SIZES + "; at 0 the slope of f is 0"):
        demand(SIZES[2:])
        demand([(3, 4, 2)], at_the_kink=True)


@check("jacobian-entry", points=3, part="theory", autograd=False)
def jacobian_entry(answer, case):
    """Against `torch.autograd.functional.jacobian` with respect to W1."""

    def of_network(x, W1, b1, W2, b2, f=five_relu):
        return jacobian(lambda W: columns_through_layers(x, (W, b1, W2, b2), f, as_it_is)[3], W1)[:, 0]  # (k, h, n)

    def demand(n, h, k, at_the_kink=False):
        x, *parameters = draw_network(case, n, h, k)
        if at_the_kink:
            rows, parameters = to_the_kink(x.T, parameters)
            x = rows.T
        W1, b1, W2, _ = parameters
        whole, z1 = of_network(x, *parameters), W1 @ x + b1
        tables = {
            sentence: of_network(x, *parameters, with_slope(five_relu, slope))
            for sentence, slope in FIVE_RELU_SLOPES.items()
        }
        entries = [(i, u, j) for i in range(k) for u in range(h) for j in range(n)]
        found = [number(case, answer(*entry, x, *parameters), f"the entry {entry}").double() for entry in entries]
        slope = slope_at(five_relu, z1).flatten()
        mistakes = tables | {
            "the bias b1[u] is missing inside f'": of_network(
                x, *parameters, with_slope(five_relu, lambda z: slope_at(five_relu, z - b1.flatten()))
            ),
            "W1[u, j] stands where x_j belongs: that would be a derivative for x, not for W1": torch.einsum(
                "iu,u,uj->iuj", W2, slope, W1
            ),
            "x_j is missing": (W2 * slope)[:, :, None].expand_as(whole),
            "W2 is missing: it carries unit u to output i": (slope[:, None] * x.T).expand_as(whole),
            "W2 is indexed [u, i]; its rows are the outputs": lambda: torch.einsum("ui,u,j->iuj", W2, slope, x[:, 0]),
            "every hidden unit is summed over: but W1[u, j] reaches only unit u": whole.sum(1, True).expand_as(whole),
            "the sum over the inputs has no place here: W1[u, j] meets x_j only": whole.sum(2, True).expand_as(whole),
            "the sum over the outputs has no place here: output i is asked": whole.sum(0, True).expand_as(whole),
            "the sign is wrong": -whole,
        }
        what = f"the array of all entries (i, u, j) for {of_sizes(n, h, k)}"
        case.close(torch.stack(found).view(whole.shape), whole, what=what, mistakes=mistakes, tolerance=TINY)

    with case("every entry of dy_hat_i / dW1[u, j]", points=2, hint="one path only leads from W1[u, j] to y_hat_i"):
        demand(3, 4, 2)
    with case("other sizes, and a unit with z1 = 0", points=1, hint=OTHER_SIZES + "; at 0 the slope of f is 0"):
        for sizes in SIZES[1:]:
            demand(*sizes)
        demand(3, 4, 2, at_the_kink=True)


# -- gradients for a given dl/dy_hat ----------------------------------------------------------------------


def gradient_mistakes(parameters, rows, upstream, f, g, slopes, position):
    """Return what common mistakes make of one gradient, under the sentence that names each.

    Args:
        parameters: W1, b1, W2, b2.
        rows: inputs (B, n).
        upstream: gradient of the loss for y_hat, (B, k).
        f: the nonlinearity.
        g: the output function.
        slopes: what may be mistaken for the slope of f.
        position: which of the four gradients.
    """
    W1, _, W2, _ = parameters
    B = len(rows)
    whole = slopes_of_layers(parameters, rows, upstream, f, g)
    right, (d1, _, d3) = whole[position], whole[4:]
    z1, z2, _, _ = (z.detach() for z in through_layers(parameters, rows, f, g))
    name = ("W1", "b1", "W2", "b2")[position]
    turned_order = f"the gradient is transposed (the outer product is in the wrong order): it has the shape of {name}"
    found = {}
    if B > 1:
        found |= {
            "the gradient is averaged over the batch once more: the rows of dJ/dY_hat hold the 1/B already": right / B,
            "the batch is counted B times: the gradients of the examples are just added": right * B,
            "only the first example of the batch is used": lambda: slopes_of_layers(
                parameters, rows[:1], upstream[:1], f, g
            )[position],
            "only the last example of the batch is used": lambda: slopes_of_layers(
                parameters, rows[-1:], upstream[-1:], f, g
            )[position],
        }
        one_each = "there is one gradient for each example: the sum over the batch is missing"
    else:
        one_each = f"the gradient is a row here; it has the shape of {name}"
    if position < 2:
        found |= {
            sentence: lambda slope=slope: slopes_of_layers(parameters, rows, upstream, with_slope(f, slope), g)[
                position
            ]
            for sentence, slope in slopes.items()
        }
        found |= {
            f"the bias b1 is left out where f' is taken ({name})": lambda: slopes_of_layers(
                parameters, rows, upstream, with_slope(f, lambda z: slope_at(f, z - parameters[1].flatten())), g
            )[position],
            "W2 is missing: the gradient has to pass the second layer on its way back": lambda: (
                (d3 * slope_at(f, z1)).T @ rows if position == 0 else (d3 * slope_at(f, z1)).sum(0)[:, None]
            ),
            "W2 is used transposed": lambda: (
                ((d3 @ W2.T) * slope_at(f, z1)).T @ rows
                if position == 0
                else ((d3 @ W2.T) * slope_at(f, z1)).sum(0)[:, None]
            ),
            "W2 enters by its absolute value": lambda: slopes_of_layers(
                (*parameters[:2], W2.abs(), parameters[3]), rows, upstream, f, g
            )[position],
        }
    if position == 0:
        found |= {
            "x is missing: this is the gradient for z1 (or b1), repeated": lambda: d1.sum(0)[:, None].expand_as(W1),
            "W1 stands where x belongs: that way leads to dl/dx": lambda: d1.sum(0)[:, None] * W1,
            "z2 stands where x belongs: what went into the first layer?": lambda: d1.T @ z2,
            one_each: lambda: d1[:, :, None] * rows[:, None, :],
        }
    elif position == 2:
        found |= {
            "z1 stands where z2 belongs: the second layer is fed by f(z1)": d3.T @ z1,
            "the factor 5 of f is missing in z2": lambda: d3.T @ F.relu(z1),
            "the ReLU is missing in z2: units with z1 < 0 are off": lambda: d3.T @ (5 * z1),
            "x stands where z2 belongs: what went into the second layer?": lambda: d3.T @ rows,
            "W2 is in the product: its own gradient does not hold it (the layer is linear in W2)": d3.sum(0)[:, None]
            * W2,
            "z2 is missing: this is the gradient for z3 (or b2), repeated": d3.sum(0)[:, None].expand_as(W2),
            "the slope of f has no place here: W2 comes after f": lambda: d3.T @ slope_at(f, z1),
            "the slope of f has no place here (z2 is multiplied by it): W2 comes after f": lambda: (
                d3.T @ (z2 * slope_at(f, z1))
            ),
            one_each: lambda: d3[:, :, None] * z2[:, None, :],
        }
    else:
        row = d1 if position == 1 else d3
        found |= {
            one_each: row,
            f"there is one gradient for each example, in a column each: sum them, so that {name}'s shape remains": row.T
            if B > 1
            else torch.empty(0),
            f"the sum is right, but it is a flat list: the gradient has the shape of {name}, a column": row.sum(0),
            f"the sum is right, but it is a row: the gradient has the shape of {name}, a column": row.sum(0)[None],
            f"{name} itself is multiplied in; the layer just adds it": row.sum(0)[:, None] * parameters[position],
            f"everything is summed to one number: {name} has one gradient for each of its entries": row.sum(),
            f"the sum runs over the wrong axis: {name} is shared by the examples": row.sum(1)[:, None],
            "every entry is the sum over all entries: sum over the examples only": row.sum().expand_as(right),
            "what fed the layer is multiplied in: that is for the weights; a bias is fed by 1": lambda: (
                row.T @ (rows if position == 1 else z2)
            ),
        }
        if position == 3:
            found["the slope of f has no place here: b2 comes after f"] = lambda: (row @ W2 * slope_at(f, z1)).sum(0)[
                :, None
            ]
    if position in (1, 3):
        found |= {f"the gradient of {name} is not 0: the layer adds {name}, so z moves as {name} does": 0 * right}
    found |= {
        f"this is {name} after a step; its gradient is asked": parameters[position] - right,
        "it is divided by the number of all predictions once more: the given gradient holds this already": (
            right / upstream.numel()
        ),
        "the factor 2 of a squared error is in the given gradient already": 2 * right,
        turned_order: right.T if right.shape != right.T.shape or position in (0, 2) else torch.empty(0),
        "the sign is wrong: this is the direction of the step, not the gradient": -right,
    }
    return found


def slope_at(f, z):
    """Return the derivative of an elementwise function."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(f(z).sum(), z)[0]


def demand_gradients(case, result, parameters, rows, upstream, positions, *, names, what, f, g, slopes):
    """Demand the gradients at `positions`; `result` is what the answer returned."""
    found = case.parts(result, *names)
    right = slopes_of_layers(parameters, rows, upstream, f, g)
    for position in positions:
        at = position if len(names) == 4 else position % 2
        mistakes = gradient_mistakes(parameters, rows, upstream, f, g, slopes, position)
        case.close(found[at], right[position], what=f"{names[at]} {what}", mistakes=mistakes, tolerance=TINY)


REGRESSION = {"f": five_relu, "g": as_it_is, "slopes": FIVE_RELU_SLOPES}


def demand_layer(case, answer, names, positions, sizes):
    """Demand the gradients at `positions` of the network for regression, at one example of each of `sizes`."""
    for n, h, k in sizes:
        x, *parameters = draw_network(case, n, h, k)
        upstream = case.randn(1, k, dtype=F64)
        result, what = answer(x, *parameters, upstream), f"for {of_sizes(n, h, k)}"
        demand_gradients(case, result, parameters, x.T, upstream, positions, names=names, what=what, **REGRESSION)


@check("output-layer-gradients", points=4, part="theory", autograd=False)
def output_layer_gradients(answer, case):
    """Against `torch.autograd.grad`."""
    names = ("dl_dW2", "dl_db2")
    demand = partial(demand_layer, case, answer, names)

    with case("dl/dW2, in the shape of W2", points=2, hint="entry (i, u): which entries of z3 does W2[i, u] touch?"):
        demand([2], SIZES[:2])
    with case("dl/db2, in the shape of b2", points=1, hint="dz3/db2 is the identity"):
        demand([3], SIZES[:2])
    with case("other sizes", points=1, hint=OTHER_SIZES):
        demand([2, 3], SIZES[2:])


@check("hidden-layer-gradients", points=7, part="theory", autograd=False)
def hidden_layer_gradients(answer, case):
    """Against `torch.autograd.grad`."""
    names = ("dl_dW1", "dl_db1")
    demand = partial(demand_layer, case, answer, names)

    with case("dl/db1, in the shape of b1", points=2, hint="carry the row dl/dy_hat back to z1 first"):
        demand([1], SIZES[:2])
    with case("dl/dW1, in the shape of W1", points=3, hint="dl/dz1, and what W1[u, j] does to z1"):
        demand([0], SIZES[:2])
    with case("where z1 is 0, the slope of f is 0", points=1, hint="the convention of torch: ReLU'(0) = 0"):
        x, *parameters = draw_network(case, 3, 4, 2)
        rows, parameters = to_the_kink(x.T, parameters)
        upstream = case.randn(1, 2, dtype=F64)
        found = case.parts(answer(rows.T, *parameters, upstream), *names)
        right = slopes_of_layers(parameters, rows, upstream, five_relu, as_it_is)
        for part, expected, position in zip(found, right, (0, 1), strict=False):
            mistakes = {
                "0/0: the slope is not z2 / z1": lambda part=part: bool(part.isnan().any()),
                **gradient_mistakes(parameters, rows, upstream, position=position, **REGRESSION),
            }
            case.close(part, expected, what=names[position], mistakes=mistakes, tolerance=TINY)
    with case("other sizes", points=1, hint=OTHER_SIZES):
        demand([0, 1], SIZES[2:])


@check("mse-gradient", points=3, part="theory", autograd=False)
def mse_gradient(answer, case):
    """Against autograd through `F.mse_loss`."""

    def demand(k):
        y_hat, y = case.randn(k, 1, dtype=F64), case.randn(k, 1, dtype=F64)
        right = jacobian(lambda one: F.mse_loss(one, y), y_hat).T
        mistakes = {
            "the factor 2 from the square is missing": right / 2,
            "the 1/k of the mean is missing": right * k,
            "the 2/k is missing": right * k / 2,
            "the sign is wrong: the derivative of (y_hat - y)² for y_hat": -right,
            "this is the gradient for y, and without its factor: y - y_hat": -right * k / 2,
            "the factor is 1/(2k)": right / 4,
            "it is divided by k twice": right / k,
            "it is divided by k²": right / k / 2,
            "a row is asked: the gradient of a scalar for a column, in numerator layout": right.T if k > 1 else right,
            "a row is asked, with two axes; this is a flat list": right.flatten(),
            "this is the loss itself": F.mse_loss(y_hat, y),
            "these are the squared errors; their derivatives are asked": ((y_hat - y) ** 2).T,
            "this is the gradient of the mean absolute error": (y_hat - y).sign().T / k,
            "the entries are summed to one number; each entry of y_hat has its own derivative": right.sum(),
            "every entry is the same: each entry of y_hat has its own derivative": right.mean().expand(1, k),
            "this is a matrix: (k, 1) minus (1, k) broadcasts": lambda: 2 / k * (y_hat - y.T),
        }
        mistakes = {one: made for one, made in mistakes.items() if not (k == 1 and made is right)}
        case.close(answer(y_hat, y), right, what=f"dl/dy_hat for k = {k}", mistakes=mistakes, tolerance=TINY)

    with case("every entry, as a row", points=2, hint="write the mean out as a sum, and differentiate one term"):
        demand(5)
        demand(3)
    with case("a single output", points=1, hint="k = 1: the mean has one term"):
        demand(1)


@check("batch-gradients", points=6, part="theory", autograd=False)
def batch_gradients(answer, case):
    """Against `torch.autograd.grad`."""
    names = ("dJ_dW1", "dJ_db1", "dJ_dW2", "dJ_db2")

    def demand(positions, sizes, at_the_kink=False):
        for B, n, h, k in sizes:
            rows, parameters = draw_batch(case, B, n, h, k)
            rows, parameters = to_the_kink(rows, parameters) if at_the_kink else (rows, parameters)
            upstream = case.randn(B, k, dtype=F64)
            result, what = answer(rows, *parameters, upstream), f"for B = {B} and {of_sizes(n, h, k)}"
            demand_gradients(case, result, parameters, rows, upstream, positions, names=names, what=what, **REGRESSION)

    with case("dJ/dW2 and dJ/db2", points=2, hint="the sum over the examples of what you had for one"):
        demand([2, 3], ((6, 3, 4, 2), (5, 2, 4, 3)))
    with case("dJ/dW1 and dJ/db1", points=3, hint="each example has its own hidden units that are on"):
        demand([1, 0], ((6, 3, 4, 2), (5, 2, 4, 3)))
    with case("a batch of one, sizes of 1, z1 = 0", points=1, hint=OTHER_SIZES + "; at z1 = 0 the slope of f is 0"):
        demand(range(4), ((1, 3, 4, 2), (4, 1, 1, 1), (3, 3, 3, 3)))
        demand(range(2), [(4, 3, 5, 2)], at_the_kink=True)


# -- classification ---------------------------------------------------------------------------------------


@check("tanh-sigmoid-jacobians", points=4, part="theory", autograd=False)
def tanh_sigmoid_jacobians(answer, case):
    """Against `torch.autograd.functional.jacobian` at the inputs of tanh and sigmoid."""
    names = ("dz2_dz1", "dy_hat_dz3")

    def demand(position, sizes):
        for h, k in sizes:
            z1, z3 = case.randn(h, 1, dtype=F64), case.randn(k, 1, dtype=F64)
            z2, y_hat = z1.tanh(), z3.sigmoid()
            right = jacobian_of_columns((torch.tanh, torch.sigmoid)[position], (z1, z3)[position])
            out = (z2, y_hat)[position].flatten()
            if position == 0:
                diagonals = {
                    "tanh is applied to z2: but z2 is its output already": 1 - out.tanh() ** 2,
                    "1 - z2: the square is missing": 1 - out,
                    "(1 - z2)²: the square is in the wrong place": (1 - out) ** 2,
                    "the factor 5 belongs to the regression network": 5 * right.diagonal(),
                    "z2 (1 - z2) is the slope of a sigmoid": out * (1 - out),
                    "z2 itself stands on the diagonal; its slope belongs there": out,
                    "the sign is wrong: tanh never falls": out**2 - 1,
                    "1 + z2²: tanh is nowhere steeper than 1": 1 + out**2,
                    "-2 z2 is the derivative of 1 - z2², which is the slope already": -2 * out,
                    "this is the slope of a ReLU": 1.0 * (out > 0),
                    "this is 5 times the slope of a ReLU, from the regression network": 5.0 * (out > 0),
                    "1/(1 - z2²) is the slope of the inverse of tanh": 1 / (1 - out**2),
                    "the slope of tanh is missing: this is the identity": torch.ones_like(out),
                }
            else:
                diagonals = {
                    "the sigmoid is applied to y_hat: but y_hat is its output already": (
                        out.sigmoid() * (1 - out.sigmoid())
                    ),
                    "1 - y_hat²: that is the slope of tanh": 1 - out**2,
                    "y_hat itself stands on the diagonal; its slope belongs there": out,
                    "1 - y_hat: a factor is missing": 1 - out,
                    "the sign is wrong: the sigmoid never falls": out * (out - 1),
                    "y_hat (1 + y_hat): the sigmoid is nowhere steeper than 1/4": out * (1 + out),
                    "1/(y_hat (1 - y_hat)) is the slope of the inverse of the sigmoid": 1 / (out * (1 - out)),
                    "this is the slope of the log of the sigmoid": 1 - out,
                    "the slope of the sigmoid is missing: this is the identity": torch.ones_like(out),
                    "the slope is squared": (out * (1 - out)) ** 2,
                }
            mistakes = as_vector(right) if len(out) > 1 else {}
            mistakes |= {sentence: torch.diag(values) for sentence, values in diagonals.items()}
            mistakes |= {
                sentence + " (and a diagonal matrix is asked)": values[:, None]
                for sentence, values in diagonals.items()
                if len(out) > 1
            }
            found = case.parts(answer(z2, y_hat), *names)[position]
            if found.shape == right.shape and len(out) > 1:
                beside = found - torch.diag(found.diagonal())
                mistakes |= {
                    "off the diagonal something stands: entry i of the output depends on entry i of the input only": (
                        lambda beside=beside: bool(beside.abs().max() > TINY)
                    )
                }
            what = f"{names[position]} for {(h, k)[position]} entries"
            case.close(found, right, what=what, mistakes=mistakes, tolerance=TINY)

    sizes = ((4, 3), (5, 2), (1, 1))
    with case("dz2/dz1 from z2", points=2, hint="differentiate sinh/cosh, and say the result by tanh itself"):
        demand(0, sizes)
    with case("dy_hat/dz3 from y_hat", points=2, hint="differentiate 1/(1 + e^(-z)), and say the result by σ itself"):
        demand(1, sizes)


def labels_for(case, *shape):
    """Draw labels 0 and 1, with both among them where there are two or more."""
    y = case.randint(0, 2, shape).double()
    y.view(-1)[0] = 1.0
    if y.numel() > 1:
        y.view(-1)[1] = 0.0
    return y


@check("bce-gradient", points=4, part="theory", autograd=False)
def bce_gradient(answer, case):
    """Against autograd through `F.binary_cross_entropy`."""

    def demand(k, soft=False):
        y_hat = case.randn(k, 1, dtype=F64).sigmoid()
        y_hat[0], y_hat[1:2] = 0.03, 0.98  # sure predictions, so that a clamped one shows
        y = case.randn(k, 1, dtype=F64).sigmoid() if soft else labels_for(case, k, 1)
        right = jacobian(lambda one: F.binary_cross_entropy(one, y), y_hat).T
        both = y_hat * (1 - y_hat)
        entries = {
            "the sign is wrong: the loss is minus the logarithm, so it falls when y_hat nears y": -right.T * k,
            "this is y_hat - y, the gradient for z3; y_hat (1 - y_hat) is missing below the line": y_hat - y,
            "the term of the labels 0, (1 - y)/(1 - y_hat), is missing": -y / y_hat,
            "the term of the labels 1, y/y_hat, is missing": (1 - y) / (1 - y_hat),
            "the second term has the wrong sign: the inner derivative of log(1 - y_hat) is -1/(1 - y_hat)": (
                -y / y_hat - (1 - y) / (1 - y_hat)
            ),
            "the first term has the wrong sign: it is minus the logarithm": y / y_hat + (1 - y) / (1 - y_hat),
            "y_hat (1 - y_hat) is multiplied in; it belongs below the line": (y_hat - y) * both,
            "the terms below the line are exchanged: y belongs to y_hat, 1 - y to 1 - y_hat": (
                -y / (1 - y_hat) + (1 - y) / y_hat
            ),
            "y and y_hat are exchanged": (y - y_hat) / (y * (1 - y)),
            "this is the gradient of the squared error": 2 * (y_hat - y),
            "the logarithms are still there: differentiate them": -(y * y_hat.log() + (1 - y) * (1 - y_hat).log()),
            "below the line stands y_hat² or (1 - y_hat)²": -y / y_hat**2 + (1 - y) / (1 - y_hat) ** 2,
            "below the line 1 - y_hat is missing": (y_hat - y) / y_hat,
            "below the line y_hat is missing": (y_hat - y) / (1 - y_hat),
            "below the line the product is squared": (y_hat - y) / both**2,
        }
        mistakes = {
            "the 1/k of the mean is missing": right * k,
            "it is divided by k twice": right / k,
            "the factor 2 belongs to the squared error": right * 2,
            "a row is asked: the gradient of a scalar for a column, in numerator layout": right.T,
            "a row is asked, with two axes; this is a flat list": right.flatten(),
            "this is the loss itself": F.binary_cross_entropy(y_hat, y),
            "the entries are summed to one number; each entry of y_hat has its own derivative": right.sum(),
            "the logarithm is taken to base 2: torch's is the natural one": right / math.log(2),
        }
        for sentence, column in entries.items():
            mistakes[sentence] = column.T / k
            mistakes[sentence + ", and the 1/k is missing"] = column.T
        mistakes = {one: made for one, made in mistakes.items() if made.shape != right.shape or made is not right.T}
        case.close(answer(y_hat, y), right, what=f"dl/dy_hat for k = {k}", mistakes=mistakes, tolerance=TINY)

    with case("every entry, as a row", points=2, hint="write one term of the mean, and differentiate both logarithms"):
        demand(4)
        demand(3)
    with case("labels between 0 and 1", points=1, hint="the formula holds for every y; both terms then count"):
        demand(3, soft=True)
    with case("a single output", points=1, hint="k = 1: the mean has one term"):
        demand(1)


@check("logits-gradient", points=3, part="theory", autograd=False)
def logits_gradient(answer, case):
    """Against autograd through `F.binary_cross_entropy_with_logits`."""

    def demand(z3, y, what):
        k = len(z3)
        right = jacobian(lambda one: F.binary_cross_entropy_with_logits(one, y), z3).T
        y_hat = z3.sigmoid()
        mistakes = {
            "the 1/k of the mean is missing": right * k,
            "it is divided by k twice": right / k,
            "the sign is wrong: y_hat comes first": -right,
            "the sign is wrong and the 1/k is missing": -right * k,
            "the sigmoid is missing: this is z3 - y": (z3 - y).T / k,
            "the sigmoid is missing, and the 1/k too: this is z3 - y": (z3 - y).T,
            "the slope of the sigmoid is multiplied in once more; it has cancelled already": (
                right * (y_hat * (1 - y_hat)).T
            ),
            "this is dl/dy_hat: the step from y_hat back to z3 is missing": (
                lambda: jacobian(lambda one: F.binary_cross_entropy(one, y), y_hat).T
            ),
            "the factor 2 belongs to the squared error": right * 2,
            "this is the gradient of the squared error for z3": (
                lambda: jacobian(lambda one: F.mse_loss(one.sigmoid(), y), z3).T
            ),
            "the sigmoid is applied twice": (y_hat.sigmoid() - y).T / k,
            "the sigmoid is taken at -z3": ((-z3).sigmoid() - y).T / k,
            "the prediction is rounded to 0 or 1; the probability is meant": (y_hat.round() - y).T / k,
            "softmax stands where the sigmoid belongs: the entries are independent here": (z3.softmax(0) - y).T / k,
            "tanh stands where the sigmoid belongs": (z3.tanh() - y).T / k,
            "a row is asked: the gradient of a scalar for a column, in numerator layout": right.T,
            "a row is asked, with two axes; this is a flat list": right.flatten(),
            "the entries are summed to one number; each entry of z3 has its own derivative": right.sum(),
        }
        found = answer(z3, y)
        if isinstance(found, torch.Tensor) and not found.isfinite().all():
            quotient = (
                "NaN or infinity where the sigmoid has reached 0 or 1: the slope of the sigmoid, 0 there, is divided "
                "by or multiplied with something infinite. Simplify on paper first"
            )
            mistakes = always(quotient)
        mistakes = {one: made for one, made in mistakes.items() if not (k == 1 and made is right)}
        case.close(found, right, what=what, mistakes=mistakes, tolerance=TINY)

    with case("every entry, as a row", points=1, hint="the row dl/dy_hat times the diagonal matrix dy_hat/dz3"):
        demand(case.randn(4, 1, dtype=F64), labels_for(case, 4, 1), "dl/dz3 for k = 4")
        demand(2 * case.randn(3, 1, dtype=F64), labels_for(case, 3, 1), "dl/dz3 for k = 3")
        demand(case.randn(3, 1, dtype=F64), case.randn(3, 1, dtype=F64).sigmoid(), "dl/dz3 for labels between 0 and 1")
    with case("a single output", points=1, hint="k = 1: the mean has one term"):
        demand(case.randn(1, 1, dtype=F64), labels_for(case, 1, 1), "dl/dz3 for k = 1")
    with case("right and finite for a sure network", points=1, hint="no division should be left in your formula"):
        z3 = torch.tensor([[40.0], [-40.0], [800.0], [-800.0], [800.0], [-800.0]], dtype=F64)
        y = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]], dtype=F64)
        demand(z3, y, "dl/dz3 for logits of ±40 and ±800")


@check("classification-gradients", points=7, part="theory", autograd=False)
def classification_gradients(answer, case):
    """Against autograd through `F.binary_cross_entropy_with_logits`."""
    names = ("dJ_dW1", "dJ_db1", "dJ_dW2", "dJ_db2")

    def upstream_of(rows, Y, parameters):
        """Return dJ/dZ3 by autograd, (B, k)."""
        z3 = through_layers(parameters, rows, torch.tanh, as_it_is)[3]
        return jacobian(lambda one: F.binary_cross_entropy_with_logits(one, Y), z3)

    def demand(positions, sizes):
        for B, n, h, k in sizes:
            rows, parameters = draw_batch(case, B, n, h, k)
            Y = labels_for(case, B, k)
            upstream = upstream_of(rows, Y, parameters)
            y_hat = through_layers(parameters, rows, torch.tanh, torch.sigmoid)[3]
            result = case.parts(answer(rows, Y, *parameters), *names)
            right = slopes_of_layers(parameters, rows, upstream, torch.tanh, as_it_is)
            other = {
                "the slope of the sigmoid is multiplied in although y_hat - y holds it already": (
                    upstream * y_hat * (1 - y_hat)
                ),
                "this starts from dJ/dY_hat: the step back through the sigmoid is missing": (
                    upstream / (y_hat * (1 - y_hat))
                ),
                "this is the gradient of the squared error; the loss is BCE now": (2 * upstream * y_hat * (1 - y_hat)),
                "the factor 2 belongs to the squared error; BCE has none": 2 * upstream,
                "the sigmoid is missing: this starts from z3 - y": (
                    through_layers(parameters, rows, torch.tanh, as_it_is)[3] - Y
                )
                / (B * k),
            }
            for position in positions:
                whole = right[position]
                mistakes = {
                    "the mean runs over the examples only; here it runs over all B · k elements": whole * k,
                    "the mean runs over the outputs only; here it runs over all B · k elements": whole * B,
                    "the mean is missing: J is the mean over all B · k elements": whole * B * k,
                }
                if B == 1:
                    del mistakes["the mean runs over the outputs only; here it runs over all B · k elements"]
                if k == 1:
                    del mistakes["the mean runs over the examples only; here it runs over all B · k elements"]
                if B * k == 1:
                    mistakes = {}
                mistakes |= {
                    sentence: slopes_of_layers(parameters, rows, start, torch.tanh, as_it_is)[position]
                    for sentence, start in other.items()
                }
                mistakes |= {
                    sentence: made[position] for sentence, made in other_functions(rows, Y, parameters).items()
                }
                mistakes |= gradient_mistakes(parameters, rows, upstream, torch.tanh, as_it_is, TANH_SLOPES, position)
                what = f"{names[position]} for B = {B} and {of_sizes(n, h, k)}"
                case.close(result[position], whole, what=what, mistakes=mistakes, tolerance=TINY)

    def other_functions(rows, Y, parameters):
        found = {}
        for name, f in {"5 ReLU": five_relu, "ReLU": F.relu, "a sigmoid": torch.sigmoid}.items():
            z3 = through_layers(parameters, rows, f, as_it_is)[3]
            upstream = jacobian(lambda one: F.binary_cross_entropy_with_logits(one, Y), z3)
            sentence = f"f is {name} in this answer, on the way forward and on the way back; it is tanh now"
            found[sentence] = slopes_of_layers(parameters, rows, upstream, f, as_it_is)
        return found

    with case("dJ/dW2 and dJ/db2", points=3, hint="start from dJ/dZ3; your earlier answer gives it for one example"):
        demand([3, 2], ((6, 2, 4, 3), (5, 3, 4, 2)))
    with case("dJ/dW1 and dJ/db1", points=3, hint="the chain is as before; only the slope of f is another"):
        demand([1, 0], ((6, 2, 4, 3), (5, 3, 4, 2)))
    with case("a batch of one, one output, sizes of 1", points=1, hint=OTHER_SIZES):
        demand(range(4), ((1, 3, 4, 2), (6, 2, 3, 1), (1, 1, 1, 1)))


# -- softargmax -------------------------------------------------------------------------------------------


@check("softargmax", points=2, part="theory", autograd=False, from_scratch=("softmax",))
def softargmax(answer, case):
    """Against `torch.softmax`."""

    def demand(z, *beta):
        right = torch.softmax((beta[0] if beta else 1.0) * z, 0)
        b = beta[0] if beta else 1.0
        found = answer(z, *beta)
        mistakes = {
            "β divides; it multiplies the logits (it is the inverse of a temperature)": torch.softmax(z / b, 0),
            "β is not used": torch.softmax(z, 0),
            "β multiplies the result; it belongs into the exponent": b * torch.softmax(z, 0),
            "the sum runs along the row of one entry: every entry is 1. Sum over the column": torch.ones_like(z),
            "the exponentials are not divided by their sum": (b * z).exp(),
            "the logits are divided by their sum without exponentials": z / z.sum(),
            "the base is 2; it is e": torch.softmax(math.log(2) * b * z, 0),
            "this is the logarithm of the right result": torch.log_softmax(b * z, 0),
            "the sigmoid of each entry: it does not know the other entries": torch.sigmoid(b * z),
            "the exponentials are divided by their mean, not their sum": right * len(z),
            "the exponentials are divided by the largest of them": right / right.max(),
            "this is the hard argmax: 1 for the largest entry": (z == z.max()).double(),
            "the signs are exchanged: the smallest logit gets most": torch.softmax(-b * z, 0),
            "the result is a flat list; it is a column like z": right.flatten(),
            "the result is a row; it is a column like z": right.T,
            "β is raised to a power of the result": lambda: torch.softmax(z, 0) ** b,
        }
        if b == 1:
            mistakes = {one: made for one, made in mistakes.items() if "β" not in one}
        if isinstance(found, torch.Tensor) and not found.isfinite().all():
            mistakes = always(
                "e to a large power overflows to infinity, and ∞/∞ is NaN. A constant may be subtracted from all "
                "logits without changing the result: which one keeps every exponential at most 1?"
            )
        what = f"the result for {len(z)} logits and β = {b:g}"
        case.close(found, right, what=what, mistakes=mistakes, tolerance=TINY)

    with case("agrees with torch, for several β", points=1, hint="exponentials of β z, divided by their sum"):
        demand(case.randn(4, 1, dtype=F64))
        demand(case.randn(5, 1, dtype=F64), 3.0)
        demand(case.randn(3, 1, dtype=F64), 0.25)
    with case("large logits stay finite", points=1, hint="use that adding a constant to all logits changes nothing"):
        demand(torch.tensor([[1000.0], [1001.0], [998.0]], dtype=F64))
        demand(torch.tensor([[-1000.0], [-1002.0]], dtype=F64), 2.0)
        demand(torch.tensor([[300.0], [-300.0], [301.0]], dtype=F64), 4.0)


@check("logit-gap", points=2, part="theory", autograd=False)
def logit_gap(answer, case):
    """Against the gap found by trying: halving an interval until `torch.softmax` gives p."""

    def demand(p, count, beta):
        found = number(case, answer(p, count, beta), "the gap")
        case.finite(found, what="the gap")
        odds = math.log(p / (1 - p))
        mistakes = {
            "β is not used": odds + math.log(count - 1),
            "β multiplies; the larger β is, the smaller a gap suffices": beta * (odds + math.log(count - 1)),
            "the other logits are forgotten: this is right for two classes only": odds / beta,
            "there are K - 1 other classes, not K": (odds + math.log(count)) / beta,
            "the sign is wrong: the class that is to win lies above the others": -(odds + math.log(count - 1)) / beta,
            "the logarithm is to base 2; it is the natural one": (odds + math.log(count - 1)) / beta / math.log(2),
            "the logarithm is to base 10; it is the natural one": (odds + math.log(count - 1)) / beta / math.log(10),
            "the K - 1 stands on the wrong side of the quotient": (odds - math.log(count - 1)) / beta,
            "this is log p: 1 - p, the share of the others, is missing": math.log(p) / beta,
            "1 - p is missing below the line": (math.log(p) + math.log(count - 1)) / beta,
            "the logarithm is missing": p * (count - 1) / (1 - p) / beta,
            "the odds are multiplied by K - 1 outside the logarithm": odds * (count - 1) / beta,
        }
        mistakes = {one: torch.tensor(value, dtype=F64) for one, value in mistakes.items()}
        if count == 2 or beta == 1:
            mistakes = {one: value for one, value in mistakes.items() if beta != 1 or "β" not in one}
        logits = torch.zeros(count, dtype=F64)
        low, high = -1e3, 1e3  # where softmax is known to be on both sides of p; halved until it meets p
        for _ in range(200):
            logits[0] = (low + high) / 2
            low, high = (logits[0].item(), high) if torch.softmax(beta * logits, 0)[0] < p else (low, logits[0].item())
        what = f"the gap for p = {p:g}, K = {count}, β = {beta:g}"
        case.close(found.double(), logits[0], what=what, mistakes=mistakes, tolerance=TINY)

    with case("the winner gets exactly p", points=1, hint="set e^gap / (e^gap + K - 1) = p and solve for the gap"):
        demand(0.7, 10, 1.0)
        demand(0.5, 3, 1.0)
        demand(0.999, 50, 1.0)
    with case("also for β ≠ 1, and for two classes", points=1, hint="softargmax with β sees β times the gap"):
        demand(0.8, 2, 4.0)
        demand(0.99, 7, 0.5)


# -- the graph --------------------------------------------------------------------------------------------

GRAPH_NODES = ("x1", "x2", "a", "b", "c", "y")
GRAPH_EDGES = ("x1->a", "x2->a", "x1->b", "a->c", "b->c", "c->y", "x2->y")


def graph_by_autograd(x1, x2):
    """Return the values of the homework's graph, the slope of every edge, and the slope of y for every node.

    Each edge gets a copy of its source of its own, so that autograd tells the edges apart.
    """
    values, leaves = {"x1": torch.tensor(x1, dtype=F64), "x2": torch.tensor(x2, dtype=F64)}, {}
    rules = {
        "a": (("x1", "x2"), lambda x1, x2: x1 * x2),
        "b": (("x1",), torch.sin),
        "c": (("a", "b"), torch.sub),
        "y": (("c", "x2"), lambda c, x2: c * x2),
    }
    edges = {}
    for node, (sources, rule) in rules.items():
        leaves = [values[source].clone().requires_grad_() for source in sources]
        result = rule(*leaves)
        for source, slope in zip(sources, torch.autograd.grad(result, leaves), strict=True):
            edges[f"{source}->{node}"] = slope.item()
        values[node] = result.detach()
    return {name: value.item() for name, value in values.items()}, edges


def by_matrix(order, edges):
    """Return the slope of the last node for every node: (I - A)⁻¹, whose entries sum over all paths."""
    A = torch.zeros(len(order), len(order), dtype=F64)
    for edge, slope in edges.items():
        source, target = edge.split("->")
        A[order.index(target), order.index(source)] = slope
    paths = torch.linalg.inv(torch.eye(len(order), dtype=F64) - A)
    return dict(zip(order, paths[-1].tolist(), strict=True))


def demand_numbers(case, found, right, mistakes, what):
    """Demand a dict of numbers; `mistakes(key)` holds what common mistakes make of one, by sentence."""
    case.true(isinstance(found, dict), f"{what} are a {kind_of(found)}, expected a dict")
    missing = [key for key in right if key not in found]
    case.true(not missing, f"{what}: there is no entry {', '.join(map(repr, missing))}")
    spare = [key for key in found if key not in right]
    case.true(not spare, f"{what}: {', '.join(map(repr, spare))} does not belong into the graph")
    for key, expected in right.items():
        one = number(case, found[key], f"{what}: the entry {key!r}")
        known = {sentence: torch.tensor(wrong, dtype=F64) for sentence, wrong in mistakes(key).items()}
        case.close(one.double(), torch.tensor(expected, dtype=F64), what=f"{key}", mistakes=known, tolerance=TINY)


@check("graph-forward", points=4, part="theory", autograd=False)
def graph_forward(answer, case):
    """Against autograd, edge by edge."""

    def result(x1, x2):
        return sequence_of(case, answer(x1, x2), "values", "edges")

    def value_mistakes(v):
        def known(key):
            wrong = {
                "a": {
                    "a: a is the product of x1 and x2, not their sum": v["x1"] + v["x2"],
                },
                "b": {
                    "b: b is a sine; this is the cosine": math.cos(v["x1"]),
                    "b: b is the sine of x1, not of x2": math.sin(v["x2"]),
                    "b: the sine takes radians here, not degrees": math.sin(math.radians(v["x1"])),
                },
                "c": {
                    "c: c is a difference, not a sum": v["a"] + v["b"],
                    "c: c is a - b, not b - a": v["b"] - v["a"],
                },
                "y": {
                    "y: y is c times x2, not c times x1": v["c"] * v["x1"],
                    "y: y is c times x2, not their sum": v["c"] + v["x2"],
                    "y: y is c times x2: the factor is missing": v["c"],
                },
            }.get(key, {})
            return wrong

        return known

    def edge_mistakes(v):
        def known(key):
            source, target = key.split("->")
            wrong = {
                "x1->a": {"∂a/∂x1 of a product is the other factor, not x1 itself": v["x1"]},
                "x2->a": {"∂a/∂x2 of a product is the other factor, not x2 itself": v["x2"]},
                "x1->b": {
                    "the derivative of sin is cos; this is the sine": math.sin(v["x1"]),
                    "the derivative of sin is cos, with a plus sign": -math.cos(v["x1"]),
                    "cos is taken of the wrong variable: b depends on x1": math.cos(v["x2"]),
                    "cos is taken of b; it is taken of x1": math.cos(v["b"]),
                },
                "b->c": {"∂c/∂b: b is subtracted, so its slope has a minus sign": 1.0},
                "a->c": {"∂c/∂a: a is added, not subtracted": -1.0},
                "c->y": {"∂y/∂c of a product is the other factor, not c itself": v["c"]},
                "x2->y": {
                    "∂y/∂x2 along this edge is c: the way through a is another edge": v["c"] + v["x2"] * v["x1"],
                    "∂y/∂x2 of a product is the other factor, not x2 itself": v["x2"],
                },
            }[key]
            wrong |= {
                f"{key}: this is the value of {source}; the slope of the edge is asked": v[source],
                f"{key}: this is the value of {target}; the slope of the edge is asked": v[target],
                f"{key}: this is ∂y/∂{source}, along all paths; an edge holds one step only": by_matrix(
                    list(GRAPH_NODES), graph_by_autograd(v["x1"], v["x2"])[1]
                )[source],
            }
            return wrong

        return known

    def points_to_try():
        return [(2.0, 3.0), tuple((1.5 + case.randn(2, dtype=F64)).tolist()), (-0.7, 1.3)]

    with case("the value of every node", points=2, hint="from left to right; each node needs earlier ones only"):
        for x1, x2 in points_to_try():
            values, _ = result(x1, x2)
            right, _ = graph_by_autograd(x1, x2)
            demand_numbers(case, values, right, value_mistakes(right), "the values")
    with case("the slope of every edge", points=2, hint="the derivative of one operation for one of its inputs"):
        for x1, x2 in points_to_try():
            _, edges = result(x1, x2)
            values, right = graph_by_autograd(x1, x2)
            demand_numbers(case, edges, right, edge_mistakes(values), "the edges")


@check("graph-backward", points=4, part="theory", autograd=False)
def graph_backward(answer, case):
    """Against sums over all paths, from the inverse of a matrix."""

    def sweep(order, edges, rule):
        found = dict.fromkeys(order, 0.0) | {order[-1]: 1.0}
        for node in order[::-1]:
            for edge, slope in edges.items():
                source, target = edge.split("->")
                if target == node:
                    found[source] = rule(found[source], slope, found[target])
        return found

    def demand(order, edges):
        right = by_matrix(order, edges)
        wrong = {
            "a later path overwrites an earlier one: add what comes along each edge": sweep(
                order, edges, lambda old, slope, above: slope * above
            ),
            "the slopes along a path are added; they are multiplied": sweep(
                order, edges, lambda old, slope, above: old + slope + above
            ),
            "the slope of the edge is not used": sweep(order, edges, lambda old, slope, above: old + above),
            "only the edges that leave a node count here: the gradient of the node where each edge ends is missing": (
                sweep(order, edges, lambda old, slope, above: old + slope)
            ),
            "what comes along several edges is multiplied; it is added": sweep(
                order, edges, lambda old, slope, above: (old or 1.0) * slope * above
            ),
            "only the first edge into a node is used: add what comes along each edge": sweep(
                order, edges, lambda old, slope, above: old or slope * above
            ),
            "the sweep runs from the inputs to the output: these are derivatives for the first node": by_matrix(
                order[::-1], {"->".join(reversed(edge.split("->"))): slope for edge, slope in edges.items()}
            ),
            "the signs of the slopes are lost": sweep(order, edges, lambda old, slope, above: old + abs(slope) * above),
            "everything is 0: the gradient of the output for itself is 1": dict.fromkeys(order, 0.0),
            "the gradient of the output for itself is added to every node": {
                key: value + (key != order[-1]) for key, value in right.items()
            },
            "only the gradient of the output is there: nothing was carried back": dict.fromkeys(order, 0.0)
            | {order[-1]: 1.0},
            "the nodes are visited from first to last: a gradient is passed on before it is complete": partial_sweep(
                order, edges
            ),
        }
        found = answer(order, edges)
        if isinstance(found, dict) and set(found) == set(order):
            # A mistake is told by the whole result, not by one number that may be alike by chance.
            whole = torch.stack([number(case, found[key], f"the entry {key!r}").double() for key in order])
            named = {
                sentence: torch.tensor([made[key] for key in order], dtype=F64) for sentence, made in wrong.items()
            }
            expected = torch.tensor([right[key] for key in order], dtype=F64)
            what = "the gradients of " + ", ".join(order)
            case.close(whole, expected, what=what, mistakes=named, tolerance=TINY)
        else:
            demand_numbers(case, found, right, lambda key: {}, "the gradients")

    def partial_sweep(order, edges):
        found = dict.fromkeys(order, 0.0) | {order[-1]: 1.0}
        for node in order:
            for edge, slope in edges.items():
                source, target = edge.split("->")
                if target == node:
                    found[source] += slope * found[target]
        return found

    with case("the graph of this homework", points=2, hint="last node first; x1 and x2 have two edges each"):
        for x1, x2 in ((2.0, 3.0), (-0.7, 1.3)):
            demand(list(GRAPH_NODES), graph_by_autograd(x1, x2)[1])
    with case("a chain, and random graphs", points=2, hint="nothing may depend on the names, or on the edges' order"):
        demand(["in", "mid", "out"], {"in->mid": 3.0, "mid->out": -2.0})
        demand(["in", "aside", "mid", "out"], {"in->aside": 4.0, "in->mid": 3.0, "mid->out": -2.0})
        for size in (5, 8):
            order = ["u" * (i + 1) for i in range(size)]  # names that are parts of each other
            edges = {
                f"{order[i]}->{order[j]}": float(case.randn(1, dtype=F64))
                for j in range(1, size)
                for i in range(j)
                if j == i + 1 or float(case.randn(1)) > 0
            }
            names = list(edges)
            demand(order, {names[i]: edges[names[i]] for i in case.randn(len(names)).argsort().tolist()})


# -- slopes of activations --------------------------------------------------------------------------------


def demand_slope(case, found, function, z, what, wrong):
    """Demand the slope of an elementwise function at z."""
    known = {sentence: made if isinstance(made, torch.Tensor) else made() for sentence, made in wrong.items()}
    known |= {"this is the function itself; its derivative is asked": function(z)}
    case.close(found, slope_at(function, z), what=what, mistakes=known, tolerance=TINY)


@check("leaky-relu-slope", points=2, part="theory", autograd=False)
def leaky_relu_slope(answer, case):
    """Against autograd through `F.leaky_relu`."""

    def demand(z, a):
        wrong = {
            "the slope on the left is 0: that is a plain ReLU": lambda: (z > 0).double(),
            "the two sides are exchanged: the slope is 1 where z > 0": lambda: torch.where(z > 0, a, 1.0).double(),
            "the slope on the right is the small one, on both sides": lambda: torch.full_like(z, a),
            "the left side has a minus sign: the slope there is positive": lambda: torch.where(z > 0, 1.0, -a).double(),
            "the left side is the function, a·z, not its slope": lambda: torch.where(z > 0, 1.0, a * z),
            "the right side is the function, z, not its slope": lambda: torch.where(z > 0, z, a),
            "the slope on the left is always 0.01; it is given": lambda: torch.where(z > 0, 1.0, 0.01).double(),
            "the slope on the left is 1 - a": lambda: torch.where(z > 0, 1.0, 1 - a).double(),
            "this is the slope of 5 ReLU": lambda: 5.0 * (z > 0),
            "at z = 0 the slope of the left side counts, as torch does it: ask z > 0, not z ≥ 0": lambda: torch.where(
                z >= 0, 1.0, a
            ).double(),
            "the right side holds 1 + a: the two sides are added there": lambda: torch.where(z > 0, 1 + a, a).double(),
        }
        if a == 0.01:
            wrong = {one: made for one, made in wrong.items() if "always" not in one}
        if a == 0:
            wrong = {one: made for one, made in wrong.items() if "plain ReLU" not in one}
        what = f"the slope for a = {a:g}"
        demand_slope(case, answer(z, a), lambda one: F.leaky_relu(one, a), z, what, wrong)

    with case("both sides, for several slopes", points=1, hint="one number where z > 0, another where it is not"):
        demand(case.randn(20, dtype=F64), 0.01)
        demand(case.randn(4, 5, dtype=F64), 0.3)
    with case("ReLU is the case a = 0, and at z = 0 the left side counts", points=1, hint="ask z > 0"):
        demand(torch.tensor([-2.0, 0.0, 0.0, 3.0], dtype=F64), 0.0)
        demand(torch.tensor([-2.0, 0.0, 3.0], dtype=F64), 0.2)


@check("softplus-slope", points=2, part="theory", autograd=False)
def softplus_slope(answer, case):
    """Against autograd through `F.softplus`."""

    def function(beta):
        return lambda z: F.softplus(z, beta=beta)

    def demand(z, beta):
        s, one = slope_at(function(beta), z), slope_at(F.softplus, z)
        wrong = {
            "β is not used": one,
            "β multiplies the slope: the 1/β before the logarithm cancels the inner derivative": beta * s,
            "the slope is divided by β: the inner derivative β is forgotten": s / beta,
            "z is divided by β; it is multiplied": torch.sigmoid(z / beta),
            "the sign in the exponent is wrong: the slope must grow with z": 1 - s,
            "this is the slope of the slope, β σ (1 - σ)": beta * s * (1 - s),
            "σ (1 - σ) is the slope of the sigmoid; Softplus is its integral": s * (1 - s),
            "the exponential above the line is missing: 1/(1 + e^(βz)) falls with z": 1 - s,
            "this is 1/(1 + e^z)": 1 - one,
            "tanh stands where the sigmoid belongs": torch.tanh(beta * z),
            "this is the step of a ReLU": (z > 0).double(),
        }
        wrong = {sentence: made for sentence, made in wrong.items() if beta != 1 or "β" not in sentence}
        found = answer(z, beta)
        if isinstance(found, torch.Tensor) and not found.isfinite().all():
            bad = "e^(βz) overflows for large βz, and ∞/∞ is NaN. Divide above and below by it, or use torch.sigmoid"
            case.close(found, s, mistakes=always(bad), tolerance=TINY)
        demand_slope(case, found, function(beta), z, f"the slope for β = {beta:g}", wrong)

    with case("for several β", points=1, hint="the chain rule: 1/β, the logarithm, 1 + e^(βz), βz"):
        demand(2 * case.randn(20, dtype=F64), 1.0)
        demand(case.randn(4, 5, dtype=F64), 3.0)
        demand(case.randn(10, dtype=F64), 0.5)
    with case("finite far out", points=1, hint="which form of the sigmoid has no large exponential?"):
        demand(torch.tensor([-1000.0, -50.0, 50.0, 1000.0], dtype=F64), 2.0)


@check("gelu-slope", points=2, part="theory", autograd=False)
def gelu_slope(answer, case):
    """Against autograd through `F.gelu`."""

    def demand(z):
        cumulative = torch.special.ndtr(z)
        density = slope_at(torch.special.ndtr, z)
        wrong = {
            "the second term of the product rule, z φ(z), is missing": cumulative,
            "the first term of the product rule, Φ(z), is missing": z * density,
            "the factor z of the second term is missing": cumulative + density,
            "the second term has the wrong sign": cumulative - z * density,
            "the density φ lacks its factor 1/√(2π)": cumulative + z * torch.exp(-(z**2) / 2),
            "the factor of φ is 1/(2π); it is 1/√(2π)": cumulative + z * torch.exp(-(z**2) / 2) / (2 * math.pi),
            "the factor of φ is 1/√π; it is 1/√(2π)": cumulative + z * torch.exp(-(z**2) / 2) / math.sqrt(math.pi),
            "the factor of φ is 2/√π, from the derivative of erf: the inner derivative and the ½ are missing": (
                cumulative + z * torch.exp(-(z**2) / 2) * 2 / math.sqrt(math.pi)
            ),
            "the second term has z² instead of z": cumulative + z**2 * density,
            "the first term has a factor z too many: the derivative of z is 1": z * cumulative + z * density,
            "1 - Φ stands where Φ belongs": 1 - cumulative + z * density,
            "erf is taken at z/2, not at z/√2": 0.5 * (1 + torch.erf(z / 2)) + z * density,
            "φ is e^(-z²): the ½ in its exponent is missing": (
                cumulative + z * torch.exp(-(z**2)) / math.sqrt(2 * math.pi)
            ),
            "φ grows: the minus sign in its exponent is missing": (
                cumulative + z * torch.exp(z**2 / 2) / math.sqrt(2 * math.pi)
            ),
            "erf is taken at z, not at z/√2": 0.5 * (1 + torch.erf(z)) + z * density,
            "the ½ in Φ is missing": 2 * cumulative + z * density,
            "the 1 + in Φ is missing": cumulative - 0.5 + z * density,
            "this is the slope of the approximation by tanh; the exact GELU is asked": lambda: slope_at(
                lambda one: F.gelu(one, approximate="tanh"), z
            ),
            "this is the slope of the approximation z σ(1.702 z); the exact GELU is asked": lambda: slope_at(
                lambda one: one * torch.sigmoid(1.702 * one), z
            ),
            "this is the slope of z σ(z), which is SiLU": lambda: slope_at(F.silu, z),
        }
        demand_slope(case, answer(z), F.gelu, z, "the slope", wrong)

    with case("the exact derivative", points=1, hint="the product rule on z · Φ(z); Φ' = φ"):
        demand(case.randn(20, dtype=F64))
        demand(2 * case.randn(3, 4, dtype=F64))
    with case("at 0, and far out", points=1, hint="½ at 0; it tends to 0 on the left and to 1 on the right"):
        demand(torch.tensor([-30.0, -3.0, 0.0, 3.0, 30.0], dtype=F64))


# -- dead units -------------------------------------------------------------------------------------------


@check("dead-units", points=2, part="theory", autograd=False)
def dead_units(answer, case):
    """Against a network whose units are made dead on purpose."""

    def made(B, n, h, dead):
        X, W1 = case.randn(B, n, dtype=F64), case.randn(h, n, dtype=F64)
        highest, lowest = (X @ W1.T).amax(0), (X @ W1.T).amin(0)
        middle = (highest + lowest) / 2
        b1 = torch.where(torch.arange(h) < dead, -highest - 0.1, -middle)[:, None]
        if dead < h:
            b1[dead] = 0.1 - lowest[dead]  # and one unit is always on
        return X, W1, b1

    def mostly_off(B, n, h, dead):
        X, W1 = case.randn(B, n, dtype=F64), case.randn(h, n, dtype=F64)
        z1 = (X @ W1.T).sort(dim=0).values
        b1 = torch.where(torch.arange(h) < dead, -z1[-1] - 0.1, 0.02 - z1[-2])[:, None]  # the others: on for two
        return X, W1, b1

    def demand(X, W1, b1, dead):
        h, B = len(W1), len(X)
        found = number(case, answer(X, W1, b1), "the share")
        on = F.linear(X, W1, b1.flatten()) > 0
        wrong = {
            "this is the share of units that fire; the others are asked": 1 - dead / h,
            "a unit counts as dead that is off for one example; it must be off for all": (
                (~on).any(0).double().mean().item()
            ),
            "this is the share of all entries of Z1 that are off; count units": (~on).double().mean().item(),
            "this is the share of all entries of Z1 that are on": on.double().mean().item(),
            "this is a number of units; divide by h": float(dead),
            "this is divided by the number of examples; divide by h": dead / B,
            "examples are counted, not units: reduce over the examples (axis 0)": (~on).all(1).double().mean().item(),
            "the bias is left out": (~(X @ W1.T > 0)).all(0).double().mean().item(),
            "this is a share in percent": 100 * dead / h,
            "units that are always on are counted, not those that are always off": on.all(0).double().mean().item(),
            "units whose mean is negative are counted; a dead one is never positive": (
                (F.linear(X, W1, b1.flatten()).mean(0) <= 0).double().mean().item()
            ),
            "z1 < 0 is asked for; at z1 = 0 a unit does not fire either": (
                (F.linear(X, W1, b1.flatten()) < 0).all(0).double().mean().item()
            ),
        }
        known = {one: torch.tensor(value, dtype=F64) for one, value in wrong.items()}
        telling = [value for value in known.values() if value.item() not in (0, 1, dead / h)]
        known = {one: value for one, value in known.items() if any(value is other for other in telling)}
        what = f"the share for {dead} dead of {h} units"
        case.close(found.double(), torch.tensor(dead / h, dtype=F64), what=what, mistakes=known, tolerance=TINY)

    with case("the share of units that never fire", points=1, hint="Z1 for all examples; a unit is a column of it"):
        for B, n, h, dead in ((20, 3, 8, 3), (15, 2, 5, 1), (30, 4, 6, 0), (10, 2, 4, 4)):
            demand(*made(B, n, h, dead), dead)
    with case("a unit that only reaches 0 is dead", points=1, hint="ReLU passes nothing at 0, in both directions"):
        X, W1, b1 = mostly_off(12, 3, 7, 2)
        W1[4], b1[4] = 0.0, 0.0
        demand(X, W1, b1, 3)


# ==============================================================================================================
# backpropagation
#
# The checks of Homework 1, Implementation.
#
# The oracles are torch's layers, losses and automatic differentiation, in double precision where it matters. Sizes: B
# examples, n inputs, h hidden units, k outputs.
#
# Most of the code describes mistakes. A wrong gradient is made by automatic differentiation too, of a network that has
# the right values but, somewhere, a wrong slope (see `mlp_surrogate`).
# ==============================================================================================================


MLP_FUNCTIONS = {"relu": F.relu, "sigmoid": torch.sigmoid, "identity": lambda z: z}
MLP_PAIRS = list(itertools.product(MLP_FUNCTIONS, repeat=2))
MLP_NAMES = ("W1", "b1", "W2", "b2")


def slope_by_torch(function, z):
    """Return the derivative of `function`, entry by entry."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


# -- nonlinearities ---------------------------------------------------------------------------------------


def other_functions(name, z):
    """Return what other functions than the one that is asked for give."""
    found = {f"this is {other}, not {name}": function(z) for other, function in MLP_FUNCTIONS.items() if other != name}
    sigmoid = torch.sigmoid(z)
    return found | {
        "this is tanh; the sigmoid goes from 0 to 1": torch.tanh(z),
        "the sign in the exponent is wrong: the sigmoid rises with z": 1 - sigmoid,
        "this is a softmax over the last axis; the sigmoid looks at each entry alone": lambda: z.softmax(-1),
        "this is a softmax over axis 0; the sigmoid looks at each entry alone": lambda: z.softmax(0),
        "this is e^z; a sigmoid needs a denominator": z.exp(),
        "this is e^(-z); a sigmoid needs a denominator": (-z).exp(),
        "this is the absolute value: negative entries become 0": z.abs(),
        "the wrong half is kept: ReLU keeps what is positive": z.clamp(max=0),
        "the wrong half is kept, and its sign changed": (-z).clamp(min=0),
        "this is a leaky ReLU: negative entries become 0": F.leaky_relu(z),
        "this is the slope of ReLU, 0 or 1, not its value": (z > 0).to(z.dtype),
        "values above 1 are cut off, which ReLU does not do": z.clamp(0, 1),
        "this is the slope of the sigmoid, not its value": slope_by_torch(torch.sigmoid, z),
        "the identity returns z itself": torch.ones_like(z),
    }


@check("mlp-activation", points=6, part="backpropagation", autograd=False)
def mlp_activation(answer, case):
    """Against torch's functions."""

    def demand(name, z):
        result = answer(name, z)
        case.close(result, MLP_FUNCTIONS[name](z), what=f"activation({name!r}, z)", mistakes=other_functions(name, z))

    with case("ReLU", points=2, hint="0 where z is negative, z where it is not; clamp"):
        for shape in ((4, 5), (3,), (2, 3, 4)):
            demand("relu", 2 * case.randn(*shape))
    with case("sigmoid", points=2, hint="1 / (1 + exp(-z)), entry by entry"):
        for shape in ((4, 5), (3,), (2, 3, 4)):
            demand("sigmoid", 2 * case.randn(*shape))
    with case("identity", points=1, hint="z itself"):
        demand("identity", case.randn(4, 5))
    with case(
        "large z, double precision, and z stays as it was", points=1, hint="exp(1000) is infinite; no _ at the end"
    ):
        z = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]])
        for name, function in MLP_FUNCTIONS.items():
            result = answer(name, z)
            case.finite(result, what=f"activation({name!r}, z) for z up to ±10,000")
            case.close(result, function(z), what=f"activation({name!r}, z) for z up to ±10,000")
            double = case.randn(3, 4, dtype=torch.float64)
            case.close(answer(name, double), function(double), what=f"activation({name!r}, z) in float64")
            case.dtype(answer(name, double), torch.float64, what=f"activation({name!r}, z) of a float64 z")
            case.unchanged(answer, name, case.randn(3, 4))


def other_slopes(name, z):
    """Return what is mistaken for a derivative."""
    function, sigmoid = MLP_FUNCTIONS[name], torch.sigmoid(z)
    value = function(z)
    found = {
        f"this is the derivative of {other}, not of {name}": slope_by_torch(theirs, z)
        for other, theirs in MLP_FUNCTIONS.items()
        if other != name
    }
    return found | {
        f"this is {name} itself, not its derivative": value,
        "z is taken for the value of the sigmoid; z is what went into it": z * (1 - z),
        "the derivative is taken at sigmoid(z); it belongs at z": slope_by_torch(torch.sigmoid, sigmoid),
        "the derivative has the wrong sign": -slope_by_torch(function, z),
        "this is σ(1 + σ); check the sign": sigmoid * (1 + sigmoid),
        "this is 1 - σ; a factor is missing": 1 - sigmoid,
        "this is 1 - σ², which belongs to tanh": 1 - sigmoid**2,
        "this is the derivative of tanh": 1 - torch.tanh(z) ** 2,
        "this is e^(-z) / (1 + e^(-z)); the denominator must be squared": 1 - sigmoid,
        "this is σ²(1 - σ); one factor σ too many": sigmoid**2 * (1 - sigmoid),
        "the derivative of the identity is 1, not 0": torch.zeros_like(z),
        "the slope of a leaky ReLU: it is 0 where z is negative": slope_by_torch(F.leaky_relu, z),
        "the slope is 1 where z is negative, and 0 where it is positive: exchanged": (z < 0).to(z.dtype),
        "this is the sign of z; the slope is 0 where z is negative": z.sign(),
    }


@check("mlp-derivative", points=8, part="backpropagation", autograd=False)
def mlp_derivative(answer, case):
    """Against automatic differentiation of torch's functions."""

    def demand(name, z):
        what = f"derivative({name!r}, z)"
        case.close(answer(name, z), slope_by_torch(MLP_FUNCTIONS[name], z), what=what, mistakes=other_slopes(name, z))

    with case("ReLU", points=2, hint="what is the slope left of 0, and what right of it?"):
        for shape in ((4, 5), (3,), (2, 3, 4)):
            demand("relu", 2 * case.randn(*shape))
    with case("ReLU at exactly 0", points=1, hint="> or >= ?"):
        z = torch.tensor([[0.0, -0.0, 1e-30, -1e-30]])
        at_zero = answer("relu", z)
        mistakes = {
            "at exactly 0 the slope is taken to be 1; torch takes 0": lambda: bool((at_zero[0, :2] == 1).all()),
            "at exactly 0 the slope is taken to be 1/2; torch takes 0": lambda: bool((at_zero[0, :2] == 0.5).all()),
        }
        case.close(at_zero, slope_by_torch(F.relu, z), what="derivative('relu', 0)", mistakes=mistakes)
    with case("sigmoid", points=2, hint="σ'(z) can be written with σ(z) alone"):
        for shape in ((4, 5), (3,), (2, 3, 4)):
            demand("sigmoid", 2 * case.randn(*shape))
    with case("identity", points=1, hint="a tensor as large as z: one slope for each entry"):
        demand("identity", case.randn(4, 5))
    with case("finite for large z", points=1, hint="exp(z) / (1 + exp(z))² is ∞/∞ for z = 1000"):
        z = torch.tensor([[-1e4, -100.0, 100.0, 1e4]])
        for name, function in MLP_FUNCTIONS.items():
            result, what = answer(name, z), f"derivative({name!r}, z) for z up to ±10,000"
            case.finite(result, what=what)
            case.close(result, slope_by_torch(function, z), what=what)
    with case(
        "in the dtype of z, which stays as it was", points=1, hint="(z > 0) is made of booleans: convert to z.dtype"
    ):
        for name, function in MLP_FUNCTIONS.items():
            z = case.randn(3, 4, dtype=torch.float64)
            case.dtype(answer(name, z), torch.float64, what=f"derivative({name!r}, z) of a float64 z")
            case.dtype(answer(name, z.float()), torch.float32, what=f"derivative({name!r}, z) of a float32 z")
            case.close(answer(name, z), slope_by_torch(function, z), what=f"derivative({name!r}, z) in float64")
            case.unchanged(answer, name, z)


# -- the network ------------------------------------------------------------------------------------------


def mlp_network(answer, n, h, k, f, g):
    """Build the student's network."""
    return answer(
        linear_1_in_features=n,
        linear_1_out_features=h,
        f_function=f,
        linear_2_in_features=h,
        linear_2_out_features=k,
        g_function=g,
    )


def mlp_parameters(case, n, h, k, dtype=torch.float32):
    """Draw parameters that neither saturate a sigmoid nor leave it linear."""
    W1, W2 = 1.5 * case.randn(h, n, dtype=dtype) / math.sqrt(n), 1.5 * case.randn(k, h, dtype=dtype) / math.sqrt(h)
    return {"W1": W1, "b1": case.randn(h, dtype=dtype), "W2": W2, "b2": case.randn(k, dtype=dtype)}


def mlp_with_parameters(answer, parameters, f, g):
    """Build the student's network and give it parameters."""
    (h, n), (k, _) = parameters["W1"].shape, parameters["W2"].shape
    net = mlp_network(answer, n, h, k, f, g)
    net.fill("parameters", parameters)
    return net


def mlp_prediction(parameters, x, f, g):
    """Return torch's prediction."""
    hidden = MLP_FUNCTIONS[f](F.linear(x, parameters["W1"], parameters["b1"]))
    return MLP_FUNCTIONS[g](F.linear(hidden, parameters["W2"], parameters["b2"]))


def prediction_mistakes(parameters, x, f, g):
    """Return the predictions that common mistakes lead to."""
    W1, b1, W2, b2 = (parameters[name] for name in MLP_NAMES)
    apply, last = MLP_FUNCTIONS[f], MLP_FUNCTIONS[g]
    zero = torch.zeros(())

    def run(f=apply, g=last, b1=b1, b2=b2, one=None, two=None):
        one, two = one or (lambda x: x @ W1.T), two or (lambda z: z @ W2.T)
        return lambda: g(two(f(one(x) + b1)) + b2)

    found = {
        "b1 is not added": run(b1=zero),
        "b2 is not added": run(b2=zero),
        "neither bias is added": run(b1=zero, b2=zero),
        "b1 is subtracted": run(b1=-b1),
        "b2 is subtracted": run(b2=-b2),
        "b1 and b2 are exchanged": run(b1=b2, b2=b1),
        "W1 is not transposed: y = x @ W1 uses its columns as rows": run(one=lambda x: x @ W1),
        "W2 is not transposed": run(two=lambda z: z @ W2),
        "W1 and W2 are not transposed": run(one=lambda x: x @ W1, two=lambda z: z @ W2),
        "W1 is used in both layers": run(two=lambda z: z @ W1.T),
        "W2 is used in both layers": run(one=lambda x: x @ W2.T),
        "W1 and W2 are exchanged": run(one=lambda x: x @ W2.T, two=lambda z: z @ W1.T),
        f"f ({f}) is applied before b1 is added": lambda: last((apply(x @ W1.T) + b1) @ W2.T + b2),
        f"g ({g}) is applied before b2 is added": lambda: last(apply(x @ W1.T + b1) @ W2.T) + b2,
        f"f ({f}) is not applied": run(f=lambda z: z),
        f"g ({g}) is not applied: this is z3": run(g=lambda z: z),
        "f and g are exchanged": run(f=last, g=apply),
        f"g ({g}) is applied twice": run(g=lambda z: last(last(z))),
        "the output goes through a softmax; g looks at each entry alone": run(g=lambda z: z.softmax(-1)),
        "this is the output of layer 1; layer 2 is missing": lambda: apply(x @ W1.T + b1),
        "the batch is on the wrong axis: the result is transposed": lambda: run()().T,
        "only the first example is used": lambda: run()()[:1],
        "the result is averaged over the batch": lambda: run()().mean(0),
        "the hidden layer is divided by the number of its units": run(f=lambda z: apply(z) / z.shape[-1]),
    }
    for first, second in MLP_PAIRS:
        wrong = [
            f"{a} for {what}, where {b} is asked for" for what, a, b in (("f", first, f), ("g", second, g)) if a != b
        ]
        if wrong:
            found[f"your network takes {' and '.join(wrong)}"] = run(f=MLP_FUNCTIONS[first], g=MLP_FUNCTIONS[second])
    return found


def demand_prediction(case, answer, n, h, k, f, g, B):
    """Hold the student's prediction for a random batch against torch's."""
    parameters, x = mlp_parameters(case, n, h, k), case.randn(B, n)
    y_hat = mlp_with_parameters(answer, parameters, f, g).call("forward", x)
    what = f"y_hat of a network {n} → {h} → {k} with f = {f}, g = {g}"
    mistakes = prediction_mistakes(parameters, x, f, g)
    case.close(y_hat, mlp_prediction(parameters, x, f, g), what=what, mistakes=mistakes)


def demand_parameters_as_drawn(case, net, shapes):
    """Demand plain tensors from the standard normal distribution, and gradients of zero."""
    parameters, grads = net.read("parameters"), net.read("grads")
    case.true(set(parameters) == set(MLP_NAMES), f"`parameters` holds {sorted(parameters)}, expected {list(MLP_NAMES)}")
    names = [f"dJd{name}" for name in MLP_NAMES]
    case.true(set(grads) == set(names), f"`grads` holds {sorted(grads)}, expected {names}")
    for name, shape in shapes.items():
        value, gradient = parameters[name], grads[f"dJd{name}"]
        transposed = {f"{name} is transposed: a weight matrix is out × in": tuple(reversed(shape))}
        case.shape(value, shape, what=name, mistakes=transposed if name.startswith("W") else None)
        case.close(gradient, torch.zeros(shape), what=f"dJd{name} of a new network")
        size = value.numel()
        case.true(value.std() > 0, f"all entries of {name} are equal; they are drawn by torch.randn")
        mean, std, far = value.mean().item(), value.std().item(), (value.abs() > 2).float().mean().item()
        text = f"the entries of {name} have mean {mean:.2f} and standard deviation {std:.2f}; torch.randn has 0 and 1"
        case.true(abs(mean) < 6 / math.sqrt(size) and abs(std - 1) < 6 / math.sqrt(2 * size), text)
        expected = math.erfc(2 / math.sqrt(2))  # the share of a normal distribution that lies beyond ±2
        spread = 6 * math.sqrt(expected / size) + 3 / size
        case.true(
            abs(far - expected) < spread, f"the entries of {name} are not normally distributed, as torch.randn's are"
        )


@check("mlp-forward", points=8, hidden=2, part="backpropagation", autograd=False)
def mlp_forward(answer, case):
    """Against torch's linear layers and functions."""
    with case("one prediction for each example", points=1, hint="(B, n) → (B, h) → (B, k)"):
        net = mlp_network(answer, 3, 5, 2, "relu", "sigmoid")
        y_hat = net.call("forward", case.randn(4, 3))
        mistakes = {
            "the batch is on the wrong axis": (2, 4),
            "this is the output of layer 1": (4, 5),
            "this is one example, not a batch": (2,),
        }
        case.shape(y_hat, (4, 2), what="y_hat for B = 4, n = 3, h = 5, k = 2", mistakes=mistakes)
        fixed = net.call("forward", case.randn(1, 3))
        case.shape(fixed, (1, 2), what="y_hat for B = 1")
    with case(
        "two linear maps (f and g are the identity)", points=2, hint="W is out × in: a batch of rows needs W transposed"
    ):
        demand_prediction(case, answer, 3, 5, 2, "identity", "identity", B=4)
        demand_prediction(case, answer, 4, 4, 4, "identity", "identity", B=4)
    with case("all nine pairs of functions", points=2, hint="f after the first linear map, g after the second"):
        for f, g in MLP_PAIRS:
            demand_prediction(case, answer, 3, 5, 2, f, g, B=6)
            demand_prediction(case, answer, 4, 4, 4, f, g, B=3)
    with case("a batch of one", points=1, hint="no squeeze(): the batch axis stays"):
        demand_prediction(case, answer, 3, 5, 2, "relu", "sigmoid", B=1)
        demand_prediction(case, answer, 3, 1, 1, "sigmoid", "identity", B=1)
    with case("every call stands for itself", points=1, hint="compute from x and the parameters, not from the cache"):
        parameters, first, second = mlp_parameters(case, 3, 5, 2), case.randn(4, 3), case.randn(6, 3)
        net = mlp_with_parameters(answer, parameters, "relu", "identity")
        y_hat = net.call("forward", first)
        kept = y_hat.clone()
        again = net.call("forward", second)
        what = "y_hat of a second call, with another batch"
        case.close(again, mlp_prediction(parameters, second, "relu", "identity"), what=what)
        case.true(torch.equal(y_hat, kept), "a second call changes the prediction that the first one has returned")
        changed = {name: value + 1 for name, value in parameters.items()}
        net.fill("parameters", changed)
        what = "y_hat after the parameters have changed"
        case.close(net.call("forward", second), mlp_prediction(changed, second, "relu", "identity"), what=what)
        case.true(not again.requires_grad, "the prediction carries a graph; work with plain tensors")
    with case(
        "x and the parameters stay as they were drawn",
        points=1,
        hint="__init__ was given; forward changes nothing but the cache",
    ):
        net = mlp_network(answer, 40, 60, 50, "sigmoid", "sigmoid")
        net.call("forward", case.randn(4, 40))
        shapes = {"W1": (60, 40), "b1": (60,), "W2": (50, 60), "b2": (50,)}
        demand_parameters_as_drawn(case, net, shapes)
        other = mlp_network(answer, 40, 60, 50, "sigmoid", "sigmoid").read("parameters")
        before = net.read("parameters")
        text = "two networks have the same parameters; each is drawn anew"
        case.true(not any(torch.equal(before[name], other[name]) for name in MLP_NAMES), text)
        for f, g in MLP_PAIRS:
            net = mlp_with_parameters(answer, mlp_parameters(case, 3, 5, 2), f, g)
            before = net.read("parameters")
            case.unchanged(net.method("forward"), case.randn(4, 3))
            after = net.read("parameters")
            changed = [name for name in MLP_NAMES if not torch.equal(before[name], after[name])]
            case.true(not changed, f"forward changes {', '.join(changed)}")


# -- gradients --------------------------------------------------------------------------------------------


def mlp_surrogate(value, slope, z):
    """Return a tensor that has this value, but this slope with respect to z."""
    return value.detach() + slope.detach() * (z - z.detach())


def mlp_gradients(parameters, x, f, g, upstream, *, f_slope=None, g_slope=None, into_2=None, back=None):
    """Return the gradients of `sum(y_hat * upstream)` for all parameters, by automatic differentiation.

    Without the last four arguments they are right. With them, a slope is replaced: `f_slope` and `g_slope` are
    functions of what goes into f and g; `into_2(z1, z2)` takes the place of the input of layer 2 in the gradient of
    W2; and the path from z3 back to z2 goes through `back(W1, W2)` instead of W2.
    """
    leaves = [parameters[name].double().detach().requires_grad_() for name in MLP_NAMES]
    W1, b1, W2, b2 = leaves
    x, upstream = x.double(), upstream.double()
    z1 = F.linear(x, W1, b1)
    z2 = MLP_FUNCTIONS[f](z1)
    if f_slope is not None:
        z2 = mlp_surrogate(z2, f_slope(z1), z1)
    z3 = F.linear(z2, W2, b2)
    if into_2 is not None:
        z3 = F.linear(z2, W2.detach(), b2) + F.linear(into_2(z1, z2).detach(), W2 - W2.detach())
    if back is not None:
        z3 = F.linear(z2.detach(), W2, b2) + F.linear(z2 - z2.detach(), back(W1, W2).detach())
    y_hat = MLP_FUNCTIONS[g](z3)
    if g_slope is not None:
        y_hat = mlp_surrogate(y_hat, g_slope(z3), z3)
    return dict(zip(MLP_NAMES, torch.autograd.grad((y_hat * upstream).sum(), leaves), strict=True))


def gradient_mistakes_of_mlp(name, parameters, x, f, g, upstream):
    """Return the gradients of one parameter that common mistakes lead to, under the sentence that names each."""

    def run(f=f, g=g, x=x, upstream=upstream, **slopes):
        return lambda: mlp_gradients(parameters, x, f, g, upstream, **slopes)[name]

    def at_output(which):
        return lambda z: slope_by_torch(MLP_FUNCTIONS[which], MLP_FUNCTIONS[which](z))

    def value(which):
        return MLP_FUNCTIONS[which]

    def of(which):
        return lambda z: slope_by_torch(MLP_FUNCTIONS[which], z)

    right, (B, k) = run()(), upstream.shape
    hidden = name in ("W1", "b1")
    found = {
        "the sign is wrong": -right,
        "the gradient is 0: it has not been stored under this name": torch.zeros_like(right),
        "it is divided by B once more: the factor of the mean is in dJdy_hat already": right / B,
        "it is divided by B·k once more: the factor of the mean is in dJdy_hat already": right / (B * k),
        "it is divided by k": right / k,
        "it is multiplied by B": right * B,
        "it is twice as large as it should be": 2 * right,
        "it is half as large as it should be": right / 2,
        "only the first example of the batch counts; the gradients of all are added": lambda: mlp_gradients(
            parameters, x[:1], f, g, upstream[:1]
        )[name],
        "only the last example of the batch counts; the gradients of all are added": lambda: mlp_gradients(
            parameters, x[-1:], f, g, upstream[-1:]
        )[name],
        "it is transposed": lambda: right.mT,
        "dJdy_hat is not used: this is the gradient of the sum of y_hat": run(upstream=torch.ones_like(upstream)),
        "only the sign of dJdy_hat is used": run(upstream=upstream.sign()),
        "dJdy_hat is averaged over the batch before it is used": run(upstream=upstream.mean(0).expand_as(upstream)),
        "dJdy_hat is added up over the batch before it is used": run(upstream=upstream.sum(0).expand_as(upstream)),
        f"the derivative of g ({g}) is missing": run(g_slope=torch.ones_like),
        f"the derivative of g ({g}) is taken at y_hat; it belongs at z3": run(g_slope=at_output(g)),
        f"g ({g}) itself is taken for its derivative": run(g_slope=value(g)),
        f"the derivative of g ({g}) counts twice": run(g_slope=lambda z: of(g)(z) ** 2),
        "z3 is taken for y_hat: z3 (1 - z3) is not the slope of a sigmoid": run(g_slope=lambda z: z * (1 - z)),
        "1 - y_hat is taken for the slope of the sigmoid": run(g_slope=lambda z: 1 - z.sigmoid()),
        "y_hat (1 + y_hat) is taken for the slope of the sigmoid": run(
            g_slope=lambda z: z.sigmoid() * (1 + z.sigmoid())
        ),
        "the slopes of f and g are exchanged": run(f_slope=of(g), g_slope=of(f)),
        "the gradient belongs to the other examples: the batch is in reverse order": run(upstream=upstream.flip(0)),
    }
    for other in MLP_FUNCTIONS:
        if other != g:
            found[f"g is {g}, but the derivative of {other} is used for it"] = run(g_slope=of(other))
    if name == "W2":
        found |= {
            "it is made with z1; what goes into layer 2 is z2 = f(z1)": run(into_2=lambda z1, z2: z1),
            "it is made with ones; what goes into layer 2 is z2": run(into_2=lambda z1, z2: torch.ones_like(z2)),
            "it is made with x; what goes into layer 2 is z2": run(into_2=lambda z1, z2: x.double()),
            "it is made with f'(z1); what goes into layer 2 is z2 = f(z1)": run(into_2=lambda z1, z2: of(f)(z1)),
            "the derivative of f belongs to layer 1 only": run(into_2=lambda z1, z2: z2 * of(f)(z1)),
        }
    if hidden:
        found |= {
            f"the derivative of f ({f}) is missing": run(f_slope=torch.ones_like),
            f"the derivative of f ({f}) is taken at z2; it belongs at z1": run(f_slope=at_output(f)),
            f"f ({f}) itself is taken for its derivative": run(f_slope=value(f)),
            f"the derivative of f ({f}) counts twice": run(f_slope=lambda z: of(f)(z) ** 2),
            "z1 is taken for z2: z1 (1 - z1) is not the slope of a sigmoid": run(f_slope=lambda z: z * (1 - z)),
            "1 - z2 is taken for the slope of the sigmoid": run(f_slope=lambda z: 1 - z.sigmoid()),
            "z2 (1 + z2) is taken for the slope of the sigmoid": run(f_slope=lambda z: z.sigmoid() * (1 + z.sigmoid())),
            "both derivatives, of f and of g, are missing": run(f_slope=torch.ones_like, g_slope=torch.ones_like),
            "both derivatives are taken at the outputs of f and g; they belong at the inputs": run(
                f_slope=at_output(f), g_slope=at_output(g)
            ),
            "on the way back, W2 is transposed": run(back=lambda W1, W2: W2.T),
            "on the way back, W1 stands where W2 belongs": run(back=lambda W1, W2: W1),
            "on the way back, W1 stands (transposed) where W2 belongs": run(back=lambda W1, W2: W1.T),
            "on the way back, W2 is missing: ones stand in its place": run(back=lambda W1, W2: torch.ones_like(W2)),
            "on the way back, W2 is missing": run(back=lambda W1, W2: torch.eye(*W2.shape, dtype=W2.dtype)),
        }
        for other in MLP_FUNCTIONS:
            if other != f:
                found[f"f is {f}, but the derivative of {other} is used for it"] = run(f_slope=of(other))
        for first, second in MLP_PAIRS:
            if first != f and second != g:
                sentence = f"the derivatives are those of f = {first}, g = {second}; here f = {f}, g = {g}"
                found[sentence] = run(f_slope=of(first), g_slope=of(second))
    return found


def read_gradients(case, net):
    """Return the four gradients of a student's network, by the names of the parameters."""
    grads = net.read("grads")
    missing = [f"dJd{name}" for name in MLP_NAMES if f"dJd{name}" not in grads]
    case.true(not missing, f"`grads` has no {', '.join(missing)}; it holds {sorted(grads)}")
    return {name: grads[f"dJd{name}"] for name in MLP_NAMES}


def demand_gradients_of_mlp(case, net, parameters, x, f, g, upstream, names=MLP_NAMES):
    """Hold the gradients that stand in a student's network against torch's."""
    found, right = read_gradients(case, net), mlp_gradients(parameters, x, f, g, upstream)
    for name in names:
        h, n = parameters["W1"].shape
        sizes = f"{n} → {h} → {len(parameters['b2'])}, f = {f}, g = {g}"
        expected = right[name].to(parameters[name].dtype)
        if not isinstance(found[name], torch.Tensor) or not alike(found[name], expected):
            mistakes = gradient_mistakes_of_mlp(name, parameters, x, f, g, upstream)
            case.close(found[name], expected, what=f"dJd{name} ({sizes})", mistakes=mistakes)


def demand_backward(case, answer, n, h, k, f, g, B, names=MLP_NAMES, dtype=torch.float32):
    """Run a student's network forward and backward on a random batch, and hold the gradients against torch's."""
    parameters = mlp_parameters(case, n, h, k, dtype)
    x, upstream = case.randn(B, n, dtype=dtype), case.randn(B, k, dtype=dtype)
    net = mlp_with_parameters(answer, parameters, f, g)
    net.call("forward", x)
    net.call("backward", upstream)
    demand_gradients_of_mlp(case, net, parameters, x, f, g, upstream, names)


@check("mlp-backward", points=16, hidden=8, part="backpropagation", autograd=False)
def mlp_backward(answer, case):
    """Against automatic differentiation in double precision, with any upstream gradient."""
    with case("every gradient has the shape of its parameter", points=1, hint="dJdW (out, in), dJdb (out,)"):
        net = mlp_network(answer, 3, 5, 2, "sigmoid", "sigmoid")
        net.call("forward", case.randn(4, 3))
        net.call("backward", case.randn(4, 2))
        for name, value in read_gradients(case, net).items():
            shape = tuple(net.read("parameters")[name].shape)
            mistakes = {
                "it is transposed": shape[::-1] if len(shape) == 2 else None,
                "it is not added up over the batch": (4, *shape[-1:]),
                "an axis of size 1 is left": (1, *shape),
                "there is one gradient for each example: add them up": (4, *shape),
            }
            mistakes = {sentence: wrong for sentence, wrong in mistakes.items() if wrong and wrong != shape}
            case.shape(value, shape, what=f"dJd{name}", mistakes=mistakes)
    with case(
        "dJdW2 and dJdb2 (f and g are the identity)",
        points=3,
        hint="the rows that come back, and the rows that went in",
    ):
        demand_backward(case, answer, 3, 5, 2, "identity", "identity", B=4, names=("W2", "b2"))
        demand_backward(case, answer, 4, 4, 4, "identity", "identity", B=4, names=("W2", "b2"))
    with case(
        "dJdW1 and dJdb1 (f and g are the identity)", points=3, hint="first carry dJdz3 back through W2, from z3 to z2"
    ):
        demand_backward(case, answer, 3, 5, 2, "identity", "identity", B=4, names=("W1", "b1"))
        demand_backward(case, answer, 4, 4, 4, "identity", "identity", B=4, names=("W1", "b1"))
    with case(
        "all nine pairs of functions", points=4, hint="times g'(z3) at the output, times f'(z1) at the hidden layer"
    ):
        for f, g in MLP_PAIRS:
            demand_backward(case, answer, 3, 5, 2, f, g, B=6)
            demand_backward(case, answer, 4, 4, 4, f, g, B=3)
    with case("ReLU at exactly 0 lets nothing through", points=1, hint="where z1 or z3 is exactly 0, the slope is 0"):
        parameters = mlp_parameters(case, 3, 4, 2)
        parameters["W1"][0], parameters["b1"][0] = 0, 0  # z1 of unit 0 is exactly 0
        parameters["W2"][1], parameters["b2"][1] = 0, 0  # z3 of output 1 too
        for f, g in (("relu", "identity"), ("identity", "relu"), ("relu", "relu")):
            net = mlp_with_parameters(answer, parameters, f, g)
            x, upstream = case.randn(4, 3), case.randn(4, 2)
            net.call("forward", x)
            net.call("backward", upstream)
            demand_gradients_of_mlp(case, net, parameters, x, f, g, upstream)
    with case("a batch of one", points=1, hint="a batch of one has the gradient of its example, in the same shapes"):
        demand_backward(case, answer, 3, 5, 2, "relu", "sigmoid", B=1)
        demand_backward(case, answer, 3, 5, 1, "sigmoid", "identity", B=1)
    with case("called twice: the gradients add up", points=1, hint="as in torch: add to what stands in grads"):
        parameters, x, y = mlp_parameters(case, 3, 5, 2), case.randn(4, 3), case.randn(6, 3)
        net = mlp_with_parameters(answer, parameters, "sigmoid", "sigmoid")
        one, two = case.randn(4, 2), case.randn(6, 2)
        right = [mlp_gradients(parameters, z, "sigmoid", "sigmoid", up) for z, up in ((x, one), (y, two))]
        net.call("forward", x)
        net.call("backward", one)
        for steps, factors in ((one, (2, 0)), (two, (2, 1))):
            if steps is two:
                net.call("forward", y)
            net.call("backward", steps)
            found = read_gradients(case, net)
            for name in MLP_NAMES:
                expected = (factors[0] * right[0][name] + factors[1] * right[1][name]).float()
                mistakes = {
                    "the second call overwrites what the first has left; it should add to it": right[factors[1]][name],
                    "the second call leaves the gradients of the first": factors[0] * right[0][name] / (2 - factors[1]),
                    "both calls are averaged; they should add up": expected / 2,
                }
                case.close(found[name], expected, what=f"dJd{name} after calling backward again", mistakes=mistakes)
    with case("after two forward passes the last one counts", points=1, hint="forward replaces what is in the cache"):
        parameters, x, y = mlp_parameters(case, 3, 5, 2), case.randn(4, 3), case.randn(4, 3)
        net, upstream = mlp_with_parameters(answer, parameters, "relu", "sigmoid"), case.randn(4, 2)
        for batch in (x, y):
            net.call("forward", batch)
        net.call("backward", upstream)
        found, right = read_gradients(case, net), mlp_gradients(parameters, y, "relu", "sigmoid", upstream)
        stale = mlp_gradients(parameters, x, "relu", "sigmoid", upstream)
        for name in MLP_NAMES:
            mistakes = {"these are the gradients of the first batch: the cache is stale": stale[name]}
            what = f"dJd{name} after forward(x), forward(x2), backward"
            case.close(found[name], right[name].float(), what=what, mistakes=mistakes)
    with case(
        "dJdy_hat, x and the parameters stay as they were",
        points=1,
        hint="d = d * slope makes a new tensor; d *= slope changes the caller's",
    ):
        for f, g in MLP_PAIRS:
            net = mlp_with_parameters(answer, mlp_parameters(case, 3, 5, 2), f, g)
            before = net.read("parameters")
            y_hat = net.call("forward", case.randn(4, 3))
            kept = y_hat.clone()
            case.unchanged(net.method("backward"), case.randn(4, 2))
            after = net.read("parameters")
            changed = [name for name in MLP_NAMES if not torch.equal(before[name], after[name])]
            case.true(not changed, f"backward changes {', '.join(changed)}; the update is the caller's business")
            case.true(torch.equal(y_hat, kept), "backward changes the prediction that forward has returned")


def predictions_around_clearing(MLP, x, arguments):
    """Return what a new network predicts, and what has become of that when the network is cleared."""
    net = MLP(*arguments)
    y_hat = net.forward(x)
    before = y_hat.clone()
    net.backward(torch.ones_like(y_hat))
    net.clear_grad_and_cache()
    return before, y_hat


@check("mlp-clear", points=6, part="backpropagation", autograd=False)
def mlp_clear(answer, case):
    """Against zeros, and against a network that was never used."""

    def used_network(f="sigmoid", g="sigmoid"):
        parameters = mlp_parameters(case, 3, 5, 2)
        net = mlp_with_parameters(answer, parameters, f, g)
        y_hat = net.call("forward", case.randn(4, 3))
        net.call("backward", case.randn(4, 2))
        return net, parameters, y_hat

    with case(
        "every gradient becomes 0, in the shape of its parameter",
        points=2,
        hint="all four; zero_() or torch.zeros_like",
    ):
        net, parameters, _ = used_network()
        net.call("clear_grad_and_cache")
        for name, value in read_gradients(case, net).items():
            left = always(f"dJd{name} is not cleared")
            case.true(isinstance(value, torch.Tensor), f"dJd{name} is no tensor any more; it should hold zeros")
            case.shape(value, tuple(parameters[name].shape), what=f"dJd{name} after clearing")
            case.close(value, torch.zeros_like(parameters[name]), what=f"dJd{name}", mistakes=left)
    with case("the cache becomes empty", points=1, hint="self.cache is an empty dictionary again"):
        net, _, _ = used_network()
        net.call("clear_grad_and_cache")
        cache = net.read("cache")
        case.true(cache is not None, "`cache` is None; it should be an empty dictionary")
        case.true(len(cache) == 0, f"`cache` still holds {', '.join(map(str, cache))}")
    with case("what follows is as if nothing had been", points=1, hint="after clearing, backward adds to zeros"):
        net, parameters, _ = used_network("relu", "sigmoid")
        net.call("clear_grad_and_cache")
        x, upstream = case.randn(6, 3), case.randn(6, 2)
        net.call("forward", x)
        net.call("backward", upstream)
        demand_gradients_of_mlp(case, net, parameters, x, "relu", "sigmoid", upstream)
    with case("parameters and predictions stay", points=1, hint="only grads and cache are cleared"):
        for f, g in (("sigmoid", "sigmoid"), ("relu", "identity"), ("identity", "relu")):
            net, parameters, _ = used_network(f, g)
            net.call("clear_grad_and_cache")
            after = net.read("parameters")
            changed = [name for name in MLP_NAMES if not torch.equal(parameters[name], after[name])]
            case.true(not changed, f"clearing changes {', '.join(changed)}")
            y_hat, cleared = answer.probe(predictions_around_clearing, case.randn(4, 3), (3, 5, f, 5, 2, g))
            case.true(torch.equal(y_hat, cleared), "clearing changes the prediction that forward has returned")
    with case("a new network can be cleared too, and twice", points=1, hint="the published training loop clears first"):
        net = mlp_network(answer, 3, 5, 2, "relu", "identity")
        for _ in range(2):
            net.call("clear_grad_and_cache")
        net.call("forward", case.randn(4, 3))
        for name, value in read_gradients(case, net).items():
            case.close(value, torch.zeros_like(net.read("parameters")[name]), what=f"dJd{name}")


# -- losses -----------------------------------------------------------------------------------------------


def scaled(value, B, k):
    """Return a mean over all elements with factors that common mistakes put in its place."""
    return {
        "it is the sum over all elements; divide by their number, B·k": B * k * value,
        "it is divided by B only; the mean is over all B·k elements": k * value,
        "it is divided by k only; the mean is over all B·k elements": B * value,
        "it is divided twice by the number of elements": value / (B * k),
        "it is divided by B once too often": value / B,
        "it is divided by k once too often": value / k,
        "there is a factor 1/2 too much": value / 2,
        "there is a factor 2 too much": 2 * value,
        "the sign is wrong": -value,
        "the sign is wrong, and it is not divided by the number of elements": -B * k * value,
        "it is divided by B only, and there is a factor 1/2 too much": k * value / 2,
        "it is not divided by the number of elements, and there is a factor 1/2 too much": B * k * value / 2,
    }


def by_torch(loss, y, y_hat):
    """Return torch's loss and its gradient for y_hat."""
    y_hat = y_hat.detach().requires_grad_()
    value = loss(y_hat, y)
    return value.detach(), torch.autograd.grad(value, y_hat)[0]


def demand_loss(case, answer, loss, y, y_hat, value_mistakes, gradient_mistakes, only=""):
    """Hold a student's loss and gradient against torch's."""
    J, gradient = case.parts(answer(y, y_hat), "J", "dJdy_hat")
    right, right_gradient = by_torch(loss, y, y_hat)
    B, k = y.shape
    if only != "gradient":
        exchanged = {"J and dJdy_hat are exchanged: J comes first": lambda: alike(J, right_gradient)}
        mistakes = exchanged | scaled(right, B, k) | value_mistakes
        mistakes |= {"there is one loss for each example: take the mean": lambda: J.shape == (B,)}
        mistakes |= {"there is one loss for each element: take the mean": lambda: J.shape == y.shape}
        case.close(J, right, what=f"J for {B} × {k} elements", mistakes=mistakes)
    if only != "J":
        mistakes = scaled(right_gradient, B, k) | gradient_mistakes
        mistakes |= {"the gradient is a scalar; each element of y_hat has its own": lambda: gradient.ndim == 0}
        case.close(gradient, right_gradient, what=f"dJdy_hat for {B} × {k} elements", mistakes=mistakes)


def mse_value_mistakes(y, y_hat):
    """Return what is mistaken for the mean squared error."""
    error = y_hat - y
    return {
        "this is the mean of the absolute errors": error.abs().mean(),
        "this is the mean of the errors; they are not squared": error.mean(),
        "this is the square root of it": (error**2).mean().sqrt(),
        "this is the norm of the errors": error.norm(),
        "this is the mean of (y + y_hat)²": ((y + y_hat) ** 2).mean(),
        "this is the square of the mean error; square first": error.mean() ** 2,
        "this is the binary cross-entropy": lambda: F.binary_cross_entropy(y_hat, y),
    }


def mse_gradient_mistakes(y, y_hat):
    """Return what is mistaken for the gradient of the mean squared error."""
    error = y_hat - y
    return {
        "this is y_hat - y: the factor 2 / (B·k) is missing": error,
        "these are the squared errors, not their gradient": error**2 / error.numel(),
        "only the signs of the errors are used": error.sign() / error.numel(),
        "this is the gradient for y, not for y_hat": -2 * error / error.numel(),
        "this is (y + y_hat)": 2 * (y + y_hat) / error.numel(),
    }


@check("mse-loss", points=4, hidden=2, part="backpropagation", autograd=False, from_scratch=("mse_loss",))
def mse_loss(answer, case):
    """Against torch's mse_loss and automatic differentiation."""

    def demand(B, k, only="", dtype=torch.float32):
        y, y_hat = case.randn(B, k, dtype=dtype), 2 * case.randn(B, k, dtype=dtype)
        mistakes = mse_value_mistakes(y, y_hat), mse_gradient_mistakes(y, y_hat)
        demand_loss(case, answer, F.mse_loss, y, y_hat, *mistakes, only=only)

    with case("J is the mean over all elements", points=1, hint="square, then mean over everything: a scalar"):
        for B, k in ((4, 3), (5, 1), (2, 7)):
            demand(B, k, only="J")
    with case("dJdy_hat", points=2, hint="differentiate (1 / (B·k)) Σ (y_hat - y)² for one y_hat"):
        for B, k in ((4, 3), (5, 1), (2, 7)):
            demand(B, k, only="gradient")
    with case("y and y_hat stay as they were", points=1, hint="error = y_hat - y makes a new tensor"):
        demand(1, 1)
        case.unchanged(answer, case.randn(4, 3), case.randn(4, 3))


def bce_terms(y, y_hat):
    """Return the two parts of the cross-entropy of each element."""
    return -y * y_hat.log(), -(1 - y) * (1 - y_hat).log()


def bce_value_mistakes(y, y_hat):
    """Return what is mistaken for the binary cross-entropy."""
    first, second = bce_terms(y, y_hat)
    return {
        "y and y_hat are exchanged: the logarithm is of the prediction": lambda: F.binary_cross_entropy(y, y_hat),
        "the term of y = 0, (1 - y) log(1 - y_hat), is missing": first.mean(),
        "the term of y = 1, y log(y_hat), is missing": second.mean(),
        "the logarithm is to base 2; it is the natural one": (first + second).mean() / math.log(2),
        "the logarithm is to base 10; it is the natural one": (first + second).mean() / math.log(10),
        "one of the two terms has the wrong sign": (first - second).mean(),
        "one of the two terms has the wrong sign; this is minus": (second - first).mean(),
        "y_hat goes through a sigmoid once more; it is a probability already": F.binary_cross_entropy_with_logits(
            y_hat, y
        ),
        "this is the mean squared error": F.mse_loss(y_hat, y),
        "y and 1 - y are exchanged": lambda: F.binary_cross_entropy(y_hat, 1 - y),
    }


def bce_gradient_mistakes(y, y_hat):
    """Return what is mistaken for the gradient of the binary cross-entropy."""
    size, error, slope = y.numel(), y_hat - y, y_hat * (1 - y_hat)
    inside = error / size
    return {
        "the denominator is missing: this is the gradient for the input of a sigmoid, not for y_hat": inside,
        "the denominator is missing, and the mean": error,
        "the denominator is y_hat alone": inside / y_hat,
        "the denominator is 1 - y_hat alone": inside / (1 - y_hat),
        "it is multiplied by y_hat (1 - y_hat); divide": inside * slope,
        "the term of y = 0 is missing": -y / y_hat / size,
        "the term of y = 1 is missing": (1 - y) / (1 - y_hat) / size,
        "the term of y = 0 has the wrong sign": (-y / y_hat - (1 - y) / (1 - y_hat)) / size,
        "the denominator has y in it where y_hat belongs: y and y_hat are exchanged": lambda: (
            (y - y_hat) / (y * (1 - y)) / size
        ),
        "this is the gradient for y, not for y_hat": lambda: -(y_hat.log() - (1 - y_hat).log()) / size,
        "this is the gradient of the mean squared error": 2 * inside,
        "y_hat goes through a sigmoid once more": by_torch(F.binary_cross_entropy_with_logits, y, y_hat)[1],
    }


def probabilities(case, B, k, dtype=torch.float32):
    """Draw numbers well inside (0, 1)."""
    return 0.05 + 0.9 * torch.sigmoid(1.5 * case.randn(B, k, dtype=dtype))


@check("bce-loss", points=7, hidden=3, part="backpropagation", autograd=False, from_scratch=("binary_cross", "bce"))
def bce_loss(answer, case):
    """Against torch's binary_cross_entropy and automatic differentiation."""

    def demand(B, k, only=""):
        for y in ((case.randn(B, k) > 0).float(), probabilities(case, B, k)):
            y_hat = probabilities(case, B, k)
            mistakes = bce_value_mistakes(y, y_hat), bce_gradient_mistakes(y, y_hat)
            demand_loss(case, answer, F.binary_cross_entropy, y, y_hat, *mistakes, only=only)

    with case(
        "J is the mean over all elements",
        points=2,
        hint="two terms for each element, a minus in front, the mean of all",
    ):
        for B, k in ((4, 3), (5, 1), (2, 7)):
            demand(B, k, only="J")
    with case("dJdy_hat", points=2, hint="differentiate both terms for one y_hat, then bring them to one fraction"):
        for B, k in ((4, 3), (5, 1), (2, 7)):
            demand(B, k, only="gradient")
    with case(
        "J of a prediction that is certain: 0 or 1", points=1, hint="0 · log 0 is NaN; clamp the logarithm, not y_hat"
    ):
        for y, y_hat in itertools.product((0.0, 1.0, 0.25), (0.0, 1.0)):
            y, y_hat = torch.tensor([[y]]), torch.tensor([[y_hat]])
            J, _ = case.parts(answer(y, y_hat), "J", "dJdy_hat")
            what = f"J for y = {y.item():g}, y_hat = {y_hat.item():g}"
            case.finite(J, what=what)
            as_if = f"as if y_hat were kept {math.exp(-J.item()):.0e} away from 0 and 1"
            sentence = f"{what} is {J.item():.4g}, {as_if}; torch lets the logarithm itself go down to -100"
            cut = {sentence: lambda J=J: 1 < J.item() < 99} if y.item() != 0.25 else None
            case.close(J, F.binary_cross_entropy(y_hat, y), what=what, mistakes=cut)
    with case(
        "dJdy_hat of a prediction that is certain",
        points=1,
        hint="0/0 is NaN; the denominator counts as 1e-12 at least",
    ):
        for y, y_hat in itertools.product((0.0, 1.0, 0.25), (0.0, 1.0)):
            y, y_hat = torch.tensor([[y]]), torch.tensor([[y_hat]])
            _, gradient = case.parts(answer(y, y_hat), "J", "dJdy_hat")
            what, right = (
                f"dJdy_hat for y = {y.item():g}, y_hat = {y_hat.item():g}",
                by_torch(F.binary_cross_entropy, y, y_hat)[1],
            )
            case.finite(gradient, what=what)
            sentence = f"{what} is {gradient.item():.4g}, but {right.item():.4g} in torch"
            wrong = always(f"{sentence}, whose denominator is y_hat (1 - y_hat), or 1e-12 where that is less")
            case.close(gradient, right, what=what, mistakes=wrong)
    with case("y and y_hat stay as they were", points=1, hint="clamp makes a new tensor, clamp_ changes the caller's"):
        demand(1, 1)
        case.unchanged(answer, (case.randn(4, 3) > 0).float(), probabilities(case, 4, 3))
        case.unchanged(answer, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]]))


# -- one step of gradient descent -------------------------------------------------------------------------


@check("sgd-step", points=4, part="backpropagation", autograd=False)
def sgd_step(answer, case):
    """Against torch.optim.SGD."""

    def stepped(parameters, grads, lr):
        leaves = [nn.Parameter(value.clone()) for value in parameters.values()]
        for leaf, gradient in zip(leaves, grads.values(), strict=True):
            leaf.grad = gradient.clone()
        torch.optim.SGD(leaves, lr=lr).step()
        return {name: leaf.detach() for name, leaf in zip(parameters, leaves, strict=True)}

    def demand(sizes, lr):
        parameters = mlp_parameters(case, *sizes)
        grads = {f"dJd{name}": case.randn(*value.shape) for name, value in parameters.items()}
        after, left, _ = answer.inputs_after(parameters, grads, lr)
        right = stepped(parameters, grads, lr)
        case.true(set(after) == set(parameters), f"the parameters are {sorted(after)} after the step")
        case.true(set(left) == set(grads), f"the gradients are {sorted(left)} after the step; all four should stay")
        still = [name for name in MLP_NAMES if torch.equal(after[name], parameters[name])]
        if 0 < len(still) < len(MLP_NAMES):
            changed = ", ".join(name for name in MLP_NAMES if name not in still)
            case.true(False, f"{still[0]} has not changed, {changed} did: every parameter takes the step")
        for name in MLP_NAMES:
            before, gradient = parameters[name], grads[f"dJd{name}"]
            mistakes = {
                "the step goes uphill: subtract the gradient": before + lr * gradient,
                f"{name} has not changed: `value = value - ...` makes a new tensor that nobody sees; change what the "
                "dictionary holds": before,
                f"{name} is replaced by the step": -lr * gradient,
                f"{name} is replaced by its gradient": gradient,
                "lr is not used": before - gradient,
                "the step is divided by lr": before - gradient / lr,
                f"{name} itself is multiplied by lr": lr * (before - gradient),
                "only the sign of the gradient is used": before - lr * gradient.sign(),
            }
            case.close(after[name], right[name], what=f"{name} after a step with lr = {lr}", mistakes=mistakes)
            text = f"dJd{name} changes; clearing is the business of clear_grad_and_cache"
            case.true(torch.equal(left[f"dJd{name}"], gradient), text)

    with case("W1 ← W1 - lr · dJdW1, and so on", points=3, hint="the gradient of W1 stands under dJdW1"):
        demand((3, 5, 2), 0.1)
        demand((4, 4, 4), 2.0)
    with case("other sizes, gradients untouched", points=1, hint="loop over the names; sizes play no part"):
        demand((1, 1, 1), 0.5)
        demand((7, 2, 3), 0.01)


# -- gradient descent on the input ------------------------------------------------------------------------


class LookingModel(nn.Module):
    """A small convolutional network that notes what it is shown."""

    def __init__(self, channels=3, classes=4):
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(5, classes)
        self.seen = []
        self.eval()

    def forward(self, x):
        """Return logits."""
        self.seen.append(x.detach().clone())
        return self.linear(self.drop(self.norm(self.conv(x)).tanh()).mean((2, 3)))


def looking_model(case, channels=3):
    """Return a model with weights that `case` draws."""
    model = LookingModel(channels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(case.randn(*parameter.shape))
    return model


def model_of(state):
    """Return a model with the weights of another one."""
    model = LookingModel(state["conv.weight"].shape[1]).to(state["conv.weight"].dtype)
    model.load_state_dict(state)
    return model


def of_class(label):
    """Return the quantity that is to rise; without a label, that of class 0 for picture 0, class 1 for picture 1 …"""
    return lambda logits: logits.diagonal().sum() if label is None else logits[0, label]


def prepare_of(light):
    """Return a function to prepare pictures with: it moves and lights them, or leaves them when `light` is None."""
    return lambda x: x if light is None else light * x.roll((1, 2), (-2, -1)) - 1


def tidy_of(factor):
    """Return a function to tidy pictures with: it cuts values off below 0 and above 1, and multiplies the rest."""
    return lambda x: factor * x.clamp(0, 1)


def climb(gradient_descent, picture, state, label, numbers, options):
    """Call gradient descent with a model of these weights; `options` hold what `prepare_of` and `tidy_of` take."""
    model, functions = model_of(state), {"prepare": prepare_of, "tidy": tidy_of}
    options = {name: functions[name](value) if name in functions else value for name, value in options.items()}
    result = gradient_descent(picture, model, of_class(label), *numbers, **options)
    return {"result": result, "seen": model.seen, "training": model.training, "picture": picture}


def climbed(answer, picture, model, label, *numbers, **options):
    """Return what comes back, and what the model has seen, when the answer is called beside a copy of the model."""
    helpers = LookingModel, model_of, of_class, prepare_of, tidy_of
    return answer.probe(climb, picture, model.state_dict(), label, numbers, options, uses=helpers)


def step_by_torch(picture, model, loss, lr):
    """Return one step in the direction of torch's gradient, and wrong ones with what is wrong."""
    leaf = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
    rms = gradient.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (gradient.dim() - 1))
    right = picture + lr * gradient / (rms + 1e-8)
    return right, {
        "the objective falls: the step goes against the gradient of `loss`, which is to rise": 2 * picture - right,
        "the gradient is not divided by its rms": picture + lr * gradient,
        "one rms is taken over the whole batch; each picture has its own": (
            picture + lr * gradient / gradient.square().mean().sqrt()
        ),
        "each channel has an rms of its own; there is one for each picture, over all its channels": lambda: (
            picture + lr * gradient / gradient.square().mean((2, 3), keepdim=True).sqrt()
        ),
        "the gradient is not divided by its rms, and the step goes downhill": picture - lr * gradient,
        "the gradient is divided by its norm; the rms is the root of the mean, not of the sum": (
            picture + lr * gradient / gradient.norm()
        ),
        "the gradient is divided by its standard deviation, which leaves out the mean; take the rms": (
            picture + lr * gradient / gradient.std()
        ),
        "the gradient is divided by the mean of its absolute values; take the rms": (
            picture + lr * gradient / gradient.abs().mean()
        ),
        "the gradient is divided by its largest entry; take the rms": picture + lr * gradient / gradient.abs().max(),
        "the gradient is divided by the mean square; the root is missing": picture + lr * gradient / rms**2,
        "only the sign of the gradient is used": picture + lr * gradient.sign(),
        "lr is not used": picture + gradient / rms,
        "the picture has not changed": picture,
        "the result is the gradient, not the picture": gradient,
        "the result is the step, not the picture": lr * gradient / rms,
        "values outside [0, 1] are cut off; that is the business of `tidy`": right.clamp(0, 1),
    }


def first_look(shown, picture, trained):
    """Return what may be wrong with the first thing that the model was shown, and with its mode."""
    return {
        "the model is put into training mode; leave its mode as it is": lambda: trained,
        "in the first step the model is not shown prepare(input)": lambda: (
            isinstance(shown, torch.Tensor) and not alike(shown, picture)
        ),
    }


@check("sgd-gradient-descent", points=11, hidden=3, part="backpropagation")
def sgd_gradient_descent(answer, case):
    """Against torch's gradient for one step, and against what each step is shown."""

    def value(model, loss, picture):
        with torch.no_grad():
            return loss(model(picture)).item()

    with case("the objective rises", points=2, hint="add lr times the direction; subtracting goes downhill"):
        for label in (0, 3):
            model, picture = looking_model(case), 0.5 + 0.1 * case.randn(1, 3, 8, 8)
            result = climbed(answer, picture, model, label, 20, lr=0.05, prepare=None)["result"]
            case.shape(result, (1, 3, 8, 8), what="the result")
            case.finite(result, what="the result")
            start, end = value(model, of_class(label), picture), value(model, of_class(label), result)
            case.true(
                end != start, "the objective has not changed: is the picture that is returned the one that changes?"
            )
            case.true(end > start, f"the objective falls from {start:.3f} to {end:.3f}: go uphill, by steps of size lr")
    with case("one step: lr · gradient / rms", points=2, hint="rms: square, mean over one picture, root"):
        for lr in (0.05, 0.5):
            model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
            look = climbed(answer, picture, model, 1, 1, lr=lr, prepare=None)
            right, mistakes = step_by_torch(picture, model, of_class(1), lr)
            mistakes |= first_look(bool(look["seen"]) and look["seen"][0], picture, look["training"])
            case.close(look["result"], right, what=f"the picture after one step with lr = {lr}", mistakes=mistakes)
        model, size = looking_model(case), torch.tensor([0.1, 1.0, 4.0]).view(3, 1, 1, 1)
        pictures = size * case.randn(3, 3, 8, 8)
        result = climbed(answer, pictures, model, None, 1, lr=0.1, prepare=None)["result"]
        right, mistakes = step_by_torch(pictures, model, of_class(None), 0.1)
        case.close(result, right, what="three pictures after one step", mistakes=mistakes)
    with case("as many steps as iterations, each from the last", points=1, hint="one call of the model in each step"):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        look = climbed(answer, picture, model, 1, 5, lr=0.1, prepare=None)
        case.equal(len(look["seen"]), 5, what="the number of calls of the model in 5 iterations")
        shown, expected = [*look["seen"], look["result"]], picture
        for step in range(6):
            again = {"a step starts from the input, not from what the last step has made": picture} if step == 1 else {}
            after = f"the picture after step {step}" if step else "the picture before the first step"
            case.close(shown[step], expected, what=after, mistakes=again)
            expected, _ = step_by_torch(expected, model, of_class(1), 0.1)
        untouched = climbed(answer, picture, model, 1, 0)["result"]
        prepared = always("with 0 iterations the input comes back as it is; only what the model sees is prepared")
        case.close(untouched, picture, what="the picture after 0 iterations", mistakes=prepared)
    with case(
        "every step is shown a freshly jittered picture",
        points=1,
        hint="prepare(picture) inside the loop; the picture itself stays unprepared",
    ):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        look = climbed(answer, picture, model, 1, 12, lr=0.0)
        result, seen = look["result"], look["seen"]
        prepared = always("the picture itself is shifted or normalised; only what the model sees should be")
        case.close(result, picture, what="the picture after 12 steps with lr = 0", mistakes=prepared)
        case.equal(len(seen), 12, what="the number of calls of the model in 12 iterations")
        plain = torch.equal(seen[0], picture)
        case.true(not plain, "the model is shown the picture as it is: prepare is not used")
        same = all(torch.equal(one, seen[0]) for one in seen)
        case.true(not same, "all steps see the same shift: call prepare anew in each step")
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        expected = ((picture - mean) / std).flatten().sort()[0]
        for one in seen:
            case.close(one.flatten().sort()[0], expected, what="what the model is shown, sorted")
        light = 0.5 + case.randn(3, 8, 8).square()
        scaled = climbed(answer, picture, model, 1, 1, lr=0.1, prepare=light)["result"]
        right, _ = step_by_torch(picture, lambda x: model(prepare_of(light)(x)), of_class(1), 0.1)
        missing = always("the gradient does not go through prepare")
        case.close(scaled, right, what="the picture after one step with a prepare of its own", mistakes=missing)
    with case("tidy after each step", points=1, hint="picture = tidy(picture), inside the loop"):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        result = climbed(answer, picture, model, 1, 3, lr=0.5, prepare=None, tidy=0.5)["result"]
        expected = never = before = picture
        for _ in range(3):
            moved, _ = step_by_torch(expected, model, of_class(1), 0.5)
            expected = moved.clamp(0, 1) / 2
            never, _ = step_by_torch(never, model, of_class(1), 0.5)
            before, _ = step_by_torch(before.clamp(0, 1) / 2, model, of_class(1), 0.5)
        once = never.clamp(0, 1) / 2
        mistakes = {
            "tidy is not used": never,
            "tidy is used once, after all steps": once,
            "tidy is used before each step; it comes after": before,
        }
        case.close(result, expected, what="the picture after 3 tidied steps", mistakes=mistakes)
    with case(
        "the model stays as it was", points=2, hint="ask for the gradient of the picture alone: torch.autograd.grad"
    ):
        for mode in (False, True):
            model = looking_model(case)
            earlier = case.randn(*model.conv.weight.shape)
            state = {name: one.clone() for name, one in model.state_dict().items()}
            picture = 0.5 + 0.2 * case.randn(1, 3, 8, 8)
            after = answer.probe(traces, picture, state, mode, earlier, uses=(LookingModel, model_of, of_class))
            states = {name: one for name, one in state.items() if "num_batches" not in name}
            changed = [name for name, one in states.items() if not torch.equal(one, after["state"][name])]
            case.true(not changed, f"the model's {', '.join(changed)} changed; only the picture should")
            kept = after["gradients"].pop("conv.weight")
            case.true(kept is not None, "gradients that the model's parameters had before are gone; leave them alone")
            left = [name for name, gradient in after["gradients"].items() if gradient is not None]
            case.true(
                not left and torch.equal(kept, earlier),
                "gradients are left in the model's parameters: backward() fills every leaf of the graph",
            )
            text = f"the model was in {'training' if mode else 'evaluation'} mode, and is not any more"
            case.true(all(training == mode for training in after["training"]), text)
            frozen = after["frozen"]
            case.true(frozen == ["linear.weight"], "requires_grad of the model's parameters has changed")
    with case("the input stays, the result has no graph", points=1, hint="start from input.detach().clone()"):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        look = climbed(answer, picture, model, 1, 3)
        case.same_inputs([picture], [look["picture"]])
        case.same_inputs([picture], [climbed(answer, picture, model, 1, 2, lr=0.1, prepare=None, tidy=1)["picture"]])
        result, text = look["result"], "the result still carries the graph of the last step; detach it"
        case.true(isinstance(result, torch.Tensor) and not result.requires_grad, text)
        text = "the caller's own tensor requires a gradient afterwards; detach it before you mark it"
        case.true(not look["picture"].requires_grad, text)
    with case(
        "any function is a model, and the input may require a gradient",
        points=1,
        hint="nothing but model(...) may be asked of the model",
    ):
        picture, weights = 0.5 + 0.2 * case.randn(1, 3, 8, 8), case.randn(3, 8, 8)
        result = answer.probe(climb_function, picture, weights)
        right, _ = step_by_torch(picture, lambda x: (x * weights).tanh().sum((1, 2, 3)), lambda out: out[0], 0.1)
        case.close(result, right, what="the picture after one step with a function for a model")
        state = looking_model(case).state_dict()
        again = answer.probe(climb_from_leaf, picture, state, uses=(LookingModel, model_of, of_class))
        case.finite(again, what="the result for an input that requires a gradient")


def traces(gradient_descent, picture, state, mode, earlier):
    """Return what three steps leave in a model that has a frozen weight, and a gradient from earlier."""
    model = model_of(state)
    model.drop.p, model.norm.track_running_stats = 0.0, False
    model.train(mode)
    model.linear.weight.requires_grad_(False)
    model.conv.weight.grad = earlier
    gradient_descent(picture, model, of_class(1), 3)
    return {
        "state": model.state_dict(),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "training": [part.training for part in model.modules()],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    }


def climb_from_leaf(gradient_descent, picture, state):
    """Run two steps from a tensor that requires a gradient."""
    return gradient_descent(picture.requires_grad_(), model_of(state), of_class(1), 2)


def climb_function(gradient_descent, picture, weights):
    """Run one step with a function for a model."""
    return gradient_descent(
        picture, lambda x: (x * weights).tanh().sum((1, 2, 3)), lambda out: out[0], 1, lr=0.1, prepare=lambda x: x
    )


# -- extra ------------------------------------------------------------------------------------------------


def gaussian(sigma, factor=2.0, reach=3.0):
    """Return a Gaussian kernel in double precision; the arguments after the first make wrong ones."""
    r = math.ceil(reach * sigma)
    weights = np.exp(-(np.arange(-r, r + 1) ** 2) / (factor * sigma**2))
    return weights / weights.sum()


def blurred(img, kernel, mode="mirror"):
    """Return pictures, blurred by SciPy along rows and columns."""
    out = img.double().numpy()
    for axis in (2, 3):
        out = ndimage.correlate1d(out, kernel, axis=axis, mode=mode, cval=0.0)
    return torch.from_numpy(out).to(img.dtype)


def blur_mistakes(img, sigma):
    """Return what common mistakes make of a blurred picture."""
    kernel = gaussian(sigma)
    box = np.ones_like(kernel) / len(kernel)
    raw = np.exp(-(np.arange(-(len(kernel) // 2), len(kernel) // 2 + 1) ** 2) / (2 * sigma**2))
    one_way = torch.from_numpy(ndimage.correlate1d(img.double().numpy(), kernel, axis=3, mode="mirror")).to(img.dtype)
    other_way = torch.from_numpy(ndimage.correlate1d(img.double().numpy(), kernel, axis=2, mode="mirror")).to(img.dtype)
    return {
        "the picture is not blurred": img,
        "the edges are filled with zeros, so that they darken; the mode is reflect": blurred(img, kernel, "constant"),
        "the edges repeat the last pixel; the mode is reflect": blurred(img, kernel, "nearest"),
        "the edges are continued from the other side; the mode is reflect": blurred(img, kernel, "wrap"),
        "the kernel is not divided by its sum": blurred(img, raw),
        "all weights are equal: this is a mean, not a Gaussian": blurred(img, box),
        "the 2 in the exponent is missing": blurred(img, gaussian(sigma, factor=1.0)),
        "sigma is not squared in the exponent": lambda: blurred(img, gaussian(sigma, factor=2.0 / sigma)),
        "the kernel ends too early: r = ⌈3 sigma⌉": lambda: blurred(img, gaussian(sigma, reach=2.0)),
        "the kernel ends too early: it reaches only one sigma": lambda: blurred(img, gaussian(sigma, reach=1.0)),
        "the picture is blurred along the rows only": one_way,
        "the picture is blurred along the columns only": other_way,
        "the picture is blurred twice": blurred(blurred(img, kernel), kernel),
        "the channels are mixed": lambda: blurred(img, kernel).mean(1, keepdim=True).expand_as(img),
        "the channels are added": lambda: blurred(img, kernel).sum(1, keepdim=True).expand_as(img),
    }


@check("sgd-blur", points=3, part="backpropagation", from_scratch=("gaussian_blur", "gaussian_filter"))
def sgd_blur(answer, case):
    """Against SciPy."""
    with case(
        "a Gaussian along rows and columns", points=1, hint="weights exp(-i² / (2 sigma²)), divided by their sum"
    ):
        for sigma in (0.5, 1.0, 1.7):
            img = case.randn(2, 1, 16, 20)
            what = f"the picture, blurred with sigma = {sigma}"
            case.close(answer(img, sigma), blurred(img, gaussian(sigma)), what=what, mistakes=blur_mistakes(img, sigma))
    with case(
        "colours do not mix, and an even picture stays even", points=1, hint="groups=C in conv2d; padding mode reflect"
    ):
        img = case.randn(2, 3, 12, 12)
        case.close(
            answer(img, 1.2), blurred(img, gaussian(1.2)), what="three channels", mistakes=blur_mistakes(img, 1.2)
        )
        even = torch.full((1, 3, 9, 9), 0.7)
        darker = always("an even picture changes at its edges: they are not reflected")
        case.close(answer(even, 1.0), even, what="an even picture", mistakes=darker)
    with case("sigma = 0, and the input stays", points=1, hint="0 would divide by 0: return the picture"):
        img = case.randn(1, 3, 9, 9)
        case.close(answer(img, 0), img, what="the picture, blurred with sigma = 0")
        for sigma in (0, 1.0):
            case.unchanged(answer, img, sigma)


@check("sgd-tidy-up", points=3, part="backpropagation")
def sgd_tidy_up(answer, case):
    """Against SciPy's blur."""

    def right(img, decay, sigma, background):
        moved = img + decay * (background - img)
        return (blurred(moved, gaussian(sigma)) if sigma else moved).clamp(0, 1)

    def mistakes(img, decay, sigma, background):
        def soft(img):
            return blurred(img, gaussian(sigma)) if sigma else img

        moved = background + (1 - decay) * (img - background)
        return {
            "nothing has changed": img,
            "values outside [0, 1] are not cut off": soft(moved),
            "the pixels are not moved towards the background": soft(img).clamp(0, 1),
            "the picture is not blurred": moved.clamp(0, 1),
            "the pixels decay towards 0, not towards the background": soft((1 - decay) * img).clamp(0, 1),
            "the pixels decay towards 1/2, not towards the background": soft(img + decay * (0.5 - img)).clamp(0, 1),
            "only the share `decay` of the picture is left; it is 1 - decay": soft(
                background + decay * (img - background)
            ).clamp(0, 1),
            "the pixels move away from the background": soft(img - decay * (background - img)).clamp(0, 1),
            "values are cut off before the blur; that comes last": soft(moved.clamp(0, 1)),
            "values are cut off first of all; that comes last": soft(
                img.clamp(0, 1) + decay * (background - img.clamp(0, 1))
            ),
            "decay times the background is subtracted, whatever the pixel": soft(img - decay * background).clamp(0, 1),
        }

    def demand(decay, sigma, background):
        img = 0.5 + case.randn(1, 3, 10, 10)
        result = answer(img, decay, sigma, background)
        what = f"the picture for decay = {decay}, sigma = {sigma}, background = {background}"
        case.close(
            result, right(img, decay, sigma, background), what=what, mistakes=mistakes(img, decay, sigma, background)
        )

    with case(
        "towards the background", points=1, hint="decay = 1 makes everything background, decay = 0 changes nothing"
    ):
        for decay, background in ((0.3, 0.5), (1, 0.25), (0.1, 0.0), (0.2, 1.0)):
            demand(decay, 0, background)
    with case("blurred, then cut off", points=1, hint="blur first; clamp last"):
        demand(0, 1.0, 0.5)
        demand(0.2, 0.7, 0.0)
    with case("the defaults, and the input stays", points=1, hint="decay 0.01, sigma 0.6, background 0.5"):
        img = 0.5 + case.randn(1, 1, 10, 10)
        case.close(answer(img), right(img, 0.01, 0.6, 0.5), what="the picture with the defaults")
        for sigma in (0, 1.0):
            case.unchanged(answer, img, 0.1, sigma, 0.5)


def other_ways(shown, picture, size):
    """Return other ways to resize, and what else may stand between the resized picture and the model."""
    shape = (size, size)
    others = [
        F.interpolate(picture, size=shape, mode="nearest"),
        F.interpolate(picture, size=shape, mode="area"),
        F.interpolate(picture, size=shape, mode="bicubic"),
        F.interpolate(picture, size=shape, mode="bicubic", align_corners=True),
        F.interpolate(picture, size=shape, mode="bilinear", align_corners=True),
        F.interpolate(picture, size=shape, mode="bilinear", antialias=True),
    ]
    text = "the picture is not resized with mode bilinear and align_corners=False"
    unprepared = "the model is not shown the resized picture: is it resized first, and is prepare passed on?"
    return {text: lambda: any(alike(shown, other) for other in others)} | always(unprepared)


@check("sgd-scales", points=4, part="backpropagation")
def sgd_scales(answer, case):
    """Against what the model is shown at each size."""

    def resized(picture, size):
        return F.interpolate(picture, size=(size, size), mode="bilinear", align_corners=False)

    with case(
        "the sizes in turn, iterations steps at each", points=2, hint="a loop over sizes: resize, then gradient_descent"
    ):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        look = climbed(answer, picture, model, 1, 3, (6, 9, 12), prepare=None, lr=0.1)
        case.shape(look["result"], (1, 3, 12, 12), what="the result")
        seen = [tuple(shown.shape[2:]) for shown in look["seen"]]
        wanted = [(size, size) for size in (6, 9, 12) for _ in range(3)]
        if len(seen) != len(wanted):
            text = (
                f"the model was shown {len(seen)} pictures for 3 sizes with 3 iterations each, expected {len(wanted)}"
            )
            case.true(False, text)
        heights = [shape[0] for shape in seen], [shape[0] for shape in wanted]
        text = f"the sizes that the model was shown are {heights[0]}, expected {heights[1]}"
        case.true(seen == wanted, text)
    with case("each size goes on from the last", points=1, hint="resize what the size before has made"):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        look = climbed(answer, picture, model, 1, 2, (6, 9), prepare=None, lr=0.1)
        result, seen = look["result"], look["seen"]
        case.equal(len(seen), 4, what="the number of calls of the model for 2 sizes with 2 iterations each")
        small, large = resized(picture, 6), resized(picture, 9)
        case.close(seen[0], small, what="what the model is shown first", mistakes=other_ways(seen[0], picture, 6))
        slow, _ = step_by_torch(small, model, of_class(1), 0.05)
        step, _ = step_by_torch(small, model, of_class(1), 0.1)
        case.close(seen[1], step, what="the picture after one step", mistakes={"lr is not passed on": slow})
        done, _ = step_by_torch(step, model, of_class(1), 0.1)
        lost = {
            "each size starts from the input anew, not from what the size before has made": large,
            "what the size before has made is lost: keep what gradient_descent returns": resized(small, 9),
        }
        enlarged = resized(done, 9)
        case.close(seen[2], enlarged, what="the start at the second size", mistakes=lost)
        for _ in range(2):
            enlarged, _ = step_by_torch(enlarged, model, of_class(1), 0.1)
        lost = {"the last size's steps are lost: keep what gradient_descent returns": resized(done, 9)}
        case.close(result, enlarged, what="the picture", mistakes=lost)
    with case("options are passed on, and the input stays", points=1, hint="**options; do not resize in place"):
        model, picture = looking_model(case), 0.5 + 0.2 * case.randn(1, 3, 8, 8)
        result = climbed(answer, picture, model, 1, 2, (4, 8), prepare=None, lr=0.0, tidy=0.5)["result"]
        expected = resized(resized(picture, 4).clamp(0, 1) / 4, 8) / 4
        missing = {
            "tidy is not passed on": resized(resized(picture, 4), 8),
            "some option is not passed on: with lr = 0 and a tidy that halves, the pixels are known": lambda: (
                result.shape == expected.shape
            ),
        }
        case.close(result, expected, what="the picture with lr = 0 and tidy = half", mistakes=missing)
        case.same_inputs([picture], [climbed(answer, picture, model, 1, 2, (4, 8))["picture"]])


@check("sgd-activation", points=2, part="backpropagation")
def sgd_activation(answer, case):
    """Against the module applied by hand."""
    helpers = LookingModel, model_of
    with case(
        "the output of the module, with its graph", points=1, hint="register_forward_hook; keep what the hook is given"
    ):
        model, picture = looking_model(case), case.randn(2, 3, 8, 8)
        state = model.state_dict()
        with torch.no_grad():
            right = {"conv": model.conv(picture), "norm": model.norm(model.conv(picture)), "linear": model(picture)}
        for name, expected in right.items():
            result = answer.probe(activation_of, picture, state, name, uses=helpers)
            mistakes = {
                "this is the output of the whole model": lambda: right["linear"],
                "this is what goes into the module, not what comes out": lambda: picture,
            }
            if name == "norm":
                mistakes["this is what goes into the module, not what comes out"] = right["conv"]
            case.close(result, expected, what=f"the activation of {name}", mistakes=mistakes)
            text = "the activation is detached: gradient_descent could not climb it"
            case.true(result.requires_grad, text)
        reached = answer.probe(activation_reaches, picture, state, uses=helpers)
        case.true(reached, "the graph does not reach back to the input: is the input detached?")
    with case("no hook is left behind", points=1, hint="register_forward_hook returns a handle: handle.remove()"):
        model, picture = looking_model(case), case.randn(1, 3, 8, 8)
        found = answer.probe(activation_leaves, picture, model.state_dict(), uses=helpers)
        text = f"a hook is left in {', '.join(found['left'])}: it would run at every call from now on"
        case.true(not found["left"], text)
        what = "the activation for a second picture"
        case.close(found["again"], model.norm(model.conv(picture + 1)), what=what)
        text = "a hook of somebody else's is removed, too: remove only your own, by its handle"
        case.true(found["foreign stays"], text)
        case.true(found["training"], "the model was in training mode, and is not any more")


def activation_of(activation, picture, state, name):
    """Return the activation of the layer `name` of a model."""
    model = model_of(state)
    return activation(model, picture, getattr(model, name))


def activation_reaches(activation, picture, state):
    """Return whether the graph of an activation reaches back to the picture."""
    model, leaf = model_of(state), picture.requires_grad_()
    result = activation(model, leaf, model.conv)
    return torch.autograd.grad(result.sum(), leaf, allow_unused=True)[0] is not None


def activation_leaves(activation, picture, state):
    """Return what calls leave in a model, and the activation for another picture."""
    model = model_of(state)
    for _ in range(2):
        activation(model, picture, model.norm)
    left = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    again = activation(model, picture + 1, model.norm)
    foreign = model.norm.register_forward_hook(lambda module, args, output: None)
    activation(model, picture, model.norm)
    stays = foreign.id in model.norm._forward_hooks
    model.norm.track_running_stats = False
    model.train()
    activation(model, picture, model.norm)
    training = all(part.training for part in model.modules())
    return {"left": left, "again": again, "foreign stays": stays, "training": training}
