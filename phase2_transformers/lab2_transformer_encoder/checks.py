"""The checks of Lab 2, Transformer encoder.

The oracles are torch's own layers (`nn.TransformerEncoder` and its parts), NumPy's complex exponential, BERT's layer
written with torch's functions, and identities. Shapes: B batch, T tokens, D = d_model features of a token.

Most of the code describes mistakes: functions and dictionaries that hold what common mistakes would have computed,
under the sentence that a student reads when the answer equals it.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.checks import Answer, alike, always, check

# Library functions that would be the whole answer (see `check`).
LIBRARY_LAYERS = ("TransformerEncoder", "BertLayer", "BertModel", "BertEncoder")

NO_GRADIENT_YET = always("the result itself is not right yet, so its gradient cannot be")


def demand_parameters(case, built, shapes):
    """Demand parameters of exactly these names and shapes."""
    parameters = built.parameters()
    case.true(parameters, "the module has no parameters: make each one an attribute of self (a plain list is not seen)")
    missing = [name for name in shapes if name not in parameters]
    if missing:
        case.true(
            False,
            f"the module has no parameter named {missing[0]}, or shares it with another part; it has "
            f"{', '.join(list(parameters)[:20])}",
        )
    for name, shape in shapes.items():
        case.shape(parameters[name], shape, what=name)
    extra = sorted(set(parameters) - set(shapes))
    case.true(not extra, f"the module has parameters that do not belong there: {', '.join(extra[:6])}")


def dropout_mistake(built, *args):
    """Return, as a mistake, that two calls of a module give different results."""
    return {
        "two calls in evaluation mode give different results: dropout is still at work. nn.Dropout knows the mode; "
        "F.dropout has to be told: training=self.training": lambda: not torch.equal(built(*args), built(*args))
    }


# -- positions --------------------------------------------------------------------------------------------


def waves(T, d_model, start=0, step=1):
    """Return the encoding of positions start, start + step, ... from NumPy's complex exponential, in float64."""
    frequency = np.power(10000.0, -np.arange(0, d_model, 2) / d_model)
    turned = np.exp(1j * np.outer(start + step * np.arange(T), frequency))
    return torch.from_numpy(np.stack([turned.imag, turned.real], axis=-1).reshape(T, d_model))


def by_pairs(T, d_model, exponent, base=10000.0, shift=0):
    """Return an encoding in which feature j has the frequency base ** -exponent(j); sin where j is even."""
    rows = [
        [
            (math.sin if j % 2 == 0 else math.cos)((t + shift) * base ** -exponent(j)) if d_model else 0.0
            for j in range(d_model)
        ]
        for t in range(T)
    ]
    return torch.tensor(rows)


def encoding_mistakes(T, D, right):
    """Return the encodings that common mistakes lead to."""
    sin, cos = right[:, 0::2], right[:, 1::2]
    found = {
        "sine and cosine are exchanged: sine belongs to the even features, cosine to the odd ones": (
            torch.stack([cos, sin], -1).flatten(1)
        ),
        "all sines stand in the first half and all cosines in the second: they alternate, feature by feature": (
            torch.cat([sin, cos], -1)
        ),
        "all cosines stand in the first half and all sines in the second: they alternate, sine first": (
            torch.cat([cos, sin], -1)
        ),
        "every feature is a sine; the odd ones are cosines": torch.stack([sin, sin], -1).flatten(1),
        "every feature is a cosine; the even ones are sines": torch.stack([cos, cos], -1).flatten(1),
        "rows and columns are exchanged: there is one row for each position": right.T,
        "there is an axis for the batch; return (T, d_model), which broadcasts": right[None],
        "there is an axis for the batch; return (T, d_model), without it": right[:, None],
        "positions are counted from 1; the first one is 0": by_pairs(T, D, lambda j: j // 2 * 2 / D, shift=1),
        "the exponent is wrong: pair number i has 2i / d_model, and here it is i / d_model": (
            by_pairs(T, D, lambda j: j // 2 / D)
        ),
        "the exponent is wrong: pair number i has 2i / d_model, where 2i is the number of its even feature; here it "
        "is doubled once more": by_pairs(T, D, lambda j: j // 2 * 4 / D),
        "each feature has a frequency of its own (exponent j / d_model); sine and cosine of a pair share one": (
            by_pairs(T, D, lambda j: j / D)
        ),
        "each feature has a frequency of its own (exponent 2j / d_model); sine and cosine of a pair share one": (
            by_pairs(T, D, lambda j: 2 * j / D)
        ),
        "sine and cosine of a pair have different frequencies: the cosine's exponent is that of its own, odd feature "
        "number plus one": by_pairs(T, D, lambda j: (j // 2 * 2 + 2 * (j % 2)) / D),
        "the exponent has the wrong sign: frequencies fall from 1 to about 1/10000, they do not grow": (
            by_pairs(T, D, lambda j: -(j // 2 * 2) / D)
        ),
        "the exponent is divided by the number of pairs; it is 2i / d_model": by_pairs(T, D, lambda j: j // 2 * 4 / D),
        "the exponent is not divided by d_model": by_pairs(T, D, lambda j: j // 2 * 2),
        "the last pair gets the frequency 1/10000 exactly (division by d_model - 2); divide by d_model": (
            by_pairs(T, D, lambda j: j // 2 * 2 / max(1, D - 2))
        ),
        "the exponent is divided by d_model - 1; divide by d_model": by_pairs(T, D, lambda j: j // 2 * 2 / (D - 1)),
        "every pair has the frequency 1: the exponent is missing": by_pairs(T, D, lambda j: 0),
        "the angles are taken as degrees: torch's sine takes radians": by_pairs(
            T, D, lambda j: j // 2 * 2 / D + math.log(180 / math.pi, 10000)
        ),
        "these are the angles; sine and cosine are missing": lambda: (
            torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(D) // 2 * 2 / D)
        ),
        "the sines stand at the odd features and the even ones are left at 0": torch.stack([0 * sin, sin], -1).flatten(
            1
        ),
        "the cosines are missing: the odd features are 0": torch.stack([sin, 0 * cos], -1).flatten(1),
        "the sines are missing: the even features are 0": torch.stack([0 * sin, cos], -1).flatten(1),
        "the cosines have the wrong sign": torch.stack([sin, -cos], -1).flatten(1),
        "the sines have the wrong sign": torch.stack([-sin, cos], -1).flatten(1),
        "the positions are counted from the end": right.flip(0),
        "row 0 is left at zeros; position 0 has an encoding, too: its cosines are 1": F.pad(right[1:], (0, 0, 1, 0)),
        "the angles are multiplied by 2π: hand 0 turns by one radian at each step, not by a whole turn": by_pairs(
            T, D, lambda j: j // 2 * 2 / D - math.log(2 * math.pi, 10000)
        ),
        "the positions are divided by T; they are 0, 1, 2, …": by_pairs(
            T, D, lambda j: j // 2 * 2 / D + math.log(T, 10000)
        ),
        "exp and the logarithm to base 10 do not fit together: take math.log": by_pairs(
            T, D, lambda j: j // 2 * 2 / D, math.exp(4)
        ),
    }
    for base in (100.0, 1000.0, 1e5, math.e, 10.0):
        found[f"the base is {base:.5g}; it is 10000"] = by_pairs(T, D, lambda j: j // 2 * 2 / D, base)
    return {name: wrong if callable(wrong) else wrong.float() for name, wrong in found.items()}


@check("positional-encoding", points=10)
def positional_encoding(answer, case):
    """Against NumPy's complex exponential."""

    def demand(T, D, rows=slice(None), what="the encoding"):
        right, result = waves(T, D), answer(T, D)
        mistakes = encoding_mistakes(T, D, right)
        if isinstance(result, torch.Tensor) and result.shape == right.shape:
            case.close(
                result[rows],
                right[rows].float(),
                what=what,
                tolerance=2e-4,
                mistakes={name: _part(wrong, rows) for name, wrong in mistakes.items()},
            )
        else:
            case.close(result, right.float(), what=what, tolerance=2e-4, mistakes=mistakes)

    with case("one row for each position, one column for each feature", points=1, hint="a tensor (T, d_model)"):
        for T, D in ((7, 12), (3, 4)):
            result = answer(T, D)
            mistakes = {
                "rows and columns are exchanged": (D, T),
                "there is an axis for the batch; (T, d_model) broadcasts by itself": (1, T, D),
                "there is an axis for the batch, in the middle; (T, d_model) is asked": (T, 1, D),
                "half of the features are missing: each frequency gives a sine and a cosine": (T, D // 2),
                "one position too many: they are 0 … T - 1": (T + 1, D),
                "the sine and the cosine of a pair stand on an axis of their own; join the last two": (T, D // 2, 2),
            }
            case.shape(result, (T, D), what=f"the encoding for T = {T}, d_model = {D}", mistakes=mistakes)
            case.dtype(result, torch.float32, what="the encoding")
    with case("position 0 is 0, 1, 0, 1, …", points=1, hint="sin 0 = 0 and cos 0 = 1; sine stands first"):
        demand(9, 8, slice(0, 1), what="row 0")
    with case("the fastest pair is sin t, cos t", points=2, hint="for i = 0 the exponent is 0: the frequency is 1"):
        result = answer(9, 2)
        case.close(result, waves(9, 2).float(), mistakes=encoding_mistakes(9, 2, waves(9, 2)), tolerance=2e-4)
    with case(
        "every pair has its frequency", points=4, hint="pair i has the features 2i and 2i + 1, and one frequency"
    ):
        for D in (8, int(case.randint(5, 20)) * 2):
            demand(int(case.randint(20, 40)), D, what=f"the encoding for d_model = {D}")
    with case("it does not depend on T", points=1, hint="nothing is divided by T: row t is the same for every T"):
        long, short = answer(30, 8), answer(10, 8)
        case.shape(long, (30, 8)), case.shape(short, (10, 8))
        changed = always("a row changes with T: position t means the same in every text, nothing is divided by T")
        case.close(long[:10], short, what="the first 10 of 30 rows", tolerance=2e-4, mistakes=changed)
        demand(30, 8)
    with case("far positions, too", points=1, hint="torch.arange(T) counts exactly; adding up steps does not"):
        result = answer(2000, 16)
        case.shape(result, (2000, 16))
        case.close(result[-50:], waves(2000, 16)[-50:].float(), what="the last of 2000 rows", tolerance=5e-3)


def _part(wrong, rows):
    """Return the rows of a mistake, which may be a function."""
    return (lambda: (wrong() if callable(wrong) else wrong)[rows]) if callable(wrong) else wrong[rows]


@check("shift-matrix", points=8)
def shift_matrix(answer, case):
    """By what it does to the encoding of many positions, and by the laws of rotations."""

    def matrix(k, D):
        result = answer(k, D)
        case.shape(
            result,
            (D, D),
            what="the matrix",
            mistakes={
                "these are the 2 × 2 blocks; put them on the diagonal of one matrix": (D // 2, 2, 2),
                "this has one row for each pair; it takes D features to D features": (D // 2, D // 2),
                "this is a vector; a matrix is asked": (D,),
            },
        )
        return result.double()

    def moved(k, D, M, positions=range(0, 300, 7)):
        """Demand that M takes the encoding of position t to that of t + k."""
        at = list(positions)
        before = torch.cat([waves(1, D, start=t) for t in at])
        after = {by: torch.cat([waves(1, D, start=t + by) for t in at]) for by in (k, -k, 1, 0, 2 * k)}
        sin_cos = (before[:, 0::2], before[:, 1::2])
        right_sin, right_cos = after[k][:, 0::2], after[k][:, 1::2]

        def exchanged():
            out = torch.stack([right_cos, right_sin], -1).flatten(1)
            return alike(torch.stack(sin_cos[::-1], -1).flatten(1) @ M.T, out, 1e-3)

        def halves():
            return alike(torch.cat(sin_cos, -1) @ M.T, torch.cat([right_sin, right_cos], -1), 1e-3)

        mistakes = {
            "the matrix shifts back: it takes position t to t - k. A sign is wrong, or it is transposed": after[-k],
            "the matrix shifts by 1, whatever k is": after[1],
            "the matrix changes nothing: it is the identity": after[0],
            "the matrix shifts by 2k": after[2 * k],
            "the matrix is right for an encoding with the cosine first; ours has the sine first": exchanged,
            "the matrix is right for an encoding with all sines in the first half; ours alternates": halves,
            "the blocks stand in reverse order: the fastest pair comes first": lambda: alike(
                M.flip(0, 1), _transposed(k, D), 1e-3
            ),
        }
        mistakes |= _angles(M, k, D)
        case.close(
            before @ M.T, after[k], what=f"the matrix for k = {k} times the encoding", mistakes=mistakes, tolerance=1e-3
        )

    with case("a matrix (d_model, d_model)", points=1, hint="a 2 × 2 block for each pair, on the diagonal"):
        matrix(3, 8), matrix(3, 12)
    with case("k = 0 changes nothing", points=1, hint="cos 0 = 1 and sin 0 = 0: the identity"):
        found = matrix(0, 8)
        blocks = [torch.tensor([[0.0, a], [b, 0.0]]) for a, b in ((1, 1), (1, -1), (-1, 1))]
        mistakes = {
            "sine and cosine are exchanged: for k = 0 the diagonal is cos 0 = 1, and beside it stands sin 0 = 0": (
                lambda: any(alike(found, torch.block_diag(*[block] * 4).double()) for block in blocks)
            )
        }
        what = "the matrix for k = 0"
        case.close(found, torch.eye(8).double(), what=what, tolerance=1e-4, mistakes=mistakes)
    with case("one pair is turned by the angle k", points=2, hint="write out sin(t + k) and cos(t + k)"):
        for k in (1, 2):
            moved(k, 2, matrix(k, 2))
    with case("position t becomes t + k, for every t", points=2, hint="each pair turns by its own frequency times k"):
        for k, D in ((3, 8), (int(case.randint(4, 12)), 16)):
            moved(k, D, matrix(k, D))
    with case("pairs do not mix", points=1, hint="outside the 2 × 2 blocks on the diagonal everything is 0"):
        M = matrix(5, 8)
        outside = M.masked_fill(torch.block_diag(*[torch.ones(2, 2)] * 4).bool(), 0)
        case.true(outside.abs().max() < 1e-4, "some number outside the 2 × 2 blocks on the diagonal is not 0")
        case.close(M @ M.T, torch.eye(8).double(), what="M Mᵀ, which for rotations is the identity,", tolerance=1e-3)
    with case("back again with -k", points=1, hint="k may be negative; the same formula holds"):
        there, back = matrix(4, 8), matrix(-4, 8)
        mistakes = {
            "the matrix for k = -4 is the one for k = 4: the sign of k is lost": lambda: alike(back, there, 1e-3),
            "a negative k changes nothing: the matrix for k = -4 is the identity": there,
        }
        what = "the matrix for -4 times that for 4"
        case.close(back @ there, torch.eye(8).double(), what=what, tolerance=1e-3, mistakes=mistakes)
        moved(-4, 8, back, range(10, 300, 7))


def _transposed(k, D):
    """Return, transposed, the matrix that shifts the encoding by k, found by least squares from many positions."""
    at = torch.cat([waves(1, D, start=t) for t in range(0, 4000, 3)])
    to = torch.cat([waves(1, D, start=t + k) for t in range(0, 4000, 3)])
    return torch.linalg.lstsq(at, to).solution


def _angles(M, k, D):
    """Return, as mistakes, the wrong angles by which a matrix turns each pair."""

    def turns(angle):
        blocks = [torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angle]
        return lambda: alike(M, torch.block_diag(*blocks).double(), 1e-3)

    n = D // 2
    return {
        "every pair turns by the same angle k; pair i turns by k times its own frequency": turns([k] * n),
        "the exponent of the frequency is wrong: it is 2i / d_model, and here it is i / d_model": turns(
            [k * 10000 ** (-i / D) for i in range(n)]
        ),
        "the exponent of the frequency is wrong: it is 2i / d_model, and here it is 4i / d_model": turns(
            [k * 10000 ** (-4 * i / D) for i in range(n)]
        ),
        "the frequencies grow: the exponent has the wrong sign": turns([k * 10000 ** (2 * i / D) for i in range(n)]),
        "k is not used: each pair turns by its frequency": turns([10000 ** (-2 * i / D) for i in range(n)]),
        "the angles are in degrees: torch's sine takes radians": turns(
            [math.radians(k * 10000 ** (-2 * i / D)) for i in range(n)]
        ),
    }


# -- layer normalisation ----------------------------------------------------------------------------------

NORMS = ("layer_norm", "batch_norm", "group_norm", "rms_norm")


def norm_mistakes(x, gain, bias, eps):
    """Return what common mistakes make of x (B, T, D)."""
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    unbiased = x.var(-1, keepdim=True)
    centred = x - mean
    plain = centred / (var + eps) ** 0.5

    def over(*axes, correction=0):
        def compute():
            m, v = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=correction)
            return (x - m) / (v + eps) ** 0.5 * gain + bias

        return compute

    return {
        "the variance is divided by D - 1: torch's var and std do that unless told correction=0": (
            centred / (unbiased + eps) ** 0.5 * gain + bias
        ),
        "the variance is divided by D - 1 (torch's std does that), and eps stands outside the root": (
            centred / (unbiased**0.5 + eps) * gain + bias
        ),
        "eps stands outside the root: it is added to the variance, not to its root": (
            centred / (var**0.5 + eps) * gain + bias
        ),
        "eps is missing: it is added to the variance": centred / var**0.5 * gain + bias,
        "eps is fixed; take the one that the class was made with": lambda: any(
            alike(_seen[0], centred / (var + e) ** 0.5 * gain + bias) for e in (1e-5, 1e-6, 1e-12, 1e-8) if e != eps
        ),
        "the gain (weight) and the bias are missing": plain,
        "the gain (weight) is missing": plain + bias,
        "the bias is missing": plain * gain,
        "the bias is subtracted": plain * gain - bias,
        "gain and bias are exchanged": plain * bias + gain,
        "the gain multiplies the bias too: first times the gain, then plus the bias": (plain + bias) * gain,
        "the gain is applied before the normalisation, which takes it out again": lambda: F.layer_norm(
            x * gain, x.shape[-1:], None, bias, eps
        ),
        "the mean is not subtracted": x / (var + eps) ** 0.5 * gain + bias,
        "the mean is not subtracted (x is divided by the root of its mean square)": (
            x / (x.pow(2).mean(-1, keepdim=True) + eps) ** 0.5 * gain + bias
        ),
        "the root is missing: this divides by the variance": centred / (var + eps) * gain + bias,
        "this multiplies by the root of the variance instead of dividing": centred * (var + eps) ** 0.5 * gain + bias,
        "the variance is the sum of the squares, not their mean": (
            centred / (centred.pow(2).sum(-1, keepdim=True) + eps) ** 0.5 * gain + bias
        ),
        "the spread is not taken out: x is only centred": centred * gain + bias,
        "the spread is the mean of |x - mean|; it is the root of the variance, the mean of the squares": (
            centred / (centred.abs().mean(-1, keepdim=True) + eps) * gain + bias
        ),
        "the root is taken twice": centred / (var + eps) ** 0.25 * gain + bias,
        "the mean runs over the wrong axis: over the batch": over(0),
        "the mean runs over the wrong axis: over the batch, and the variance is divided by n - 1": (
            over(0, correction=1)
        ),
        "the mean runs over the wrong axis: over the tokens of a sequence": over(1),
        "the mean runs over the wrong axis: over the tokens, and the variance is divided by n - 1": (
            over(1, correction=1)
        ),
        "the mean runs over tokens and features together; each token is normalised by itself": over(1, 2),
        "the mean runs over batch and tokens together, as in batch normalisation; each token is normalised by itself": (
            over(0, 1)
        ),
        "the mean runs over everything; each token is normalised by itself": over(0, 1, 2),
    }


_seen = [torch.zeros(1)]  # the result that the mistakes of a case are asked about


@check("layer-norm", points=12, from_scratch=("layer_norm", "LayerNorm"))
def layer_norm(answer, case):
    """Against `torch.nn.functional.layer_norm`."""
    answer = answer.without(*NORMS)

    def build(D, eps=1e-5, fresh=False):
        built = answer(D, eps)
        gain, bias = 1 + 0.5 * case.randn(D), case.randn(D)
        demand_parameters(case, built, {"weight": (D,), "bias": (D,)})
        if not fresh:
            built.load_state_dict({"weight": gain, "bias": bias})
        return built, gain, bias

    def demand(built, x, gain, bias, eps=1e-5, tolerance=None, what="the result"):
        result = built(x)
        _seen[0] = result if isinstance(result, torch.Tensor) else torch.zeros(0)
        expected = F.layer_norm(x.double(), x.shape[-1:], gain.double(), bias.double(), eps).float()
        case.close(result, expected, what=what, mistakes=norm_mistakes(x, gain, bias, eps), tolerance=tolerance)

    with case("two parameters: weight is 1 and bias 0 at first", points=1, hint="nn.Parameter of ones, and of zeros"):
        built = answer(6)
        demand_parameters(case, built, {"weight": (6,), "bias": (6,)})
        start = built.parameters()
        exchanged = {"weight and bias are exchanged": start["bias"]}
        case.close(
            start["weight"],
            torch.ones(6),
            what="the fresh weight, which is 1 at first,",
            mistakes={}
            if alike(start["bias"], torch.zeros(6))
            else always("weight is the gain, 1 at first; bias is 0 at first") | exchanged,
        )
        case.close(start["bias"], torch.zeros(6), what="the fresh bias, which is 0 at first,")
    with case("each token gets mean 0 and variance 1", points=2, hint="over the features: the last axis, keepdim=True"):
        built, gain, bias = build(16, fresh=True)
        x = 3 + 2 * case.randn(4, 5, 16)
        demand(built, x, torch.ones(16), torch.zeros(16))
    with case("agrees with torch, gain and bias included", points=3, hint="(x - mean) / root · weight + bias"):
        built, gain, bias = build(12)
        x = 1 + 2 * case.randn(3, 5, 12)
        demand(built, x, gain, bias)
        differs = always("it is another one than in training mode: layer normalisation is the same in both modes")
        case.close(built.eval()(x), built.train()(x), what="the result in evaluation mode", mistakes=differs)
    with case("eps is added to the variance, under the root", points=2, hint="it matters when the variance is small"):
        for eps, size in ((1e-5, 3e-3), (1e-2, 0.1), (1e-12, 1.0)):
            built, gain, bias = build(8, eps)
            x = size * case.randn(3, 4, 8)
            demand(built, x, gain, bias, eps, tolerance=1e-4, what=f"the result for eps = {eps:g} and small numbers")
        what, x = "the result without a word about eps, which is then 1e-5,", 3e-3 * case.randn(3, 4, 8)
        built = answer(8)
        built.load_state_dict({"weight": gain, "bias": bias})
        demand(built, x, gain, bias, tolerance=1e-4, what=what)
    with case("a token of equal features gives the bias, and no NaN", points=1, hint="0 / sqrt(0 + eps) is 0"):
        built, gain, bias = build(8)
        result = built(torch.full((2, 3, 8), 0.5))
        case.finite(result)
        case.close(result, bias.expand(2, 3, 8), what="the result for equal features", tolerance=1e-4)
    with case("any number of leading axes", points=1, hint="count the axis from the end: dim=-1"):
        for lead in ((), (4,), (2, 2, 3)):
            built, gain, bias = build(10)
            demand(built, case.randn(*lead, 10), gain, bias, what=f"the result for x of shape {(*lead, 10)}")
    with case("numbers far from 0 keep their digits", points=1, hint="subtract the mean before you square"):
        built, gain, bias = build(32)
        demand(built, 1000 + case.randn(2, 3, 32), gain, bias, tolerance=3e-3, what="the result for x near 1000")
    with case("gradients flow to x, weight and bias", points=1, hint="no .detach() and no .data; x stays as it was"):
        built, gain, bias = build(8)
        x, upstream = case.randn(2, 3, 8), case.randn(2, 3, 8)
        case.unchanged(built, x)
        case.close(built(x), F.layer_norm(x, (8,), gain, bias), mistakes=NO_GRADIENT_YET)
        (found,) = built.gradients(x, upstream=upstream)
        expected = Answer(lambda x: F.layer_norm(x, (8,), gain, bias)).gradients(x, upstream=upstream)[0]
        case.close(found, expected, what="the gradient for x", tolerance=1e-4)
        gradients = built.parameter_gradients(x, upstream=upstream)
        silent = [name for name, gradient in gradients.items() if gradient is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}")


# -- feed-forward -----------------------------------------------------------------------------------------


@check("feed-forward", points=8)
def feed_forward(answer, case):
    """Against `torch.nn.functional`: linear, activation, linear."""
    D, d_ff = 8, 20

    def build(dropout=0.0, activation="relu", D=D, d_ff=d_ff):
        built = answer(D, d_ff, dropout, activation)
        state = {
            "linear1.weight": case.randn(d_ff, D) / D**0.5,
            "linear1.bias": case.randn(d_ff),
            "linear2.weight": case.randn(D, d_ff) / d_ff**0.5,
            "linear2.bias": case.randn(D),
        }
        demand_parameters(case, built, {name: value.shape for name, value in state.items()})
        built.load_state_dict(state)
        return built.eval(), state

    def demand(built, s, x, activation="relu", what="the result"):
        first = F.linear(x, s["linear1.weight"], s["linear1.bias"])

        def second(h):
            return F.linear(h, s["linear2.weight"], s["linear2.bias"])

        chosen, names = {"relu": F.relu, "gelu": F.gelu}, {"relu": "GELU", "gelu": "ReLU"}
        right = second(chosen[activation](first))
        other = chosen["gelu" if activation == "relu" else "relu"]
        mistakes = dropout_mistake(built, x) | {
            "the activation is missing: two linear maps in a row are one linear map": second(first),
            f"the activation is {names[activation]}, whatever is asked": second(other(first)),
            "this is the tanh approximation of GELU; torch's F.gelu is exact unless told otherwise": second(
                F.gelu(first, approximate="tanh")
            ),
            "the activation comes after the second map; it belongs between the two": chosen[activation](second(first)),
            "there is an activation after the second map too; it belongs only between the two": (
                chosen[activation](right)
            ),
            "the activation comes before the first map; it belongs between the two": lambda: second(
                F.linear(chosen[activation](x), s["linear1.weight"], s["linear1.bias"])
            ),
            "x is added to the result: the residual belongs to the layer around it": right + x,
            "the activation is a sigmoid": second(first.sigmoid()),
            "the activation is tanh": second(first.tanh()),
            "the activation is SiLU": second(F.silu(first)),
            "the activation is the approximation of GELU by a sigmoid; torch's F.gelu is exact": second(
                first * (1.702 * first).sigmoid()
            ),
            "the activation is a leaky ReLU: ReLU makes negative numbers 0": second(F.leaky_relu(first)),
            "x is normalised first: the norms belong to the layer around it": lambda: second(
                chosen[activation](F.linear(F.layer_norm(x, (D,)), s["linear1.weight"], s["linear1.bias"]))
            ),
            "the second map has the weights of the first, transposed: linear2 has weights of its own": lambda: F.linear(
                chosen[activation](first), s["linear1.weight"].T, s["linear2.bias"]
            ),
            "the activation is a softmax": second(first.softmax(-1)),
            "the result is the hidden layer; the second map is missing": chosen[activation](first),
            "the result is normalised: the norms belong to the layer around it": F.layer_norm(right, (D,)),
        }
        case.close(built(x), right, what=what, mistakes=mistakes)

    with case("two linear maps, D → d_ff → D, with bias", points=1, hint="linear1 and linear2, two nn.Linear"):
        build()
        build(D=6, d_ff=6)
    with case("ReLU between them", points=2, hint="linear2(activation(linear1(x)))"):
        built, state = build()
        demand(built, state, 2 * case.randn(3, 5, D))
    with case("GELU when it is asked for", points=2, hint='activation is the word "relu" or "gelu"'):
        built, state = build(activation="gelu")
        demand(built, state, 2 * case.randn(3, 5, D), "gelu")
    with case("each token for itself", points=1, hint="nn.Linear acts on the last axis; nothing is mixed along T"):
        built, state = build()
        x = case.randn(2, 6, D)
        whole, part = built(x), built(x[:, 2:3])
        case.shape(whole, x.shape)
        case.close(whole[:, 2:3], part, what="token 2 among others, and alone,")
        demand(built, state, case.randn(D), what="the result for one token without leading axes")
    with case("dropout between activation and second map, in training only", points=2, hint="nn.Dropout(dropout)"):
        built, state = build(dropout=0.5)
        x = case.randn(2, 5, D)
        case.true(
            torch.equal(built(x), built(x)),
            "in evaluation mode two calls give different results: dropout must be still there (nn.Dropout knows the "
            "mode; F.dropout has to be told)",
        )
        demand(built, state, x, what="the result in evaluation mode, with dropout = 0.5,")
        # Every hidden feature is 1, and feature j counts 2^-j in output 0: the bits tell which were dropped.
        n = 12
        built = answer(1, n, 0.5, "relu")
        built.load_state_dict(
            {
                "linear1.weight": torch.zeros(n, 1),
                "linear1.bias": torch.ones(n),
                "linear2.weight": 2.0 ** -torch.arange(1.0, n + 1)[None],
                "linear2.bias": torch.zeros(1),
            }
        )
        out = built.train()(torch.zeros(400, 1)).flatten()
        full = 1 - 2.0**-n
        case.true(
            not alike(out, torch.full_like(out, full)),
            "in training mode nothing is dropped, although dropout is 0.5",
        )
        case.true(
            len(out.unique()) > 3,
            "in training mode whole outputs are dropped, not hidden features: dropout belongs before the second map",
        )
        case.true(
            (out == 0).float().mean() < 0.1,
            "in training mode whole outputs are dropped as well: dropout belongs on the hidden features alone",
        )
        kept = out.mean().item() / full
        case.true(
            0.85 < kept < 1.15,
            f"in training mode the hidden features are {kept:.2f} times as large as without dropout, in the mean: what "
            "is kept must be divided by the share that is kept, as nn.Dropout does, and dropped only once",
        )
        one = answer(1, 1, 0.5, "gelu")
        start = {"linear1.weight": 0.0, "linear1.bias": 1.0, "linear2.weight": 1.0, "linear2.bias": 0.0}
        one.load_state_dict({name: torch.full([1] * (1 + ("weight" in name)), x) for name, x in start.items()})
        found, doubled = one.train()(torch.zeros(40, 1)).max(), F.gelu(torch.tensor(2.0))
        case.true(not alike(found, doubled), "dropout comes before the activation; it comes after it")
        still = answer(1, n, 0.0, "relu")
        x = case.randn(5, 1)
        case.close(still.train()(x), still.eval()(x), what="with dropout = 0, the result in training mode")


# -- layers, torch's and ours -----------------------------------------------------------------------------


def torch_layer(case, D, heads, d_ff, *, norm_first, activation="relu", eps=1e-5):
    """Return torch's encoder layer with random weights, without dropout."""
    layer = nn.TransformerEncoderLayer(
        D, heads, d_ff, 0.0, activation, layer_norm_eps=eps, batch_first=True, norm_first=norm_first
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            value = case.randn(*parameter.shape)
            if "norm" in name and name.endswith("weight"):
                value = 1 + 0.3 * value
            elif parameter.ndim == 2:
                value = value / parameter.shape[1] ** 0.5
            parameter.copy_(value)
    return layer


SAME = {"self_attn.out_proj": "attention.out_proj", "norm1": "norm1", "norm2": "norm2"}
SAME |= {"linear1": "feed_forward.linear1", "linear2": "feed_forward.linear2"}


def renamed(layer, prefix=""):
    """Return the weights of torch's layer under the names that the lab's classes have."""
    state = {}
    for kind in ("weight", "bias"):
        parts = getattr(layer.self_attn, f"in_proj_{kind}").detach().chunk(3)
        for name, value in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            state[f"{prefix}attention.{name}.{kind}"] = value.clone()
        for theirs, ours in SAME.items():
            state[f"{prefix}{ours}.{kind}"] = layer.get_parameter(f"{theirs}.{kind}").detach().clone()
    return state


def to_torch(layer, state, prefix=""):
    """Give torch's layer the weights of `state`, which has the lab's names."""
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [state[f"{prefix}attention.{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            getattr(layer.self_attn, f"in_proj_{kind}").copy_(torch.cat(parts))
            for theirs, ours in SAME.items():
                layer.get_parameter(f"{theirs}.{kind}").copy_(state[f"{prefix}{ours}.{kind}"])


def run_torch(module, x, keep=None):
    """Return what torch's layer or encoder makes of x; `keep` (B, T) is True for real tokens."""
    # With gradients enabled torch does not take its fast path, which leaves zeros at the padding.
    with torch.enable_grad():
        return module(x, src_key_padding_mask=None if keep is None else ~keep).detach()


def attend(layer, z, keep=None, heads=None):
    """Return the output of torch's attention with its output map; a query that sees nothing gets zeros.

    `keep` is (B, T), True for real tokens, or a whole mask with four axes.
    """
    attention = layer.self_attn
    heads = heads or attention.num_heads
    with torch.no_grad():
        q, k, v = (
            F.linear(z, w, b).unflatten(-1, (heads, -1)).transpose(1, 2)
            for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        )
        mask = keep if keep is None or keep.ndim == 4 else keep[:, None, None]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).nan_to_num(0.0)
        return attention.out_proj(found.transpose(1, 2).flatten(2))


def by_parts(encoder, x, keep, *, activation=F.relu, heads=None):
    """Return what torch's encoder makes of x, with attention as in `attend`, and perhaps another activation."""
    with torch.no_grad():
        for layer in encoder.layers:
            first = layer.norm_first
            x = x + attend(layer, layer.norm1(x) if first else x, keep, heads)
            x = x if first else layer.norm1(x)
            x = x + layer.linear2(activation(layer.linear1(layer.norm2(x) if first else x)))
            x = x if first else layer.norm2(x)
        return x if encoder.norm is None else encoder.norm(x)


def wirings(norm_first):
    """Return how the parts of a layer are wrongly put together, under the sentence that names the mistake.

    Each takes x, attention, feed-forward and the two norms.
    """

    def pre(x, a, f, n, m):
        x = x + a(n(x))
        return x + f(m(x))

    def post(x, a, f, n, m):
        x = n(x + a(x))
        return m(x + f(x))

    def one(x):
        return x

    right = pre if norm_first else post
    found = {
        "norm1 and norm2 are exchanged": lambda x, a, f, n, m: right(x, a, f, m, n),
        "norm1 is used twice, norm2 never": lambda x, a, f, n, m: right(x, a, f, n, n),
        "norm2 is used twice, norm1 never": lambda x, a, f, n, m: right(x, a, f, m, m),
        "norm1 is missing": lambda x, a, f, n, m: right(x, a, f, one, m),
        "norm2 is missing": lambda x, a, f, n, m: right(x, a, f, n, one),
        "both norms are missing": lambda x, a, f, n, m: right(x, a, f, one, one),
        "the feed-forward network comes first; attention comes first": lambda x, a, f, n, m: right(x, f, a, n, m),
        "the feed-forward network comes first, and the norms are exchanged with it": (
            lambda x, a, f, n, m: right(x, f, a, m, n)
        ),
        "the attention's output is not used": lambda x, a, f, n, m: right(x, lambda z: 0 * z, f, n, m),
        "the feed-forward network is not used": lambda x, a, f, n, m: right(x, a, lambda z: 0 * z, n, m),
        "the norm stands between the sub-layer and the sum, x + norm(sublayer(x)): neither pre- nor post-norm": (
            lambda x, a, f, n, m: pre(x, lambda z: n(a(z)), lambda z: m(f(z)), one, one)
        ),
        "the residual of the attention is added twice": (
            lambda x, a, f, n, m: right(x, lambda z: (x if norm_first else z) + a(z), f, n, m)
        ),
        "residuals are added twice": lambda x, a, f, n, m: right(x, lambda z: z + a(z), lambda z: z + f(z), n, m),
        "attention and feed-forward network read the same x side by side; the network reads the sum after attention": (
            (lambda x, a, f, n, m: x + a(n(x)) + f(m(x)))
            if norm_first
            else (lambda x, a, f, n, m: m(n(x + a(x) + f(x))))
        ),
    }
    if norm_first:
        return found | {
            "norm_first=True asks for pre-norm, and this is post-norm": post,
            "norm_first=True asks for pre-norm, and this is post-norm with the norms exchanged": (
                lambda x, a, f, n, m: post(x, a, f, m, n)
            ),
            "the residual around the attention is missing": lambda x, a, f, n, m: (y := a(n(x))) + f(m(y)),
            "the residual around the feed-forward network is missing": lambda x, a, f, n, m: f(m(x + a(n(x)))),
            "both residuals are missing": lambda x, a, f, n, m: f(m(a(n(x)))),
            "the residual starts from the normalised x: in pre-norm, x itself passes by the norm": (
                lambda x, a, f, n, m: (z := m((y := n(x)) + a(y))) + f(z)
            ),
            "the second residual adds the x of the beginning; it adds what came out of the first": (
                lambda x, a, f, n, m: x + f(m(x + a(n(x))))
            ),
            "the feed-forward network reads what is not normalised: norm2 comes before it": (
                lambda x, a, f, n, m: m((y := x + a(n(x))) + f(y))
            ),
            "there is a norm too many: in pre-norm nothing is normalised after the last sum of a layer": (
                lambda x, a, f, n, m: m((y := x + a(n(x))) + f(m(y)))
            ),
            "the attention's residual starts from the normalised x: x itself passes by the norm": (
                lambda x, a, f, n, m: (z := (y := n(x)) + a(y)) + f(m(z))
            ),
            "the network's residual starts from the normalised sum": lambda x, a, f, n, m: (y := m(x + a(n(x)))) + f(y),
        }
    return found | {
        "norm_first=False asks for post-norm, and this is pre-norm": pre,
        "the residual around the attention is missing": lambda x, a, f, n, m: m((y := n(a(x))) + f(y)),
        "the residual around the feed-forward network is missing": lambda x, a, f, n, m: m(f(n(x + a(x)))),
        "both residuals are missing": lambda x, a, f, n, m: m(f(n(a(x)))),
        "the second residual adds the x of the beginning; it adds what came out of the first norm": (
            lambda x, a, f, n, m: m(x + f(n(x + a(x))))
        ),
        "the second residual adds what stood before norm1; it adds what came out of it": (
            lambda x, a, f, n, m: m((y := x + a(x)) + f(n(y)))
        ),
        "attention reads the normalised x as well: that is pre-norm and post-norm at once": (
            lambda x, a, f, n, m: m((y := n(x + a(n(x)))) + f(m(y)))
        ),
    }


def layer_mistakes(layer, x, keep, norm_first, activation="relu"):
    """Return the outputs that common mistakes in one layer lead to."""
    acts = {"relu": F.relu, "gelu": F.gelu, "tanh": lambda h: F.gelu(h, approximate="tanh"), "none": lambda h: h}

    def run(wire, keep=keep, kind=activation, heads=None):
        def compute():
            with torch.no_grad():
                return wire(
                    x,
                    lambda z: attend(layer, z, keep, heads),
                    lambda z: layer.linear2(acts[kind](layer.linear1(z))),
                    layer.norm1,
                    layer.norm2,
                )

        return compute

    def right(x, a, f, n, m):
        if norm_first:
            x = x + a(n(x))
            return x + f(m(x))
        x = n(x + a(x))
        return m(x + f(x))

    found = {}
    if keep is not None:
        found |= {
            "the mask does not reach the attention: padding is attended to": run(right, None),
            "the mask has the wrong sense: True means that a query may attend to a key": run(right, ~keep),
        }
    found |= {name: run(wire) for name, wire in wirings(norm_first).items()}
    for kind in {"relu", "gelu"} - {activation}:
        found[f"the activation is {kind}, not what was asked for"] = run(right, kind=kind)
    return found | {
        "the activation is missing": run(right, kind="none"),
        "the GELU is the approximation by tanh": run(right, kind="tanh"),
        "the attention has one head, whatever num_heads is": run(right, heads=1),
        "the result is x itself: nothing was done": x,
    }


def real_only(value, keep):
    """Put zeros at the padding, where it does not matter what stands there."""
    if keep is None or not isinstance(value, torch.Tensor) or value.ndim != 3 or value.shape[:2] != keep.shape:
        return value
    return value.masked_fill(~keep[..., None], 0)


def close_at_real(case, result, expected, keep, what, mistakes):
    """Demand equality at the real tokens."""

    def hidden(wrong):
        if not callable(wrong):
            return real_only(wrong, keep)

        def made():
            value = wrong()
            return value if isinstance(value, bool) else real_only(value, keep)

        return made

    if isinstance(result, (tuple, list)):
        case.true(False, f"{what} is a {type(result).__name__} of {len(result)}, expected one tensor (B, T, D)")
    mistakes = {name: hidden(wrong) for name, wrong in mistakes.items()}
    case.close(real_only(result, keep), real_only(expected, keep), what=what, mistakes=mistakes)


def padded(T, *lengths):
    """Return booleans (B, T), True for real tokens."""
    return torch.arange(T) < torch.tensor(lengths)[:, None]


@check("encoder-layer", points=16, from_scratch=LIBRARY_LAYERS)
def encoder_layer(answer, case):
    """Against `nn.TransformerEncoderLayer` with the same weights."""
    D, heads, d_ff = 12, 3, 20

    def build(norm_first, activation="relu", dropout=0.0, eps=1e-5):
        layer = torch_layer(case, D, heads, d_ff, norm_first=norm_first, activation=activation, eps=eps)
        state = renamed(layer)
        built = answer(D, heads, d_ff, dropout, norm_first, activation, eps)
        demand_parameters(case, built, {name: value.shape for name, value in state.items()})
        built.load_state_dict(state)
        return built.eval(), layer

    def demand(built, layer, x, keep=None, *, norm_first, activation="relu", what):
        result = built(x) if keep is None else built(x, keep[:, None, None])
        mistakes = dropout_mistake(built, x) | layer_mistakes(layer, x, keep, norm_first, activation)
        close_at_real(case, result, run_torch(layer, x, keep), keep, what, mistakes)

    with case(
        "attention, feed_forward, norm1 and norm2, and no other parameters",
        points=2,
        hint="attention = MultiHeadAttention(...), feed_forward = FeedForward(...), two LayerNorm",
    ):
        build(True)
        build(False)
    with case("pre-norm agrees with torch", points=3, hint="x + sublayer(norm(x)), twice"):
        built, layer = build(True)
        x = 1 + 2 * case.randn(2, 5, D)
        demand(built, layer, x, norm_first=True, what="the pre-norm output")
        plain = answer(D, heads, d_ff)
        plain.load_state_dict(renamed(layer))
        same = alike(plain.eval()(x), built(x))
        case.true(same, "without a word about norm_first it is not pre-norm: norm_first is True by default")
    with case("post-norm agrees with torch", points=3, hint="norm(x + sublayer(x)), twice"):
        built, layer = build(False)
        demand(built, layer, 1 + 2 * case.randn(2, 5, D), norm_first=False, what="the post-norm output")
    with case("the mask reaches the attention", points=3, hint="self.attention(..., mask)"):
        keep = padded(6, 6, 4, 2)
        for norm_first in (True, False):
            built, layer = build(norm_first)
            what = f"the output for a padded batch, norm_first={norm_first},"
            demand(built, layer, case.randn(3, 6, D), keep, norm_first=norm_first, what=what)
    with case("activation and eps are passed on", points=2, hint="to FeedForward, and to both LayerNorm"):
        for norm_first in (True, False):
            built, layer = build(norm_first, "gelu", eps=0.3)
            x = 0.5 * case.randn(2, 5, D)
            for norm in (layer.norm1, layer.norm2):
                norm.eps = 1e-5
            fixed = run_torch(layer, x)
            for norm in (layer.norm1, layer.norm2):
                norm.eps = 0.3
            mistakes = {"eps does not reach the norms: this is the result for eps = 1e-5": fixed}
            mistakes |= layer_mistakes(layer, x, None, norm_first, "gelu")
            case.close(built(x), run_torch(layer, x), what="the output for GELU and eps = 0.3", mistakes=mistakes)
    with case(
        "dropout on what each sub-layer adds, in training only",
        points=2,
        hint="x + dropout(sublayer(...)); nn.Dropout knows the mode",
    ):
        built, layer = build(True, dropout=0.5)
        x = case.randn(2, 5, D)
        demand(built, layer, x, norm_first=True, what="the output in evaluation mode, with dropout = 0.5,")
        # The sub-layers return 1 and 4 whatever they read: what is added tells what was dropped.
        values = {name: 0 * value for name, value in built.parameters().items()}
        values["attention.out_proj.bias"] += 1
        values["feed_forward.linear2.bias"] += 4
        values["norm1.weight"] += 1
        values["norm2.weight"] += 1
        built.load_state_dict(values)
        x = 100 + torch.zeros(8, 50, D)
        added = (built.train()(x) - x).round(decimals=3)
        kinds = set(added.unique().tolist())
        case.true(kinds != {5.0}, "in training mode nothing is dropped, although dropout is 0.5")
        case.true(
            min(kinds) >= 0 and max(kinds) < 50,
            "in training mode x itself is dropped or scaled: dropout belongs on what a sub-layer adds, not on the sum",
        )
        case.true(
            not kinds <= {0.0, 10.0},
            "the two sub-layers are dropped together: each has a dropout of its own",
        )
        case.true(
            not kinds <= {4.0, 6.0}, "nothing of the feed-forward network's output is dropped: both sub-layers have it"
        )
        case.true(not kinds <= {1.0, 9.0}, "nothing of the attention's output is dropped: both sub-layers have it")
        case.true(
            kinds <= {0.0, 2.0, 8.0, 10.0},
            "what the sub-layers add is not dropped and scaled as nn.Dropout(0.5) does it once: " + str(sorted(kinds)),
        )
        # Now the network returns its first hidden feature, which is 1.
        values = {name: 0 * value for name, value in values.items()}
        values["feed_forward.linear1.bias"] += 1
        values["feed_forward.linear2.weight"][:, 0] += 1
        built.load_state_dict(values)
        added = (built.train()(x) - x).round(decimals=3)
        case.true(
            set(added.unique().tolist()) <= {0.0, 4.0},
            "dropout = 0.5 is not that of the FeedForward's hidden layer: pass it on to FeedForward",
        )
        # In post-norm the last norm, with gain 0, forgets all that was dropped before it.
        built, _ = build(False, dropout=0.5)
        values = {name: 0 * value for name, value in built.parameters().items()}
        built.load_state_dict(values | {"norm2.bias": torch.ones(D)})
        case.true(
            alike(built.train()(x), torch.ones_like(x)),
            "in post-norm, what comes out of the last norm is dropped: dropout belongs on what a sub-layer adds",
        )
        ones = {"norm1.weight": torch.ones(D), "norm2.weight": torch.ones(D)}
        for part, bias in (("attention", "attention.out_proj.bias"), ("network", "feed_forward.linear2.bias")):
            built.load_state_dict(values | ones | {bias: case.randn(D)})
            case.true(
                not alike(built.train()(x), built.eval()(x)),
                f"in post-norm nothing of the {part}'s output is dropped in training mode",
            )
            built.train()
    with case("gradients flow to x and to every parameter", points=1, hint="nothing is detached or changed in place"):
        built, layer = build(True)
        x, upstream = case.randn(2, 4, D), case.randn(2, 4, D)
        case.unchanged(built, x)
        case.close(built(x), run_torch(layer, x), mistakes=NO_GRADIENT_YET)
        (found,) = built.gradients(x, upstream=upstream)
        (expected,) = Answer(lambda x: layer(x)).gradients(x, upstream=upstream)
        case.close(found, expected, what="the gradient for x", tolerance=1e-4)
        gradients = built.parameter_gradients(x, upstream=upstream)
        silent = [name for name, gradient in gradients.items() if gradient is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}")


# -- encoder ----------------------------------------------------------------------------------------------


def torch_encoder(case, layers, D, heads, d_ff, *, norm_first, activation="relu", eps=1e-5):
    """Return torch's encoder with random weights, other ones in each layer, and the weights under the lab's names."""
    norm = nn.LayerNorm(D, eps=eps) if norm_first else None
    first = torch_layer(case, D, heads, d_ff, norm_first=norm_first, activation=activation, eps=eps)
    encoder = nn.TransformerEncoder(first, layers, norm, enable_nested_tensor=False)
    state = {}
    for i in range(layers):
        layer = torch_layer(case, D, heads, d_ff, norm_first=norm_first, activation=activation, eps=eps)
        encoder.layers[i].load_state_dict(layer.state_dict())
        state |= renamed(layer, f"layers.{i}.")
    if norm is not None:
        with torch.no_grad():
            norm.weight.copy_(1 + 0.3 * case.randn(D))
            norm.bias.copy_(case.randn(D))
        state |= {"norm.weight": norm.weight.detach().clone(), "norm.bias": norm.bias.detach().clone()}
    return encoder, state


def encoder_mistakes(encoder, x, keep):
    """Return the outputs that common mistakes in a stack of layers lead to."""
    layers, norm = list(encoder.layers), encoder.norm or (lambda z: z)

    def through(some, x=x, last=norm, masks=None):
        def compute():
            z = x
            for i, layer in enumerate(some):
                z = run_torch(layer, z, keep if masks is None else masks(i))
            with torch.no_grad():
                return last(z)

        return compute

    n = len(layers)
    found = {}
    if keep is not None:
        found |= {
            "the mask is not passed on to the layers: padding is attended to": through(layers, masks=lambda i: None),
            "the mask has the wrong sense: True means that a query may attend to a key": (
                lambda: by_parts(encoder, x, ~keep)
            ),
            "only the first layer gets the mask: pass it to each": through(layers, masks=lambda i: None if i else keep),
            "only the last layer gets the mask: pass it to each": through(
                layers, masks=lambda i: keep if i == n - 1 else None
            ),
        }
    found |= {
        "the layers run in reverse order": through(layers[::-1]),
        "only the first layer is used": through(layers[:1]),
        "only the last layer is used: does each layer read x, and not what the one before returned?": through(
            layers[-1:]
        ),
        "the first layer is used again and again": through(layers[:1] * n),
        "x is added to what a layer returns: the residuals are inside the layer": lambda: _added_each(
            layers, norm, x, keep
        ),
        "the attention has one head, whatever num_heads is": lambda: by_parts(encoder, x, keep, heads=1),
        "the last layer is used again and again": through(layers[-1:] * n),
        "the last layer is left out": through(layers[:-1]),
        "the first layer is left out": through(layers[1:]),
        "the outputs of the layers are added up; each layer reads what the one before returned": lambda: norm(
            sum(through([layer], last=lambda z: z)() for layer in layers)
        ).detach(),
    }
    if encoder.norm is not None:
        found |= {
            "the final norm is missing: in pre-norm nothing else has normalised the sum": through(
                layers, last=lambda z: z
            ),
            "the norm stands before the layers; it comes after the last one": lambda: through(
                layers, x=norm(x).detach(), last=lambda z: z
            )(),
            "the final norm is applied twice": through(layers, last=lambda z: norm(norm(z))),
            "the norm is applied after every layer; it comes once, at the end": lambda: _normed_each(
                layers, norm, x, keep
            ),
        }
    else:
        found["there is a final norm: post-norm layers end with one already"] = through(
            layers, last=lambda z: F.layer_norm(z, z.shape[-1:])
        )
    return found | {"the result is x itself": x}


def _normed_each(layers, norm, x, keep):
    for layer in layers:
        x = norm(run_torch(layer, x, keep)).detach()
    return x


def _added_each(layers, norm, x, keep):
    for layer in layers:
        x = x + run_torch(layer, x, keep)
    return norm(x).detach()


@check("encoder", points=10, from_scratch=LIBRARY_LAYERS)
def encoder(answer, case):
    """Against `nn.TransformerEncoder` with the same weights."""
    D, heads, d_ff = 12, 2, 16

    def build(layers, norm_first, activation="relu", dropout=0.0, eps=1e-5):
        theirs, state = torch_encoder(
            case, layers, D, heads, d_ff, norm_first=norm_first, activation=activation, eps=eps
        )
        built = answer(layers, D, heads, d_ff, dropout, norm_first, activation, eps)
        if not norm_first:
            has = [name for name in built.parameters() if name.startswith("norm.")]
            case.true(not has, "a post-norm encoder has no final norm: each of its layers ends with one already")
        elif "norm.weight" not in built.parameters() and len(built.parameters()) >= 16 * layers:
            case.true(False, "a pre-norm encoder needs a final norm, named norm: the sum is normalised nowhere else")
        if len({name.split(".")[1] for name in built.parameters() if name.startswith("layers.")}) == 1 < layers:
            case.true(False, "all layers share their weights: make a new EncoderLayer for each")
        demand_parameters(case, built, {name: value.shape for name, value in state.items()})
        built.load_state_dict(state)
        return built.eval(), theirs

    def demand(built, theirs, x, keep=None, what="the output"):
        result = built(x) if keep is None else built(x, keep[:, None, None])
        mistakes = dropout_mistake(built, x) | encoder_mistakes(theirs, x, keep)
        close_at_real(case, result, run_torch(theirs, x, keep), keep, what, mistakes)

    with case("as many layers as asked, each with its own weights", points=2, hint="layers is an nn.ModuleList"):
        build(3, True)
        build(2, False)
        fresh = answer(2, D, heads, d_ff).parameters()
        name = "attention.q_proj.weight"
        case.true(
            not torch.equal(fresh[f"layers.0.{name}"], fresh[f"layers.1.{name}"]),
            "the layers start with the same weights (deepcopy?): make a new EncoderLayer for each",
        )
        case.true("norm.weight" in fresh, "without a word about norm_first it is not pre-norm: it is True by default")
    with case("pre-norm, with a final norm, agrees with torch", points=3, hint="one layer after the other, then norm"):
        for layers in (1, 3):
            built, theirs = build(layers, True)
            demand(built, theirs, case.randn(2, 5, D), what=f"the output of {layers} pre-norm layers")
    with case("post-norm, without one, agrees with torch", points=2, hint="no norm after the last layer"):
        built, theirs = build(3, False)
        demand(built, theirs, case.randn(2, 5, D), what="the output of 3 post-norm layers")
    with case("the mask reaches every layer", points=2, hint="layer(x, mask), each time"):
        keep = padded(6, 6, 4, 3)
        for norm_first in (True, False):
            built, theirs = build(3, norm_first)
            demand(built, theirs, case.randn(3, 6, D), keep, what=f"the output, norm_first={norm_first},")
    with case("all options reach the layers", points=1, hint="pass dropout, norm_first, activation and eps on"):
        built, theirs = build(2, True, "gelu", dropout=0.5, eps=0.3)
        x = case.randn(2, 5, D)
        demand(built, theirs, x, what="the output for GELU and eps = 0.3, in evaluation mode,")
        case.true(
            not torch.equal(built.train()(x), built.eval()(x)),
            "dropout = 0.5 changes nothing in training mode: it does not reach the layers",
        )
        built, _ = build(2, True)
        same = alike(built.train()(x), built.eval()(x))
        case.true(same, "with dropout = 0 the output in training mode is another one: dropout is not passed on")


# -- BERT's weights ---------------------------------------------------------------------------------------

BERT = {
    "attention.self.query": (1, 1),
    "attention.self.key": (1, 1),
    "attention.self.value": (1, 1),
    "attention.output.dense": (1, 1),
    "attention.output.LayerNorm": (1,),
    "intermediate.dense": (2, 1),
    "output.dense": (1, 2),
    "output.LayerNorm": (1,),
}


def bert_state(case, layers, D):
    """Return random weights under the names that `transformers.BertModel` gives them."""
    state = {
        "embeddings.word_embeddings.weight": case.randn(10, D),
        "embeddings.position_embeddings.weight": case.randn(7, D),
        "embeddings.token_type_embeddings.weight": case.randn(2, D),
        "embeddings.LayerNorm.weight": 1 + case.randn(D),
        "embeddings.LayerNorm.bias": case.randn(D),
    }
    for i in range(layers):
        for name, sizes in BERT.items():
            shape = [size * D for size in sizes]
            weight = 1 + 0.3 * case.randn(*shape) if len(shape) == 1 else case.randn(*shape) / shape[1] ** 0.5
            state[f"encoder.layer.{i}.{name}.weight"] = weight
            state[f"encoder.layer.{i}.{name}.bias"] = 0.5 * case.randn(shape[0])
    return state | {"pooler.dense.weight": case.randn(D, D), "pooler.dense.bias": case.randn(D)}


def bert_encoder(state, layers, x, heads):
    """Return what BERT's encoder makes of x: Devlin et al. 2018, written with torch's functions."""
    for i in range(layers):

        def linear(z, name):
            return F.linear(z, state[f"encoder.layer.{i}.{name}.weight"], state[f"encoder.layer.{i}.{name}.bias"])  # noqa: B023

        def norm(z, name):
            gain, bias = (state[f"encoder.layer.{i}.{name}.LayerNorm.{kind}"] for kind in ("weight", "bias"))  # noqa: B023
            return F.layer_norm(z, z.shape[-1:], gain, bias, 1e-12)

        split = [
            linear(x, f"attention.self.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        ]
        found = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = norm(x + linear(found, "attention.output.dense"), "attention.output")
        x = norm(x + linear(F.gelu(linear(x, "intermediate.dense")), "output.dense"), "output")
    return x


@check("bert-weights", points=6)
def bert_weights(answer, case):
    """The renamed weights go into torch's encoder, which must then compute what BERT's layers compute."""

    def names_of(layers, D):
        layer = torch_layer(case, D, 2, 2 * D, norm_first=False)
        return {f"layers.{i}.{name}": value.shape for i in range(layers) for name, value in renamed(layer).items()}

    def asked(layers, D):
        state = bert_state(case, layers, D)
        found = answer(state)
        if not isinstance(found, dict):
            case.true(False, f"the result is a {type(found).__name__}, expected a dict of names and tensors")
        case.true(found, "the dict is empty")
        return state, found

    def demand_names(found, layers, D):
        wanted = names_of(layers, D)
        wrong_start = [name for name in found if name.startswith(("encoder.layer", "encoder.layers"))]
        case.true(not wrong_start, f"the name {wrong_start[:1]} begins with encoder; the names of our Encoder do not")
        missing = [name for name in wanted if name not in found]
        case.true(
            not missing,
            f"{len(missing)} names are missing, among them {', '.join(missing[:3])}; there are "
            f"{', '.join([name for name in found if name not in wanted][:4]) or 'no others'}",
        )
        for name, shape in wanted.items():
            mistakes = {
                "the matrix is transposed; nn.Linear keeps (outputs, inputs) in both models": tuple(shape)[::-1]
            }
            case.shape(found[name], shape, what=name, mistakes=mistakes)
        extra = [name for name in found if name not in wanted]
        case.true(not extra, f"the Encoder has no {', '.join(extra[:3])}: leave out what belongs to another part")

    def output(found, layers, x, D):
        encoder, _ = torch_encoder(case, layers, D, 2, 2 * D, norm_first=False, activation="gelu", eps=1e-12)
        for i, layer in enumerate(encoder.layers):
            to_torch(layer, found, f"layers.{i}.")
        return run_torch(encoder, x)

    def swapped(found, one, other):
        def name_for(name):
            for a, b in ((one, other), (other, one)):
                if f".{a}." in name:
                    return name.replace(f".{a}.", f".{b}.")
            return name

        return {name: found[name_for(name)] for name in found}

    def demand(layers, D):
        state, found = asked(layers, D)
        demand_names(found, layers, D)
        x = case.randn(2, 5, D)
        right = bert_encoder(state, layers, x, 2)

        def would(change):
            return lambda: alike(output(change(found), layers, x, D), right, 1e-4)

        mistakes = {}
        for one, other in (
            ("norm1", "norm2"),
            ("q_proj", "k_proj"),
            ("q_proj", "v_proj"),
            ("k_proj", "v_proj"),
            ("q_proj", "out_proj"),
            ("k_proj", "out_proj"),
            ("v_proj", "out_proj"),
        ):
            mistakes[f"{one} and {other} are exchanged"] = would(
                lambda found, one=one, other=other: swapped(found, one, other)
            )
        mistakes["the layers are in the wrong order"] = would(
            lambda found: {
                name: found[f"layers.{layers - 1 - int(name.split('.')[1])}.{name.split('.', 2)[2]}"] for name in found
            }
        )
        mistakes["the square matrices are transposed; nn.Linear keeps (outputs, inputs) in both models"] = would(
            lambda found: {
                name: value.T if value.ndim == 2 and value.shape[0] == value.shape[1] else value
                for name, value in found.items()
            }
        )
        copies = {
            name: [s for s, v in state.items() if v.shape == t.shape and torch.equal(v, t)] for name, t in found.items()
        }
        strange = [name for name, sources in copies.items() if not sources]
        doubled = [
            f"{sources[0]} stands under {name} and {other}"
            for name, sources in copies.items()
            for other, others in copies.items()
            if sources and name < other and sources == others
        ]
        case.close(
            output(found, layers, x, D),
            right,
            what=f"with your {layers} layers of weights torch's encoder does not compute what BERT does: its output",
            mistakes=mistakes
            | ({f"{doubled[0]}": lambda: True} if doubled else {})
            | ({f"{strange[0]} holds numbers that are nowhere among BERT's weights": lambda: True} if strange else {}),
            tolerance=1e-4,
        )

    with case("every weight of the Encoder has its name", points=1, hint="16 for each layer: 8 weights, 8 biases"):
        _, found = asked(2, 8)
        demand_names({name: value for name, value in found.items() if name.startswith(("layers", "encoder"))}, 2, 8)
    with case("nothing but the encoder's weights", points=1, hint="no embeddings, no pooler"):
        state, found = asked(2, 8)
        demand_names(found, 2, 8)
        (after,) = answer.inputs_after(state)
        kept = list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
        case.true(kept, "your code changes the dict of BERT's weights that it is given (pop?)")
    with case("with one layer, the output is BERT's", points=2, hint="follow x through BERT's layer, map by map"):
        demand(1, 8)
    with case("with three layers, and with eleven", points=2, hint="the number of a layer may have two digits"):
        demand(3, 8)
        demand(11, 4)


# -- padding and pooling ----------------------------------------------------------------------------------


@check("pad-batch", points=6)
def pad_batch(answer, case):
    """Entry by entry."""

    def words(*lengths):
        return [case.randint(1, 90, (n,)).tolist() for n in lengths]

    def demand(sequences, max_length, what="the batch"):
        cut = [s[:max_length] for s in sequences]
        size = max(map(len, cut))
        right = torch.tensor([s + [0] * (size - len(s)) for s in cut], dtype=torch.int64)
        result = answer(sequences, max_length)

        def filled(value):
            return torch.tensor([s + [value] * (size - len(s)) for s in cut])

        longest, shortest = max(map(len, sequences)), min(map(len, sequences))
        wide = torch.tensor([s + [0] * (max_length - len(s)) for s in cut])
        mistakes = {
            "the padding stands at the start; it belongs at the end": torch.tensor(
                [[0] * (size - len(s)) + s for s in cut]
            ),
            "every batch is padded to max_length; its longest sequence is enough, and quicker": wide,
            "sequences are not cut to max_length": torch.tensor([s + [0] * (longest - len(s)) for s in sequences]),
            "all are cut to the shortest": torch.tensor([s[:shortest] for s in sequences], dtype=torch.int64),
            "the end of a long sequence is kept; its beginning is asked": torch.tensor(
                [t + [0] * (size - len(t)) for t in (s[-max_length:] for s in sequences)]
            ),
            "the padding is -1; it is 0": filled(-1),
            "the padding is 1; it is 0": filled(1),
            "the padding is -100; it is 0": filled(-100),
            "short sequences are repeated; fill them up with 0": torch.tensor(
                [(s * size)[:size] if s else [0] * size for s in cut]
            ),
            "rows and columns are exchanged: one row for each sequence": right.T,
            "sequences are sorted by length; keep their order": torch.tensor(
                sorted(right.tolist(), key=lambda row: -sum(map(bool, row)))
            ),
            "one column too many": F.pad(right, (0, 1)),
            "one column too few: is a sequence cut to max_length - 1?": right[:, :-1],
        }
        case.equal(result, right, what=what, mistakes=mistakes)

    with case("integers (B, T), as long as the longest", points=1, hint="T = the largest length in the batch"):
        result = answer(words(3, 5, 2), 10)
        mistakes = {
            "every batch is padded to max_length; its longest sequence is enough, and quicker": (3, 10),
            "rows and columns are exchanged": (5, 3),
            "all are cut to the shortest": (3, 2),
            "the sequences stand one after the other, in one row": (10,),
        }
        case.shape(result, (3, 5), what="the batch", mistakes=mistakes)
        case.dtype(result, torch.int64, what="the batch")
    with case("tokens first, then zeros", points=2, hint="row i begins with sequence i; all the rest is 0"):
        demand(words(3, 6, 1, 4), 20)
        demand(words(2), 20, "a batch of one sequence")
    with case("long sequences are cut to max_length", points=1, hint="sequence[:max_length]"):
        demand(words(3, 9, 5), 5)
        demand(words(8, 9), 5)
    with case("an empty sequence is a row of zeros", points=1, hint="nothing to copy: the row stays as it was made"):
        demand([[], *words(3)], 5)
    with case("the sequences stay as they were", points=1, hint="a slice is a copy; append changes the caller's list"):
        given = words(2, 7)
        after = answer.inputs_after(given, 4)[0]
        case.true(after == given, "your code changes the lists that it is given")
        demand(given, 4)


def pool_mistakes(x, real):
    """Return what common mistakes make of x (B, T, D)."""
    r = real[..., None]
    total, count = (x * r).sum(1), real.sum(1, keepdim=True)
    return {
        "padding is counted: this is the mean over all T positions": x.mean(1),
        "the sum leaves out the padding, but it is divided by T: divide by the number of real tokens": (
            total / x.shape[1]
        ),
        "the sum runs over the padding too: multiply by the mask first": lambda: x.sum(1) / count.clamp(min=1),
        "this is the sum over the real tokens; divide by their number": total,
        "this is the largest value of each feature, not the mean": x.masked_fill(~r, -torch.inf).amax(1),
        "this is the largest value of each feature, padding included": x.amax(1),
        "this is the first token, not the mean": x[:, 0],
        "this is the last position, not the mean": x[:, -1],
        "the mask has the wrong sense: this is the mean of the padding": (
            lambda: (x * ~r).sum(1) / (~real).sum(1, keepdim=True).clamp(min=1)
        ),
        "the sum runs over the features; it runs over the tokens": lambda: (x * r).sum(-1) / count.clamp(min=1),
        "each sum is divided by the number of real tokens in the whole batch": total / real.sum(),
        "each sum is divided by the length of the first sequence": total / count[:1],
        "each sum is divided by the length of the longest sequence": total / count.max(),
        "one is added to every number of tokens; only a sequence without any needs help": total / (count + 1),
        "the numbers of tokens are taken from the wrong axis": lambda: (
            total / real.sum(0)[: len(total), None].clamp(min=1)
        ),
        "1 is added to the mean, not to the number: mind the brackets": lambda: total / count + 1,
        "every sequence is counted as having two tokens at least; one is enough": total / count.clamp(min=2),
        "the real tokens are taken to be the first ones; the mask says where they are": lambda: by_hand(
            x, padded(x.shape[1], *count.flatten().tolist())
        ),
        "a sequence without real tokens gets the mean of its padding; it gets zeros": lambda: by_hand(
            x, real | (count == 0)
        ),
        "the mean runs over the whole batch": (total.sum(0) / real.sum()).expand_as(total),
        "this is a softmax-weighted mean": lambda: (x.masked_fill(~r, -torch.inf).softmax(1) * x).sum(1),
        "the sum is divided by the square root of the number of tokens": total / count.clamp(min=1) ** 0.5,
    }


def by_hand(x, real):
    """Return the mean over the real tokens, sequence by sequence."""
    rows = [
        one[keep].double().mean(0) if keep.any() else torch.zeros(x.shape[-1])
        for one, keep in zip(x, real, strict=True)
    ]
    return torch.stack([row.to(x.dtype) for row in rows])


@check("masked-mean", points=8)
def masked_mean(answer, case):
    """Against the mean of each sequence's own real tokens."""

    def demand(x, real, what="the mean"):
        case.close(answer(x, real), by_hand(x, real), what=what, mistakes=pool_mistakes(x, real))

    with case("one vector for each sequence", points=1, hint="sum over the tokens, axis 1: (B, T, D) becomes (B, D)"):
        x, real = case.randn(3, 5, 4), padded(5, 5, 3, 1)
        mistakes = {
            "the token axis is still there": (3, 5, 4),
            "the token axis is still there, with size 1": (3, 1, 4),
            "the sum runs over the features; it runs over the tokens": (3, 5),
            "the sum runs over the batch; it runs over the tokens": (5, 4),
        }
        case.shape(answer(x, real), (3, 4), what="the mean", mistakes=mistakes)
    with case("without padding: the plain mean", points=1, hint="divide by the number of tokens"):
        demand(case.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
    with case("padding does not count", points=3, hint="neither in the sum nor in the number that divides it"):
        T = int(case.randint(6, 10))
        x, real = case.randn(4, T, 6), padded(T, 2, T - 1, 4, 1)
        demand(x, real)
        other = x + 1e3 * ~real[..., None]
        case.close(
            answer(other, real), answer(x, real), what="the mean, when only the padding changes,", tolerance=1e-4
        )
    with case("padding may stand anywhere", points=1, hint="use the mask itself, not only its sum"):
        real = torch.tensor([[False, True, True, False], [True, False, False, True]])
        demand(case.randn(2, 4, 3), real, "the mean, with padding at the start,")
    with case("a sequence of padding alone gives zeros", points=1, hint="0/0 is NaN: let the divisor be at least 1"):
        x, real = case.randn(3, 4, 5), padded(4, 3, 0, 4)
        result = answer(x, real)
        if isinstance(result, torch.Tensor):
            case.true(
                not result.isnan().any(),
                "the mean of a sequence without real tokens is NaN, 0/0: it would make every weight of the model NaN",
            )
        demand(x, real)
    with case("gradients are right, and 0 at the padding", points=1, hint="clamp the divisor; do not repair a NaN"):
        x, real, upstream = case.randn(3, 4, 5), padded(4, 3, 0, 4), case.randn(3, 5)
        case.unchanged(answer, x, real)
        case.close(answer(x, real), by_hand(x, real), mistakes=NO_GRADIENT_YET)
        (found,) = answer.gradients(x, real, upstream=upstream)
        case.finite(found, what="the mean is right, but its gradient")
        share = real / real.sum(1, keepdim=True).clamp(min=1)
        case.close(found, share[..., None] * upstream[:, None], what="the gradient for x")


# -- classifier -------------------------------------------------------------------------------------------


@check("text-classifier", points=10, from_scratch=LIBRARY_LAYERS)
def text_classifier(answer, case):
    """Against the same model made of torch's parts, with the same weights."""
    V, C, D, heads, d_ff, layers = 11, 3, 12, 3, 16, 2

    def build(*, norm_first=True, positions=True, dropout=0.0):
        theirs, state = torch_encoder(case, layers, D, heads, d_ff, norm_first=norm_first)
        state = {f"encoder.{name}": value for name, value in state.items()}
        state |= {"embedding.weight": case.randn(V, D), "head.weight": case.randn(C, D), "head.bias": case.randn(C)}
        built = answer(V, C, D, heads, d_ff, layers, dropout, norm_first, positions)
        if not norm_first:
            has = "encoder.norm.weight" in built.parameters()
            case.true(not has, "norm_first=False does not reach the Encoder: it has the final norm of pre-norm")
        demand_parameters(case, built, {name: value.shape for name, value in state.items()})
        built.load_state_dict(state)
        return built.eval(), (theirs, state, positions)

    def run(
        model,
        tokens,
        *,
        embed=lambda e, p: e + p,
        keep="real",
        pool="mean",
        squash=lambda z: z,
        last=lambda z: z,
        encode=run_torch,
    ):
        theirs, state, positions = model
        real = tokens != 0
        e = state["embedding.weight"][tokens]
        p = waves(tokens.shape[1], D).float() * positions
        x = encode(theirs, embed(e, p), real if keep == "real" else None)
        pools = {
            "mean": lambda: by_hand(x, real),
            "all": lambda: x.mean(1),
            "divided": lambda: (x * real[..., None]).sum(1) / tokens.shape[1],
            "sum": lambda: (x * real[..., None]).sum(1),
            "first": lambda: x[:, 0],
            "last": lambda: x[:, -1],
            "max": lambda: x.masked_fill(~real[..., None], -torch.inf).amax(1),
        }
        return last(F.linear(squash(pools[pool]()), state["head.weight"], state["head.bias"]))

    def embed_all(model, tokens):
        return model[1]["embedding.weight"][tokens] + waves(tokens.shape[1], D).float() * model[2]

    def mistakes_for(model, tokens):
        positions = model[2]
        always_p = waves(tokens.shape[1], D).float()

        def made(**how):
            return lambda: run(model, tokens, **how)

        found = {
            "the mask does not reach the encoder: padding is attended to": made(keep="none"),
            "neither the encoder nor the mean leaves out the padding": made(keep="none", pool="all"),
            "the pooling counts padding: use masked_mean": made(pool="all"),
            "the pooling divides by T; use masked_mean": made(pool="divided"),
            "the tokens are added up, not averaged": made(pool="sum"),
            "this pools by the first token; the mean is asked": made(pool="first"),
            "this pools by the last position; the mean is asked": made(pool="last"),
            "this pools by the largest values; the mean is asked": made(pool="max"),
            "the encoder is not used": made(encode=lambda theirs, x, keep: x),
            "the mask has the wrong sense: only padding is real": lambda: run(
                model, (tokens == 0).long(), embed=lambda e, p: embed_all(model, tokens), encode=by_parts
            ),
            "the encoder's mask has the wrong sense: True means that a query may attend to a key": made(
                encode=lambda theirs, x, keep: by_parts(theirs, x, ~keep)
            ),
            "the encoder's mask hides queries, not keys: its shape is (B, 1, 1, T)": made(
                encode=lambda theirs, x, keep: by_parts(theirs, x, keep[:, None, :, None])
            ),
            "the activation is GELU; the Encoder's is ReLU": made(
                encode=lambda theirs, x, keep: by_parts(theirs, x, keep, activation=F.gelu)
            ),
            "the encoder has one head, whatever num_heads is": made(
                encode=lambda theirs, x, keep: by_parts(theirs, x, keep, heads=1)
            ),
            "there is a tanh between the mean and the head": made(squash=torch.tanh),
            "there is a ReLU between the mean and the head": made(squash=F.relu),
            "the embeddings are divided by √d_model; here they are not": made(embed=lambda e, p: e / D**0.5 + p),
            "the result is after a softmax: return raw logits (cross_entropy has its own softmax)": made(
                last=lambda z: z.softmax(-1)
            ),
            "the result is after a log_softmax: return raw logits": made(last=lambda z: z.log_softmax(-1)),
            "the result is after a sigmoid: return raw logits": made(last=lambda z: z.sigmoid()),
            "the result is after a ReLU: return raw logits": made(last=lambda z: z.relu()),
            "the result is after tanh: return raw logits": made(last=lambda z: z.tanh()),
            "the embeddings are multiplied by √d_model; here they are not": made(embed=lambda e, p: e * D**0.5 + p),
        }
        if positions:
            found |= {
                "the positions are missing: add positional_encoding(T, d_model) to the embeddings": made(
                    embed=lambda e, p: e
                ),
                "the positions are multiplied with the embeddings; they are added": made(embed=lambda e, p: e * p),
                "every token gets the position 0": made(embed=lambda e, p: e + p[:1]),
                "positions are counted along the batch, not along the tokens": (
                    made(embed=lambda e, p: e + waves(len(e), D).float()[:, None])
                ),
                "the positions are added after the encoder; they are added to the embeddings": made(
                    embed=lambda e, p: e,
                    encode=lambda theirs, x, keep: run_torch(theirs, x, keep) + waves(x.shape[1], D).float(),
                ),
                "the embeddings are missing: these are positions alone": made(embed=lambda e, p: 0 * e + p),
                "positions are counted from 1": made(embed=lambda e, p: e + waves(e.shape[1], D, start=1).float()),
            }
        else:
            found["positions are added although positions=False"] = made(embed=lambda e, p: e + always_p)
        return found

    def demand(built, model, tokens, what="the logits", tolerance=None):
        batch, length = tokens.shape
        logits = built(tokens)
        if isinstance(logits, torch.Tensor):
            case.shape(
                logits,
                (batch, C),
                what=what,
                mistakes={
                    "the logits of every token are there; pool before the head, or after it": (batch, length, C),
                    "these are features: the head is missing": (batch, D),
                    "these are classes (an argmax?), not a logit for each": (batch,),
                },
            )
        mistakes = dropout_mistake(built, tokens) | mistakes_for(model, tokens)
        case.close(logits, run(model, tokens), what=what, mistakes=mistakes, tolerance=tolerance)

    def some(T, *lengths):
        tokens = case.randint(1, V, (len(lengths), T))
        return tokens.masked_fill(~padded(T, *lengths), 0)

    with case("embedding, encoder and head, and no other parameters", points=1, hint="positions are not learned"):
        build()
        build(norm_first=False)
    with case("raw logits, one for each class", points=1, hint="(B, num_classes); no softmax at the end"):
        built, model = build()
        demand(built, model, some(5, 5, 5))
    with case(
        "agrees with the same model made of torch's parts", points=3, hint="embed, add positions, encode, pool, head"
    ):
        for norm_first in (True, False):
            built, model = build(norm_first=norm_first)
            demand(built, model, some(7, 7, 7, 7), f"the logits, norm_first={norm_first},")
        demand(built, model, some(600, 600), "the logits of a text of 600 tokens", tolerance=1e-3)
    with case("padding changes nothing", points=2, hint="token 0 is padding: the mask serves encoder and pooling"):
        built, model = build()
        tokens = some(6, 6, 3, 1)
        demand(built, model, tokens, "the logits of a padded batch")
        more = F.pad(tokens, (0, 3))
        case.close(built(more), built(tokens), what="the logits, when more padding is appended,", tolerance=1e-4)
    with case("positions=False leaves the order out", points=1, hint="then nothing is added to the embeddings"):
        built, model = build(positions=False)
        demand(built, model, some(6, 6, 4), "the logits without positions")
    with case("an empty text gives the head's bias", points=1, hint="masked_mean gives zeros; no NaN may come out"):
        built, model = build()
        logits = built(torch.cat([some(4, 4), torch.zeros(1, 4, dtype=torch.int64)]))
        case.finite(logits, what="the logits of an empty text beside another")
        case.close(logits[1], model[1]["head.bias"], what="the logits of an empty text")
    with case("dropout in training only, and gradients everywhere", points=1, hint="one nn.Dropout after the sum"):
        built, model = build(dropout=0.5)
        tokens = some(6, 6, 4)
        demand(built, model, tokens, "the logits in evaluation mode, with dropout = 0.5,")
        case.true(
            not torch.equal(built.train()(tokens), built(tokens)),
            "in training mode two calls give the same: dropout = 0.5 does not arrive anywhere",
        )
        # The sub-layers add nothing, so that the encoder is its final norm alone. Where embedding and encoding
        # cancel each other, their sum has nothing to drop.
        state, still = (
            model[1],
            ("attention.out_proj.weight", "attention.out_proj.bias", "linear2.weight", "linear2.bias"),
        )
        state = {name: 0 * value if name.endswith(still) else value for name, value in state.items()}
        built.load_state_dict(state)
        one = torch.ones(20, 1, dtype=torch.int64)
        case.true(
            not alike(built.train()(one), built.eval()(one)),
            "in training mode nothing of the sum of embedding and encoding is dropped: dropout belongs there, too",
        )
        built.load_state_dict(state | {"embedding.weight": -waves(1, D).float().expand(V, D).clone()})
        case.true(
            alike(built.train()(one), built.eval()(one)),
            "dropout is at work at another place than on the sum of embedding and encoding: on one of the two alone, "
            "or after the encoder",
        )
        built, _ = build()
        case.true(
            alike(built.train()(tokens), built.eval()(tokens)),
            "with dropout = 0 the logits in training mode are others: dropout is not passed on to the Encoder",
        )
        built.train()
        gradients = built.parameter_gradients(tokens, upstream=case.randn(2, C))
        silent = [name for name, gradient in gradients.items() if gradient is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}")


# -- evaluation -------------------------------------------------------------------------------------------


def run_evaluate(target, table, batches, training, as_generator):
    """Let the answer evaluate a model that looks its logits up, and return what it saw."""
    seen = []

    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(table)

        def forward(self, tokens):
            seen.append((self.training, torch.is_grad_enabled()))
            logits = self.table[tokens[:, 0]]
            return -logits if self.training else logits  # in training mode it is wrong on purpose

    model = Lookup().train(training)
    given = ((tokens, labels) for tokens, labels in batches) if as_generator else batches
    value = target(model, given)
    recorded = isinstance(value, torch.Tensor) and value.requires_grad
    return value, seen, model.training, torch.is_grad_enabled(), recorded


@check("evaluate", points=6)
def evaluate(answer, case):
    """With a model that looks its logits up, so that every accuracy can be counted."""

    def setting(*sizes, classes=3):
        """Return logits for n examples, and batches; the first batch is right, later ones more and more wrong."""
        n = sum(sizes)
        labels = case.randint(0, classes, (n,))
        right = torch.rand(n, generator=torch.Generator().manual_seed(int(case.randint(0, 10**6)))) < 0.5
        right[: sizes[0]] = True
        right[sizes[0] :][-1:] = False
        shown = torch.where(right, labels, (labels + 1) % classes)
        table = F.one_hot(shown, classes).float() + 0.1 * case.randn(n, classes).sigmoid()
        tokens = torch.arange(n)[:, None].repeat(1, 3)
        batches = [*zip(tokens.split(sizes), labels.split(sizes), strict=True)]
        return table, batches, right

    def ask(table, batches, training=False, generator=False):
        return answer.probe(run_evaluate, table, batches, training, generator)

    def number(value):
        case.true(value is not None, "the result is None (is a return statement missing?)")
        return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value

    def demand(table, batches, right, **how):
        value = number(ask(table, batches, **how)[0])
        case.true(isinstance(value, (int, float)), f"the result is a {type(value).__name__}, expected a number")
        exact = right.double().mean().item()
        parts = [part.double().mean().item() for part in right.split([len(labels) for _, labels in batches])]
        turned = (-table).argmax(-1)
        labels = torch.cat([labels for _, labels in batches])
        two = (table[:, 1] > table[:, 0]).long()
        wrong = {
            "no answer is counted: batches may be a generator, which can be run through only once": (
                0.0 if how.get("generator") else exact
            ),
            "the accuracies of the batches are averaged; a small batch then counts as much as a large one": (
                sum(parts) / len(parts)
            ),
            "only the last batch counts": parts[-1],
            "only the first batch counts": parts[0],
            "this is the number of right answers; divide by the number of examples": right.sum().item(),
            "the number of right answers is divided by the number of batches": right.sum().item() / len(batches),
            "the accuracies of the batches are added up": sum(parts),
            "this is the share of wrong answers": 1 - exact,
            "this is in percent; a share between 0 and 1 is asked": 100 * exact,
            "the model predicts in training mode: call model.eval() first": (turned == labels).double().mean().item(),
            "the number of right answers is divided by the size of the last batch": right.sum().item()
            / len(batches[-1][1]),
            "the number of right answers is divided by batches × the size of the first one": (
                right.sum().item() / len(batches) / len(batches[0][1])
            ),
        }
        wrong |= {
            "the number of right answers is divided by the number of tokens; divide by that of the texts": (
                right.sum().item() / len(right) / 3
            ),
            "the number of right answers is divided by the length of the texts": (
                right.sum().item() / len(batches) / 3
            ),
            "only the first two classes are compared; there may be more: argmax": (two == labels)
            .double()
            .mean()
            .item(),
            "the result is rounded": round(exact, 2),
        }
        for sentence, other in wrong.items():
            if abs(value - exact) > 1e-6 and abs(value - other) < 1e-6:
                case.true(False, sentence)
        case.true(
            abs(value - exact) < 1e-6, f"the result is {value:.4f}, but {int(right.sum())} of {len(right)} are right"
        )

    with case("the share of right answers", points=1, hint="argmax over the classes, the last axis"):
        demand(*setting(8))
    with case("every example counts the same", points=1, hint="count right answers and examples; divide at the end"):
        demand(*setting(7, 7, 2))
        demand(*setting(3, 5, 9, 1), generator=True)
    with case("the model predicts in evaluation mode", points=1, hint="model.eval() before the loop"):
        table, batches, _ = setting(5, 3)
        _, seen, *_ = ask(table, batches, training=True)
        case.true(seen, "the model is never called")
        case.true(
            not any(training for training, _ in seen),
            "the model predicts in training mode, with dropout at work: call model.eval() first",
        )
        demand(*setting(5, 3), training=True)
    with case("no gradients are recorded", points=1, hint="with torch.no_grad():"):
        table, batches, _ = setting(5, 3)
        _, seen, _, enabled, recorded = ask(table, batches)
        case.true(
            seen and not any(grad for _, grad in seen),
            "the model is called with gradients recorded, which costs time and memory: use torch.no_grad()",
        )
        case.true(
            enabled, "gradients stay switched off after the call: use `with torch.no_grad():`, which ends by itself"
        )
        case.true(not recorded, "the result carries a graph: return a plain number")
    with case("the model's mode is what it was before", points=1, hint="remember model.training; model.train(was)"):
        for before in (True, False):
            table, batches, _ = setting(5, 3)
            after = ask(table, batches, training=before)[2]
            modes = {True: "training", False: "evaluation"}
            case.true(
                after == before,
                f"the model was in {modes[before]} mode before the call and is in {modes[after]} mode after it; "
                "put it back, or the training goes on without dropout",
            )
    with case("a plain number", points=1, hint=".item() makes a number of a tensor"):
        value = ask(*setting(5, 3)[:2])[0]
        number(value)
        case.true(
            isinstance(value, float)
            or (isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()),
            f"the result is a {type(value).__name__}, expected a float",
        )
        case.true(isinstance(value, float), "the result is a tensor; return a float, which can be printed and compared")
