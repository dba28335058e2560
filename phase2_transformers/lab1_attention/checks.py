"""The checks of Lab 1, Attention.

The oracles are torch's own attention, masks written down by hand, and identities. Shapes: B batch, H heads,
T queries, S keys, d features of a head, D = d_model.

Most of the code describes mistakes: each function `..._mistakes` returns what common mistakes would have
computed, under the sentence that a student reads when the answer equals it.
"""

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from common.checks import Answer, alike, always, check, made_by

# Library functions that would be the whole answer (see `check`).
LIBRARY_ATTENTION = ("scaled_dot_product", "multi_head_attention", "flex_attention", "transformer")

PER_KEY = "softmax over the last axis of the scores: the keys. Each query then has weights that sum to 1."


NO_GRADIENT_YET = always("the result itself is not right yet, so its gradient cannot be")


def misplaced(result, right):
    """Return, as a mistake, that a tensor holds the right numbers in the wrong places."""

    def holds():
        return result.shape == right.shape and torch.equal(result.flatten().sort()[0], right.flatten().sort()[0])

    return {"all numbers are there, but not in their places: tokens and features are mixed": holds}


def demand_shape(case, result, right, mistakes, what="the result"):
    """Demand the shape of `right`; what is wrong with another shape is told by the values."""
    if not isinstance(result, torch.Tensor) or result.shape != right.shape:
        case.close(result, right, what=what, mistakes=mistakes)


# -- attention --------------------------------------------------------------------------------------------


def torch_weights(q, k, **options):
    """Return torch's attention weights: what attention makes of the values 'one-hot key number'."""
    return F.scaled_dot_product_attention(q, k, torch.eye(k.shape[-2], dtype=q.dtype), **options)


def wrong_scales(q, k, d_v):
    """Return factors that are mistaken for 1/√d, under the sentence that names the mistake."""
    d = q.shape[-1]
    found = {
        "the scores are not divided by √d": 1.0,
        "the scores are divided by d, not by √d (or twice by √d)": 1 / d,
        "the scores are multiplied by √d instead of divided": d**0.5,
        f"the scores are divided by √{k.shape[-2]}, the number of keys; d is the size of one key": k.shape[-2] ** -0.5,
        f"the scores are divided by √{q.shape[-2]}, the number of queries; d is the size of one query": (
            q.shape[-2] ** -0.5
        ),
        f"the scores are divided by √{d_v}, the size of a value; d is the size of a key": d_v**-0.5,
    }
    for axis, size in enumerate(q.shape[:-2]):
        found[f"the scores are divided by √{size}, the size of axis {axis} of q; d is the size of its last axis"] = (
            size**-0.5
        )
    return found


def weight_mistakes(q, k, mask=None, d_v=0):
    """Return the weights that common mistakes lead to, under the sentence that names each."""
    d, raw = q.shape[-1], q @ k.transpose(-2, -1)
    scores, plain = raw / d**0.5, torch_weights(q, k)
    hidden = torch.zeros((), dtype=torch.bool) if mask is None else ~mask
    found = {
        sentence: (lambda scale=scale: torch_weights(q, k, attn_mask=mask, scale=scale))
        for sentence, scale in wrong_scales(q, k, d_v or d).items()
    }
    found |= {
        "the division by √d comes after the softmax; it belongs before": raw.softmax(-1) / d**0.5,
        "the result is before the softmax: these are the scores": scores,
        "the result is the logarithm of the weights": scores.log_softmax(-1),
        "e^score is not divided by its sum over the keys": scores.exp(),
        "the softmax runs over all scores of a sequence at once, not over the keys of each query": (
            lambda: scores.flatten(-2).softmax(-1).view_as(scores)
        ),
        "the softmax runs over all scores at once, not over the keys of each query": (
            lambda: scores.flatten().softmax(0).view_as(scores)
        ),
    }
    for axis in range(raw.ndim - 1):
        where = {-2: "over the queries", -3: "over the heads"}.get(axis - raw.ndim, "over the batch")
        sentence = f"the softmax runs over the wrong axis, {axis}, {where}; the keys are the last axis"
        found[sentence] = lambda axis=axis: scores.masked_fill(hidden, -torch.inf).softmax(axis).nan_to_num(0.0)
    if mask is None:
        return found
    return found | {
        "the mask is not used: this is the result without it": plain,
        "the mask has the wrong sense: True means that a query may attend to a key": (
            lambda: torch_weights(q, k, attn_mask=~mask)
        ),
        "the mask is applied after the softmax, so the weights that remain do not sum to 1": plain * mask,
        "masked scores are set to 0 instead of -inf: e⁰ = 1 still gets weight": (scores * mask).softmax(-1),
        "masked scores are set to 0 instead of -inf, and the weights hidden afterwards do not sum to 1": (
            (scores * mask).softmax(-1) * mask
        ),
        "the mask is added to the scores, as 0 and 1; fill in -inf where it is False": (
            lambda: (scores + mask.float()).softmax(-1)
        ),
        "the mask is transposed: its rows are the queries, its columns the keys": lambda: torch_weights(
            q, k, attn_mask=mask.transpose(-2, -1)
        ),
    }


def output_mistakes(q, k, v, mask=None):
    """Return the outputs that common mistakes lead to."""
    found = weight_mistakes(q, k, mask, v.shape[-1])
    found = {name: (lambda w=w: (w() if callable(w) else w) @ v) for name, w in found.items()}
    return found | {
        "the weights are applied to the keys, not to the values": lambda: torch_weights(q, k, attn_mask=mask) @ k,
        "the queries are compared with the values, not with the keys": lambda: torch_weights(q, v, attn_mask=mask) @ v,
    }


def found_scale(weights, q, k):
    """Return, as a mistake, the factor of the scores if the weights are a softmax of them with a wrong factor."""
    raw, d = (q @ k.transpose(-2, -1)).double(), q.shape[-1]
    if weights.shape != raw.shape:
        return {}
    logs = weights.double().log()
    logs, raw = logs - logs.mean(-1, keepdim=True), raw - raw.mean(-1, keepdim=True)
    factor = ((logs * raw).sum() / (raw * raw).sum()).item()
    if not math.isfinite(factor) or not torch.allclose(logs, factor * raw, rtol=0, atol=1e-3):
        return {}
    return always(f"the scores are multiplied by {factor:.4g} before the softmax; 1/√d is {d**-0.5:.4g} here")


def found_fill(weights, q, k, mask):
    """Return, as a mistake, what masked scores are set to, if it is one number that is not low enough."""
    scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).double()
    if weights.shape != scores.shape:
        return {}
    logs, mask = weights.double().log(), mask.expand_as(scores)
    offset = (scores - logs).masked_fill(~mask, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    filled = (logs + offset)[~mask]
    if not filled.isfinite().all() or filled.std() > 1e-3:
        return {}
    return always(f"masked scores are set to {filled.mean().item() + 0.0:.4g}, which is not low enough: use -inf")


@check("scaled-dot-product-attention", points=12, from_scratch=LIBRARY_ATTENTION)
def scaled_dot_product_attention(answer, case):
    """Against `torch.nn.functional.scaled_dot_product_attention`."""

    def pair(q, k, v):
        output, weights = case.parts(answer(q, k, v), "output", "weights")
        exchanged = alike(weights, F.scaled_dot_product_attention(q, k, v))
        case.true(not exchanged, "output and weights are exchanged: the output comes first")
        return output, weights

    with case(
        "one output for each query, one weight for each pair",
        points=1,
        hint="(B, H, T, d_v) and (B, H, T, S)",
    ):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 6)
        output, weights = pair(q, k, v)
        lost = "the first axis is lost (is only one sequence of the batch used?)"
        mistakes = {lost: (3, 4, 5), "rows and columns are exchanged: one row for each query": (2, 3, 5, 4)}
        case.shape(weights, (2, 3, 4, 5), what="weights", mistakes=mistakes)
        case.shape(output, (2, 3, 4, 6), what="output", mistakes={lost: (3, 4, 6)})
    with case("the weights of each query sum to 1", points=1, hint=PER_KEY):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        _, weights = pair(q, k, v)
        mistakes = made_by(weights, weight_mistakes(q, k))
        case.close(weights.sum(-1), torch.ones(2, 3, 5), what="the sum of each query's weights", mistakes=mistakes)
    with case("the weights are softmax(q kᵀ / √d)", points=3, hint="scores q kᵀ, one scalar factor, then softmax"):
        q, k, v = case.randn(2, 3, 7, 16), case.randn(2, 3, 5, 16), case.randn(2, 3, 5, 6)
        _, weights = pair(q, k, v)
        mistakes = weight_mistakes(q, k, d_v=6) | found_scale(weights, q, k)
        case.close(weights, torch_weights(q, k), what="weights", mistakes=mistakes)
    with case("the output is the weighted mean of the values", points=3, hint="one matrix product: weights and v"):
        q, k, v = case.randn(2, 3, 4, 16), case.randn(2, 3, 5, 16), case.randn(2, 3, 5, 6)
        output, weights = pair(q, k, v)
        follows = {"the output fits your weights, but these are not right": lambda: alike(output, weights @ v)}
        expected = F.scaled_dot_product_attention(q, k, v)
        case.close(output, expected, what="output", mistakes=output_mistakes(q, k, v) | follows)
    with case("any number of leading axes", points=1, hint="count axes from the end: transpose(-2, -1), dim=-1"):
        for lead in ((), (4,), (2, 2, 3)):
            q, k, v = case.randn(*lead, 4, 6), case.randn(*lead, 5, 6), case.randn(*lead, 5, 6)
            output, weights = pair(q, k, v)
            follows = {
                f"for q of shape {tuple(q.shape)} the weights are not right": lambda: alike(output, weights @ v)  # noqa: B023
            }
            what, mistakes = f"output for q of shape {tuple(q.shape)}", output_mistakes(q, k, v) | follows
            case.close(output, F.scaled_dot_product_attention(q, k, v), what=what, mistakes=mistakes)
    with case("large scores do not overflow", points=1, hint="torch's softmax subtracts the largest score first"):
        q, k, v = 300 * case.randn(2, 4, 8), 300 * case.randn(2, 5, 8), case.randn(2, 5, 8)
        output, weights = pair(q, k, v)
        case.finite(weights, what="weights")
        case.finite(output, what="output")
    with case("gradients flow to q, k and v", points=1, hint="use tensor operations only, on the inputs themselves"):
        inputs = case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8)
        upstream = case.randn(2, 4, 8)
        case.close(pair(*inputs)[0], F.scaled_dot_product_attention(*inputs), mistakes=NO_GRADIENT_YET)
        found = answer.gradients(*inputs, output=0, upstream=upstream)
        expected = Answer(F.scaled_dot_product_attention).gradients(*inputs, upstream=upstream)
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            case.close(ours, theirs, what=f"the gradient for {name}")
    with case("the inputs stay as they were", points=1, hint="q / c makes a new tensor; q /= c changes the caller's"):
        case.unchanged(answer, case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8))


# -- masks ------------------------------------------------------------------------------------------------


def additive(mask, right):
    """Return, as a mistake, that `mask` holds 0 and large negative numbers."""

    def holds():
        return bool((mask[right] == 0).all() and (mask[~right] < -1e3).all())

    return {"this is a mask to be added to the scores (0 and -inf); return booleans, True where it has 0": holds}


@check("causal-mask", points=6)
def causal_mask(answer, case):
    """Against the definition, entry by entry."""

    def by_definition(size):
        return torch.tensor([[key <= query for key in range(size)] for query in range(size)])

    def demand_size(mask, size):
        mistakes = {
            "the mask has one axis: compare a row of positions with a column of positions": (size,),
            "the mask has extra axes of size 1; two axes are enough": (1, size, size),
            "the mask has extra axes of size 1; two axes are enough, for they broadcast": (1, 1, size, size),
            "one row and column too many: positions are 0 … T - 1": (size + 1, size + 1),
            "one row and column too few: positions are 0 … T - 1": (size - 1, size - 1),
        }
        case.shape(mask, (size, size), what=f"the mask for T = {size}", mistakes=mistakes)

    def demand(mask, size):
        demand_size(mask, size)
        right = by_definition(size)
        mistakes = {
            "nothing is masked: every entry is True": torch.ones_like(right),
            "everything is masked: no entry is True": torch.zeros_like(right),
            "the mask has the wrong sense: it is True where a query may not attend": ~right,
            "the mask is transposed: here each position sees itself and what comes after it": right.T,
            "a position does not see itself: the diagonal must be True": right & ~torch.eye(size).bool(),
            "a position sees one step into the future: the diagonal above the main one must be False": (
                right | torch.ones(size, size).tril(1).bool()
            ),
            "a position sees only itself, and nothing before it": torch.eye(size).bool(),
        }
        mistakes = additive(mask, right) | mistakes
        row = next((t for t in range(size) if (mask[t] != right[t]).any()), 0)
        seen = mask[row].nonzero().flatten().tolist()
        wrong_row = f"row {row} is True in columns {seen}; query {row} may attend to keys 0 … {row} and to no others"
        case.equal(mask, right, what="the mask", mistakes=mistakes | always(wrong_row))

    with case("one row for each query, one column for each key", points=1, hint="a matrix of shape (T, T)"):
        small, large = answer(3), answer(7)
        if isinstance(small, torch.Tensor) and isinstance(large, torch.Tensor):
            fixed = f"the mask has shape {tuple(small.shape)} for T = 3 and for T = 7: its size must follow T"
            case.true(small.shape != large.shape, fixed)
        demand_size(small, 3)
        demand_size(large, 7)
    with case("made of booleans", points=1, hint="dtype torch.bool: True where a query may attend"):
        case.dtype(answer(4), torch.bool, what="the mask")
    with case("a position sees itself and all before it", points=3, hint="row t is True in columns 0 … t"):
        for size in (4, int(case.randint(5, 12))):
            demand(answer(size), size)
    with case("a sequence of one token", points=1, hint="T = 1 gives [[True]]"):
        demand_size(answer(1), 1)
        alone = always("a single token must see itself: its mask is [[True]]")
        case.equal(answer(1), torch.tensor([[True]]), what="the mask for T = 1", mistakes=alone)


@check("padding-mask", points=8)
def padding_mask(answer, case):
    """Against the definition, entry by entry."""

    def by_definition(lengths, size):
        return torch.tensor([[[[key < int(length) for key in range(size)]]] for length in lengths])

    def demand_size(mask, lengths, size):
        batch, longest = len(lengths), int(lengths.max())
        mistakes = {
            "the shape is (B, T): two axes of size 1, for heads and queries, are missing": (batch, size),
            "the shape is (B, 1, T): one axis of size 1 is missing": (batch, 1, size),
            "this is one row for every sequence: the lengths are not compared one by one": (1, 1, 1, size),
            "the axes are in the wrong order: this masks queries, (B, 1, T, 1), not keys": (batch, 1, size, 1),
            "the axes are in the wrong order: the batch must come first": (1, batch, 1, size),
            "the axes are in the wrong order: the batch must come first, then heads and queries": (1, 1, batch, size),
            "the axes are in the wrong order: the positions must come last": (batch, size, 1, 1),
            "there is a row for every query; one row of size 1 serves them all": (batch, 1, size, size),
            "the mask ends with the longest sequence; it must have T columns": (batch, 1, 1, longest),
        }
        case.shape(mask, (batch, 1, 1, size), what="the mask", mistakes=mistakes)

    def demand(mask, lengths, size):
        demand_size(mask, lengths, size)
        right = by_definition(lengths, size)
        mistakes = {
            "nothing is masked: every entry is True": torch.ones_like(right),
            "everything is masked: no entry is True": torch.zeros_like(right),
            "the mask has the wrong sense: True belongs to real tokens, False to padding": ~right,
            "one token too many is visible: position `length` is padding already (< or <=?)": by_definition(
                lengths + 1, size
            ),
            "the last real token is hidden: positions 0 … length - 1 are real": by_definition(lengths - 1, size),
            "the padding is taken to be at the start; it is at the end": right.flip(-1),
            "every sequence gets the mask of the first one": right[:1].expand_as(right),
            "only one position in a row is True; all positions before `length` are real": (
                lambda: bool((mask.sum(-1) <= 1).all())
            ),
        }
        case.equal(mask, right, what="the mask", mistakes=additive(mask, right) | mistakes)

    with case("shape (B, 1, 1, T)", points=2, hint="index with None, or unsqueeze: heads and queries share the mask"):
        lengths = torch.tensor([2, 4, 3])
        demand_size(answer(lengths, 6), lengths, 6)
    with case("made of booleans", points=1, hint="a comparison gives booleans: True for a real token"):
        case.dtype(answer(torch.tensor([2, 4]), 4), torch.bool, what="the mask")
    with case("True for real tokens, False for padding", points=3, hint="compare positions 0 … T-1 with the lengths"):
        size = int(case.randint(6, 12))
        lengths = torch.stack([case.randint(2, 4), case.randint(4, size), case.randint(2, size)])
        demand(answer(lengths, size), lengths, size)
    with case("T may be larger than the longest sequence", points=1, hint="T is given; do not use lengths.max()"):
        lengths = torch.tensor([1, 0, 3])
        demand(answer(lengths, 5), lengths, 5)
    with case("combines with a causal mask by &", points=1, hint="(B, 1, 1, T) & (T, T) gives (B, 1, T, T)"):
        lengths, causal = torch.tensor([2, 4]), torch.ones(4, 4).tril().bool()
        mask = answer(lengths, 4)
        case.dtype(mask, torch.bool, what="the mask")
        fits = mask.ndim in (2, 3, 4) and mask.shape[-1] == 4 and mask.shape[-2] in (1, 4)
        case.true(fits, f"a mask of shape {tuple(mask.shape)} does not broadcast against (4, 4)")
        not_yet = always("the mask itself is not right yet, nor is what & makes of it")
        case.equal(mask & causal, by_definition(lengths, 4) & causal, what="padding & causal", mistakes=not_yet)


@check("masked-attention", points=16, from_scratch=LIBRARY_ATTENTION)
def masked_attention(answer, case):
    """Against torch's attention with `attn_mask`."""

    def some_mask(*shape):  # each query may see a key, and each has one hidden
        mask = case.randn(*shape) > 0
        mask[..., 0], mask[..., -1] = True, False
        return mask

    def pair(q, k, v, *mask):
        return case.parts(answer(q, k, v, *mask), "output", "weights")

    def demand_output(q, k, v, mask):
        output, weights = pair(q, k, v, mask)
        mistakes = {nan: lambda: bool(output.isnan().any())} | output_mistakes(q, k, v, mask)
        mistakes |= found_fill(weights, q, k, mask)
        mistakes |= {"the output fits your weights, but these are not right": lambda: alike(output, weights @ v)}
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        case.close(output, expected, what=f"output for a mask of shape {tuple(mask.shape)}", mistakes=mistakes)

    nan = "some values are NaN, although each query may see a key: +inf, 0 · inf and 0/0 give NaN"
    with case("without a mask: plain attention", points=2, hint="mask=None leaves your first answer unchanged"):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        output, _ = pair(q, k, v)
        case.close(output, F.scaled_dot_product_attention(q, k, v), what="output", mistakes=output_mistakes(q, k, v))
    with case("with a mask: agrees with torch", points=3, hint="change the scores, before the softmax"):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        for mask in (some_mask(5, 5), torch.ones(5, 5).tril().bool()):
            demand_output(q, k, v, mask)
    with case("masked keys get a weight of exactly 0", points=2, hint="e^(-inf) = 0, whatever the other scores are"):
        q, k, v = 40 * case.randn(2, 3, 4, 8), 40 * case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        mask = some_mask(2, 1, 4, 5)
        _, weights = pair(q, k, v, mask)
        case.shape(weights, (2, 3, 4, 5), what="weights")
        case.true(not weights.isnan().any(), nan)
        leak = weights.masked_select(~mask)
        case.true(
            leak.max() < 1e-5,
            "some masked keys get weight: their scores are not low enough, or the mask is not used, or has the "
            "wrong sense",
        )
        case.true((leak == 0).all(), "the weights of masked keys are small, but not exactly 0")
        # Visible scores far below the hidden one: only -inf, or nearly so, hides it from the softmax.
        q, k = torch.zeros(1, 4), torch.zeros(3, 4)
        q[0, 0], k[:, 0] = 40, torch.tensor([-40, -40.0625, 40])
        mask = torch.tensor([[True, True, False]])
        what = "weights (visible scores near -800, a hidden one at 800)"
        _, weights = pair(q, k, case.randn(3, 2), mask)
        decides = (
            "a hidden key still decides: when its score, or the number put in its place, is far above the visible "
            "scores, these lose all weight. A hidden score must be -inf before the softmax"
        )
        mistakes = {decides: lambda: bool((weights.nan_to_num(0.0) < 1e-6).all())}
        case.close(weights, torch_weights(q, k, attn_mask=mask), what=what, mistakes=mistakes)
    with case("the weights that remain sum to 1", points=2, hint="mask first, softmax afterwards"):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        mask = some_mask(5, 5)
        _, weights = pair(q, k, v, mask)
        mistakes = {nan: lambda: bool(weights.isnan().any())} | weight_mistakes(q, k, mask)
        mistakes |= found_fill(weights, q, k, mask)
        case.close(weights, torch_weights(q, k, attn_mask=mask), what="weights", mistakes=mistakes)
    with case("a padding mask (B, 1, 1, S) is broadcast", points=2, hint="masked_fill and torch.where broadcast"):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 6, 8), case.randn(2, 3, 6, 8)
        mask = torch.tensor([[True] * 5 + [False], [True] * 2 + [False] * 4])[:, None, None]
        demand_output(q, k, v, mask)
    with case("a query that may see nothing gets zeros", points=3, hint="after the softmax, set masked weights to 0"):
        q, k, v = case.randn(2, 1, 3, 8), case.randn(2, 1, 4, 8), case.randn(2, 1, 4, 8)
        mask = torch.tensor([[True] * 4, [False] * 4])[:, None, None]
        output, weights = pair(q, k, v, mask)
        case.true(
            not output.isnan().any(),
            "the output of a query that may see nothing is NaN: its softmax is 0/0",
        )
        case.true(
            not weights.isnan().any(),
            "the weights of a query that may see nothing are NaN: set them to 0, and the output follows by itself",
        )
        case.close(
            output[1:],
            torch.zeros(1, 1, 3, 8),
            what="the output of a query that may see nothing",
            mistakes={
                "a query that may see nothing averages all values; it should give zeros": (
                    v[1:].mean(-2, keepdim=True).expand(1, 1, 3, 8)
                ),
                "a query that may see nothing sees everything, as if there were no mask": (
                    F.scaled_dot_product_attention(q[1:], k[1:], v[1:])
                ),
            },
        )
        case.close(weights[1:], torch.zeros(1, 1, 3, 4), what="the weights of a query that may see nothing")
        others = q[:1], k[:1], v[:1]
        expected = F.scaled_dot_product_attention(*others)
        case.close(output[:1], expected, what="the other outputs", mistakes=output_mistakes(*others, mask[:1]))
    with case(
        "gradients are right, with masked rows too",
        points=1,
        hint="a NaN that is hidden still has a gradient",
    ):
        inputs = case.randn(2, 3, 8), case.randn(2, 4, 8), case.randn(2, 4, 8)
        mask = torch.tensor([[[True, False, True, True]], [[False] * 4]])
        upstream = case.randn(2, 3, 8)
        right = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        case.close(pair(*inputs, mask)[0], right, mistakes=NO_GRADIENT_YET)
        found = answer.gradients(*inputs, mask, output=0, upstream=upstream)

        def visible_part(q, k, v):  # the second sequence sees nothing and has no gradient
            return F.scaled_dot_product_attention(q[:1], k[:1], v[:1], attn_mask=mask[:1])

        expected = Answer(visible_part).gradients(*inputs, upstream=upstream[:1])
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            case.finite(ours, what=f"the output is right, but the gradient for {name}")
            case.close(ours, theirs, what=f"the gradient for {name}")
    with case("the inputs stay as they were", points=1, hint="masked_fill makes a new tensor, masked_fill_ does not"):
        mask = some_mask(4, 5)
        case.unchanged(answer, case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8), mask)


# -- heads ------------------------------------------------------------------------------------------------


@check("split-heads", points=6)
def split_heads(answer, case):
    """Against slices of the features."""

    def by_slices(x, heads):
        return torch.stack(x.chunk(heads, dim=-1), dim=1)

    def mistakes_for(x, heads):
        b, t, features = x.shape
        d = features // heads
        right = x.unflatten(-1, (heads, d)).transpose(1, 2)
        return {
            "the axes are not transposed: this is (B, T, H, d), expected (B, H, T, d)": lambda: right.transpose(1, 2),
            "reshaping straight to (B, H, T, d) mixes tokens: first split the features, then transpose": (
                lambda: x.reshape(b, heads, t, d)
            ),
            "the features are interleaved: head 0 gets the first d features, not every H-th": (
                lambda: x.view(b, t, d, heads).permute(0, 3, 1, 2)
            ),
            "the axes are in the wrong order: heads come before the batch": lambda: right.transpose(0, 1),
            "the last two axes are in the wrong order: this is (B, H, d, T)": lambda: right.mT,
            "the axes are in the wrong order: the batch must come first": lambda: right.permute(1, 2, 0, 3),
            "the features are cut into pieces of size H; they are cut into H pieces": (
                lambda: x.unflatten(-1, (-1, heads)).transpose(1, 2)
            ),
            "the features are cut into pieces of size H, and the axes are not transposed": (
                lambda: x.unflatten(-1, (-1, heads))
            ),
            "the heads are in reverse order": lambda: right.flip(1),
            "all heads are the same: each gets the features of head 0": lambda: right[:, :1].expand_as(right),
            "every head gets all features; they are divided among the heads": (
                lambda: x[:, None].expand(-1, heads, -1, -1)
            ),
            "the tokens are divided among the heads; divide the features of each token": (
                lambda: x.reshape(b, heads, t // heads, features)
            ),
            "the result holds only the first of the batch": lambda: right[:1],
        }

    with case("shape (B, H, T, d)", points=2, hint="two steps: split the last axis into (H, d), then move H forward"):
        x = case.randn(2, 6, 12)
        demand_shape(case, answer(x, 3), by_slices(x, 3), mistakes_for(x, 3))
    with case("head h holds features h·d … (h+1)·d - 1 of each token", points=2, hint="transpose; no second reshape"):
        x = case.randn(2, 6, 12)
        result, right = answer(x, 3), by_slices(x, 3)
        case.close(result, right, mistakes=mistakes_for(x, 3) | misplaced(result, right))
    with case("one head, or as many as features", points=1, hint="compute d from the input; nothing is fixed"):
        x = case.randn(3, 4, 6)
        case.close(answer(x, 1), x[:, None], what="the result for one head", mistakes=mistakes_for(x, 1))
        case.close(answer(x, 6), x.mT[..., None], what="the result for 6 heads of size 1", mistakes=mistakes_for(x, 6))
    with case("gradients flow back, and x stays as it was", points=1, hint="view and transpose only; nothing in place"):
        x, upstream = case.randn(2, 6, 12), case.randn(2, 3, 6, 4)
        case.unchanged(answer, x, 3)
        case.close(answer(x, 3), by_slices(x, 3), mistakes=NO_GRADIENT_YET)
        (gradient,) = answer.gradients(x, 3, upstream=upstream)
        case.close(gradient, torch.cat(upstream.unbind(1), -1), what="the gradient for x")


@check("merge-heads", points=6)
def merge_heads(answer, case):
    """Against the features of each head, put side by side."""

    def side_by_side(x):
        return torch.cat(x.unbind(1), dim=-1)

    def mistakes_for(x):
        b, heads, t, d = x.shape
        right = x.transpose(1, 2).flatten(2)
        return {
            "reshaping without transposing back mixes tokens: bring the axes to (B, T, H, d) first": (
                lambda: x.reshape(b, t, heads * d)
            ),
            "the wrong axes are exchanged, which mixes tokens: bring the axes to (B, T, H, d) first": (
                lambda: x.mT.reshape(b, t, heads * d)
            ),
            "the heads are not concatenated: the result still has an axis for them": lambda: x.transpose(1, 2),
            "the heads are not concatenated, and stand before the tokens": lambda: x,
            "the heads are averaged; they are concatenated": lambda: x.mean(1),
            "the heads are added; they are concatenated": lambda: x.sum(1),
            "the heads are averaged and repeated; they are concatenated": lambda: x.mean(1).repeat(1, 1, heads),
            "only head 0 is left; all heads are concatenated": lambda: x[:, 0],
            "only the last head is left; all heads are concatenated": lambda: x[:, -1],
            "the features are interleaved: all features of head 0 come first": (
                lambda: x.permute(0, 2, 3, 1).reshape(b, t, d * heads)
            ),
            "the tokens of the heads are put one after another: concatenate along the features, not the tokens": (
                lambda: x.reshape(b, heads * t, d)
            ),
            "the tokens are put one after another, the heads of each among them: join the last two axes": (
                lambda: x.transpose(1, 2).reshape(b, heads * t, d)
            ),
            "the last two axes are in the wrong order: this is (B, D, T)": lambda: right.mT,
            "the axes are in the wrong order: the batch must come first": lambda: right.transpose(0, 1),
            "the axes of batch and tokens are joined, too: join only the last two": lambda: right.flatten(0, 1),
            "all axes but the batch are joined: join only the last two": lambda: right.flatten(1),
            "the heads are in reverse order": lambda: x.flip(1).transpose(1, 2).flatten(2),
            "the result holds only the first of the batch": lambda: right[:1],
        }

    with case("shape (B, T, D)", points=2, hint="the heads' features side by side: D = H · d"):
        x = case.randn(2, 3, 5, 4)
        demand_shape(case, answer(x), side_by_side(x), mistakes_for(x))
    with case("features h·d … (h+1)·d - 1 come from head h", points=2, hint="undo split_heads, in reverse order"):
        x = case.randn(2, 3, 6, 4)
        result, right = answer(x), side_by_side(x)
        case.close(result, right, mistakes=mistakes_for(x) | misplaced(result, right))
    with case("any memory layout", points=1, hint="after a transpose .view fails; .reshape copies where it must"):
        x = case.randn(2, 5, 3, 2).transpose(1, 2)
        case.close(answer(x), side_by_side(x), mistakes=mistakes_for(x))
    with case("gradients flow back, and x stays as it was", points=1, hint="transpose and flatten; nothing in place"):
        x, upstream = case.randn(2, 3, 6, 4), case.randn(2, 6, 12)
        case.unchanged(answer, x)
        case.close(answer(x), side_by_side(x), mistakes=NO_GRADIENT_YET)
        (gradient,) = answer.gradients(x, upstream=upstream)
        case.close(gradient, torch.stack(upstream.split(4, -1), dim=1), what="the gradient for x")


# -- modules ----------------------------------------------------------------------------------------------

NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = ("queries", "keys", "values")


def torch_attention(case, d_model, heads, prefix=""):
    """Return torch's multi-head attention with random weights, and the same weights under the answer's names."""
    module = nn.MultiheadAttention(d_model, heads, batch_first=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(case.randn(*parameter.shape) / math.sqrt(d_model))
    weights = (*module.in_proj_weight.chunk(3), module.out_proj.weight)
    biases = (*module.in_proj_bias.chunk(3), module.out_proj.bias)
    state = {f"{prefix}{name}.weight": w.detach().clone() for name, w in zip(NAMES, weights, strict=True)}
    state |= {f"{prefix}{name}.bias": b.detach().clone() for name, b in zip(NAMES, biases, strict=True)}
    return module, state


def oracle(module, x, memory=None, keep=None):
    """Return torch's output and weights; `keep` (B or 1, T, S) is True where a query may attend."""
    memory = x if memory is None else memory
    if keep is not None:  # torch wants one mask for each head, True where it may not attend
        keep = keep.expand(x.shape[0], x.shape[1], memory.shape[1])
        keep = ~keep.repeat_interleave(module.num_heads, 0)
    with torch.no_grad():
        return module(x, memory, memory, attn_mask=keep, average_attn_weights=False)


def projected(module, sources, order=(0, 1, 2)):
    """Return queries, keys and values (B, T, D), made of the `sources` by the maps with the numbers in `order`.

    The number None leaves a source as it is.
    """
    weights, biases = module.in_proj_weight.detach().chunk(3), module.in_proj_bias.detach().chunk(3)
    return [z if i is None else F.linear(z, weights[i], biases[i]) for i, z in zip(order, sources, strict=True)]


def order_mistakes(parts):
    """Yield the wrong maps for the first `parts` of queries, keys and values, with a sentence for each choice."""
    for order in itertools.product((0, 1, 2, None), repeat=parts):
        wrong = [
            f"the {PARTS[own]} are not projected" if i is None else f"the {PARTS[own]} are made by {NAMES[i]}"
            for own, i in enumerate(order)
            if i != own
        ]
        if wrong:
            exchanged = ": these two are exchanged" if len(wrong) == 2 and {*order} == {*range(parts)} else ""
            yield ", ".join(wrong) + exchanged, order


def heads_apart(heads, z):
    """Divide the features of (B, T, D) among the heads."""
    return z.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_straight(heads, z):
    """Make the mistake of reshaping (B, T, D) straight to (B, H, T, d), which mixes tokens."""
    return z.reshape(z.shape[0], heads, -1, z.shape[-1] // heads)


def head_mistakes(module, x, source, keep=None):
    """Return the weights (B, H, T, S) that common mistakes lead to."""
    heads, d_model = module.num_heads, module.embed_dim
    mask = None if keep is None else keep[:, None]
    apart, straight = partial(heads_apart, heads), partial(heads_straight, heads)

    def run(order=(0, 1), split=apart, scale=None):
        def compute():
            q, k = (split(z) for z in projected(module, (x, source), order))
            return torch_weights(q, k, attn_mask=mask, scale=scale)

        return compute

    sentence = f"the scores are divided by √d_model = √{d_model}; a head has only d = d_model / num_heads features"
    found = {
        sentence: run(scale=d_model**-0.5),
        "the heads are split without transposing: tokens are mixed": run(split=straight),
    }
    found |= weight_mistakes(*(apart(z) for z in projected(module, (x, source), (0, 1))), mask)
    return found | {name: run(order) for name, order in order_mistakes(2)}


def module_mistakes(module, x, memory=None, keep=None, weights=None):
    """Return the outputs that common mistakes in multi-head attention lead to.

    `weights` are those of the answer: they show how many heads it has.
    """
    source = x if memory is None else memory
    heads = module.num_heads
    mask = None if keep is None else keep[:, None]
    apart, straight = partial(heads_apart, heads), partial(heads_straight, heads)

    def together(y):
        return y.transpose(1, 2).flatten(2)

    def in_memory_order(y):
        return y.reshape(x.shape)

    def project(y):
        return module.out_proj(y).detach()

    def run(sources=(x, source, source), order=(0, 1, 2), split=apart, merge=together, last=project, mask=mask):
        def compute():
            q, k, v = (split(z) for z in projected(module, sources, order))
            return last(merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

        return compute

    found = {
        "the output projection is missing: out_proj comes after the heads are merged": run(last=lambda y: y),
        "x is added to the output; this module returns what the heads found, and nothing else": run(
            last=lambda y: x + project(y)
        ),
        "the heads are split without transposing: tokens are mixed": run(split=straight),
        "the heads are split and merged without transposing: tokens are mixed": run(
            split=straight, merge=in_memory_order
        ),
        "the heads are merged without transposing back: tokens are mixed": run(merge=in_memory_order),
        "the heads are averaged and repeated; they are concatenated": run(
            merge=lambda y: y.mean(1).repeat(1, 1, heads)
        ),
        "the heads are not moved before the tokens: attention runs among the heads of one token": run(
            split=lambda z: z.unflatten(-1, (heads, -1)), merge=lambda y: y.flatten(2)
        ),
        "there is only one head: q, k and v are not split": run(split=lambda z: z[:, None]),
    }
    if memory is not None:
        found |= {
            "the memory is not used: keys and values must come from it": run((x, x, x), mask=None),
            "the queries are taken from the memory; they come from x": run((memory, memory, memory), mask=None),
            "queries and memory are exchanged: queries come from x, keys and values from the memory": run(
                (memory, x, x), mask=None
            ),
            "the values are taken from x; they come from the memory": run((x, memory, x)),
            "the keys are taken from x; they come from the memory": run((x, x, memory)),
            "x is joined to the memory; keys and values come from the memory alone": run(
                (x, *[torch.cat([x, memory], dim=1)] * 2), mask=None
            ),
            "a causal mask hides part of the memory; nothing in it is the future": run(
                mask=torch.ones(x.shape[1], memory.shape[1]).tril().bool() & (True if mask is None else mask)
            ),
            "queries and keys are exchanged in the product: the scores are q kᵀ": run(
                (memory, x, memory), (1, 0, 2), mask=None
            ),
        }
    found |= {name: run(order=order) for name, order in order_mistakes(3)}
    for i in range(3):
        found[f"the output is made by {NAMES[i]}, not by out_proj"] = run(
            last=lambda y, i=i: projected(module, (y,), (i,))[0]
        )
    if weights is not None and weights.ndim == 4 and weights.shape[1] != heads:
        found |= always(f"there are {weights.shape[1]} heads, not num_heads = {heads}")

    def weighted(weights):
        _, _, v = (apart(z) for z in projected(module, (x, source, source)))
        return lambda: project(together((weights() if callable(weights) else weights) @ v))

    return {name: weighted(weights) for name, weights in head_mistakes(module, x, source, keep).items()} | found


def demand_maps(case, weights, shape, what="weights"):
    """Demand attention maps of shape (B, H, T, S)."""
    b, heads, t, s = shape
    mistakes = {
        "the maps are averaged over the heads; return one for each": (b, t, s),
        "rows and columns are exchanged: there is one row for each query": (b, heads, s, t),
        "the columns are those of x, not of the memory: there is one for each key": (b, heads, t, t),
        "heads and queries are exchanged: the heads come second": (b, t, heads, s),
        "the heads are not moved before the tokens: attention runs among the heads of one token": (b, t, heads, heads),
    }
    mistakes["x is joined to the memory: there is a column for each token of both"] = (b, heads, t, t + s)
    mistakes |= {f"there are {n} heads, not num_heads = {heads}": (b, n, t, s) for n in range(1, 13) if n != heads}
    case.shape(weights, shape, what=what, mistakes=mistakes)


def demand_parameters(case, built, state):
    """Demand the parameters that `state` has, and no others."""
    parameters = built.parameters()
    case.true(
        parameters, "the module has no parameters: each map must be an attribute of self (a plain list is not seen)"
    )
    for name, value in state.items():
        case.true(
            name in parameters,
            f"the module has no parameter named {name}, or shares it with another map; it has {', '.join(parameters)}",
        )
        case.shape(parameters[name], value.shape, what=name)
    extra = set(parameters) - set(state)
    case.true(not extra, f"the module has parameters that do not belong there: {', '.join(sorted(extra))}")


def loaded(case, answer, d_model, heads, prefix=""):
    """Return a module of the answer's class with the weights of torch's, and torch's module."""
    module, state = torch_attention(case, d_model, heads, prefix)
    built = answer(d_model, heads)
    demand_parameters(case, built, state)
    built.load_state_dict(state)
    return built.eval(), module


@check("multi-head-attention", points=18, from_scratch=LIBRARY_ATTENTION)
def multi_head_attention(answer, case):
    """Against `nn.MultiheadAttention` with the same weights."""

    def call(built, x, *memory, **mask):
        output, weights = case.parts(built(x, *memory, **mask), "output", "weights")
        case.true(output.ndim <= weights.ndim, "output and weights are exchanged: the output comes first")
        return output, weights

    with case(
        "four linear maps from d_model to d_model, with bias",
        points=2,
        hint="q_proj, k_proj, v_proj, out_proj",
    ):
        _, state = torch_attention(case, 12, 3)
        demand_parameters(case, answer(12, 3), state)
    with case("self-attention agrees with torch", points=4, hint="project, split, attend, merge, project"):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 6, 12)
        output, weights = call(built, x)
        mistakes = module_mistakes(module, x, weights=weights)
        case.close(output, oracle(module, x)[0], what="output", mistakes=mistakes)
        dropout = {
            "in training mode the output is another one: there is dropout, which does not belong here": lambda: True
        }
        case.close(call(built.train(), x)[0], output, what="output in training mode", mistakes=dropout)
    with case(
        "one attention map for each head",
        points=1,
        hint="return the weights of shape (B, H, T, S) as they are",
    ):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 5, 12)
        _, weights = call(built, x)
        demand_maps(case, weights, (2, 3, 5, 5))
        case.close(weights, oracle(module, x)[1], what="weights", mistakes=head_mistakes(module, x, x))
    with case("queries from x, keys and values from the memory", points=3, hint="x asks, the memory answers"):
        built, module = loaded(case, answer, 12, 3)
        x, memory = case.randn(2, 5, 12), case.randn(2, 5, 12)
        output, weights = call(built, x, memory)
        mistakes = module_mistakes(module, x, memory, weights=weights)
        case.close(output, oracle(module, x, memory)[0], what="output", mistakes=mistakes)
        longer = case.randn(2, 7, 12)
        output, weights = call(built, x, longer)
        demand_maps(case, weights, (2, 3, 5, 7), what="weights for a memory of 7 tokens")
        case.close(output, oracle(module, x, longer)[0], what="output for a memory of 7 tokens")
    with case(
        "the mask reaches every head",
        points=2,
        hint="pass the mask on; (T, S) and (B, 1, 1, S) both broadcast",
    ):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 5, 12)
        causal = torch.ones(5, 5).tril().bool()
        padding = torch.tensor([[True] * 4 + [False], [True, True, False, False, False]])[:, None, None]
        longer = torch.tensor([[True] * 6 + [False], [True] * 3 + [False] * 4])[:, None, None]
        for memory, mask in ((None, causal), (None, padding), (case.randn(2, 7, 12), longer)):
            size = 5 if memory is None else 7
            keep = mask.expand(2, 1, 5, size)[:, 0]
            output, weights = call(built, x, mask=mask) if memory is None else call(built, x, memory, mask=mask)
            if weights.shape == (2, 3, 5, size):
                unmasked = [str(h) for h in range(3) if weights[:, h].masked_select(~keep).any()]
                names = " and ".join(unmasked)
                case.true(
                    len(unmasked) in (0, 3), f"the mask does not reach every head: it is not used in head {names}"
                )
            mistakes = module_mistakes(module, x, memory, keep, weights)
            case.close(output, oracle(module, x, memory, keep)[0], what="output", mistakes=mistakes)
    with case("a query that may see nothing gets the output's bias", points=1, hint="use your masked_attention"):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(1, 3, 12)
        output, _ = call(built, x, mask=torch.zeros(3, 3, dtype=torch.bool))
        value = projected(module, (x, x, x))[2].mean(1, keepdim=True)
        mistakes = {
            "a query that may see nothing averages all values; its heads should give zeros": (
                module.out_proj(value).detach().expand(1, 3, 12)
            ),
            "a query that may see nothing sees everything: the mask is not used, or turned round": oracle(module, x)[0],
            "the row of a query that may see nothing is NaN: its softmax is 0/0": lambda: bool(output.isnan().any()),
            "the output projection is missing: its bias should be what is left": torch.zeros(1, 3, 12),
            "x is added to the output": x + module.out_proj.bias.detach(),
        }
        expected = module.out_proj.bias.detach().expand(1, 3, 12)
        case.close(output, expected, what="output", mistakes=mistakes)
    with case("other sizes, one head among them", points=1, hint="take every size from the arguments"):
        for d_model, heads in ((8, 1), (8, 8), (20, 5)):
            built, module = loaded(case, answer, d_model, heads)
            x = case.randn(3, 4, d_model)
            output, weights = call(built, x)
            sizes = f"with d_model = {d_model}, num_heads = {heads}"
            mistakes = module_mistakes(module, x, weights=weights)
            case.close(output, oracle(module, x)[0], what=f"output {sizes}", mistakes=mistakes)
    with case("every projection learns", points=2, hint="nothing is detached, and each projection is used once"):
        built, _ = loaded(case, answer, 12, 3)
        x, upstream = case.randn(2, 5, 12), case.randn(2, 5, 12)
        case.shape(call(built, x)[0], x.shape, what="output")
        gradients = built.parameter_gradients(x, output=0, upstream=upstream)
        silent = [
            name
            for name, gradient in gradients.items()
            if gradient is None or (name != "k_proj.bias" and not gradient.any())  # a bias of the keys shifts nothing
        ]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
    with case("num_heads must divide d_model: ValueError", points=1, hint="check it first, and say both numbers"):
        raised = "no error"
        try:
            answer(10, 3)
        except NotImplementedError:
            raise
        except ValueError:
            raised = "ValueError"
        except Exception as error:
            raised = type(error).__name__
        case.true(
            raised == "ValueError",
            f"MultiHeadAttention(10, 3) raises {raised}, expected ValueError: 3 heads cannot share 10 features",
        )
        answer(12, 3)  # and these can
    with case("the inputs stay as they were", points=1, hint="x = x + y makes a new tensor; x += y does not"):
        built, _ = loaded(case, answer, 12, 3)
        case.unchanged(built, case.randn(2, 5, 12), case.randn(2, 4, 12))


@check("attention-entropy", points=6)
def attention_entropy(answer, case):
    """Against `torch.distributions.Categorical`, and the two extremes."""

    def nats(weights):
        return torch.distributions.Categorical(probs=weights).entropy()

    def with_epsilon(weights):
        for epsilon in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
            for p, inside in itertools.product(
                (weights, weights + epsilon, weights.clamp_min(epsilon)),
                (weights + epsilon, weights.clamp_min(epsilon)),
            ):
                yield -(p * inside.log2()).sum(-1)

    def mistakes_for(weights, entropy):
        bits = torch.special.entr(weights) / math.log(2)  # of each key
        row = bits.sum(-1)
        return {
            "the entropy is in nats: use log2 to measure in bits": row * math.log(2),
            "the entropy is multiplied by ln 2; from nats to bits, divide by it": row * math.log(2) ** 2,
            "log2 is missing: this is the sum of p · p": lambda: alike(entropy.abs(), (weights**2).sum(-1)),
            "the logarithm is log10: use log2 to measure in bits": row * math.log10(2),
            "the sign is wrong: entropy is never negative": -row,
            "this is the mean over the keys, not the sum": row / weights.shape[-1],
            "the sum runs over the wrong axis: over the queries": bits.sum(-2),
            "the sum runs over the wrong axis: axis 1; the keys are the last axis": lambda: bits.sum(1),
            "the sum runs over queries and keys: one number is due for each query": bits.sum((-2, -1)),
            "the sum runs over all axes: one number is due for each query": bits.sum(),
            "the entropies are averaged over the queries: one number is due for each query": row.mean(-1),
            "the entropies are averaged over everything: one number is due for each query": row.mean(),
            "the terms are not summed over the keys": bits,
            "the last axis is still there, with size 1: leave out keepdim=True": row[..., None],
            "the factor p in front of log2 p is missing": -weights.masked_fill(weights == 0, 1).log2().sum(-1),
            "this is 2 to the power of the entropy; return the entropy itself": 2**row,
            "the entropy is divided by log2 of the number of keys, its largest value": row
            / math.log2(weights.shape[-1]),
            "a softmax is applied to the weights; they are weights already": nats(weights.softmax(-1)) / math.log(2),
            "a whole row counts 0 because one of its weights is 0: mend the terms, not the sum": (
                row.masked_fill((weights == 0).any(-1), 0)
            ),
            "too large a number stands in for 0, or is added to the weights: weights near 0 then count wrongly": (
                lambda: any(alike(entropy, wrong) for wrong in with_epsilon(weights))
            ),
        }

    def demand(weights, expected):
        entropy = answer(weights)
        case.close(entropy, expected, what="the entropy", mistakes=mistakes_for(weights, entropy))

    with case("one number for each query", points=1, hint="sum over the keys, the last axis"):
        weights = case.randn(2, 3, 4, 5).softmax(-1)
        entropy = answer(weights)
        demand_shape(case, entropy, nats(weights), mistakes_for(weights, entropy), what="the entropy")
    with case("the same weight for 8 keys: 3 bits", points=1, hint="log2 8 = 3"):
        demand(torch.full((6, 8), 1 / 8), torch.full((6,), 3.0))
    with case("all weight on one key: 0 bits, not NaN", points=1, hint="0 · log2 0 counts as 0: treat p = 0 apart"):
        entropy = answer(torch.eye(5))
        case.finite(entropy, what="the entropy")
        case.close(entropy, torch.zeros(5), what="the entropy", mistakes=mistakes_for(torch.eye(5), entropy))
    with case("agrees with torch.distributions", points=1, hint="-Σ p log2 p, summed over the keys"):
        weights = (2 * case.randn(2, 3, 6, 6)).softmax(-1)
        demand(weights, nats(weights) / math.log(2))
    with case("causal maps and rows of zeros", points=1, hint="a row without any weight has entropy 0"):
        weights = case.randn(4, 4).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf).softmax(-1)
        demand(torch.cat([weights, torch.zeros(1, 4)]), torch.cat([nats(weights) / math.log(2), torch.zeros(1)]))
    with case("the weights stay as they were", points=1, hint="masked_fill and torch.where make new tensors"):
        case.unchanged(answer, torch.eye(4))


@check("cross-attention", points=8, from_scratch=LIBRARY_ATTENTION)
def cross_attention(answer, case):
    """Against `nn.MultiheadAttention`, and by changing what must not matter."""
    prefix = "attention."

    def call(built, x, memory, *lengths):
        return case.parts(built(x, memory, *lengths), "output", "weights")

    with case("one output for each query", points=1, hint="the memory's length shows only in the weights"):
        output, weights = call(answer(12, 3), case.randn(2, 4, 12), case.randn(2, 6, 12))
        mistakes = {"there is one output for each token of the memory; there must be one for each query": (2, 6, 12)}
        case.shape(output, (2, 4, 12), what="output", mistakes=mistakes)
        demand_maps(case, weights, (2, 3, 4, 6))
    with case("x asks, the memory answers", points=2, hint="in MultiHeadAttention the memory is the second argument"):
        built, module = loaded(case, answer, 12, 3, prefix)
        x, memory = case.randn(2, 5, 12), case.randn(2, 5, 12)
        output, weights = call(built, x, memory)
        mistakes = module_mistakes(module, x, memory, weights=weights)
        case.close(output, oracle(module, x, memory)[0], what="output", mistakes=mistakes)
    with case(
        "padding in the memory gets no weight",
        points=1,
        hint="your padding_mask, over the memory's positions",
    ):
        built, _ = loaded(case, answer, 12, 3, prefix)
        lengths = torch.tensor([2, 5])
        _, weights = call(built, case.randn(2, 4, 12), case.randn(2, 5, 12), lengths)
        demand_maps(case, weights, (2, 3, 4, 5))
        case.true(
            (weights[0, ..., 2:] == 0).all(),
            "padded positions of the memory get weight: the padding mask is not used, or has the wrong sense, or "
            "is made for the queries",
        )
    with case(
        "what stands in the padding changes nothing",
        points=2,
        hint="lengths are those of the memory, not of x",
    ):
        built, module = loaded(case, answer, 12, 3, prefix)
        x, memory, lengths = case.randn(2, 4, 12), case.randn(2, 6, 12), torch.tensor([3, 5])
        output, weights = call(built, x, memory, lengths)
        demand_maps(case, weights, (2, 3, 4, 6))

        def visible(lengths):
            return (torch.arange(6) < lengths[:, None])[:, None].expand(2, 4, 6)

        keep = visible(lengths)
        mistakes = {
            "the lengths are not used": oracle(module, x, memory)[0],
            "the mask has the wrong sense: True belongs to real tokens": oracle(module, x, memory, ~keep)[0],
            "the lengths are taken one too long (< or <=?)": oracle(module, x, memory, visible(lengths + 1))[0],
            "the lengths are taken one too short": oracle(module, x, memory, visible(lengths - 1))[0],
            "every memory gets the length of the first": oracle(module, x, memory, visible(lengths[[0, 0]]))[0],
            "the padding is set to 0, but it still gets weight: mask it": oracle(
                module, x, memory * keep[:, 0, :, None]
            )[0],
        } | module_mistakes(module, x, memory, keep, weights)
        case.close(output, oracle(module, x, memory, keep)[0], what="output", mistakes=mistakes)
        spoilt = memory.clone()
        spoilt[0, 3:], spoilt[1, 5:] = 1e3, -1e3
        again, _ = call(built, x, spoilt, lengths)
        case.close(again, output, what="output after the padding was overwritten")
    with case("without lengths the whole memory is visible", points=1, hint="memory_lengths=None means no mask"):
        built, module = loaded(case, answer, 12, 3, prefix)
        x, memory = case.randn(1, 4, 12), case.randn(1, 5, 12)
        _, weights = call(built, x, memory)
        demand_maps(case, weights, (1, 3, 4, 5))
        mistakes = {"a causal mask hides part of the memory": lambda: bool((weights.triu(1) == 0).all())}
        mistakes |= head_mistakes(module, x, memory)
        case.close(weights, oracle(module, x, memory)[1], what="weights", mistakes=mistakes)
    with case(
        "gradients flow to x and memory, which stay as they were", points=1, hint="no .detach(), no in-place change"
    ):
        built, module = loaded(case, answer, 12, 3, prefix)
        inputs, upstream = (case.randn(2, 4, 12), case.randn(2, 6, 12)), case.randn(2, 4, 12)
        case.unchanged(built, *inputs, torch.tensor([3, 5]))
        case.close(call(built, *inputs)[0], oracle(module, *inputs)[0], mistakes=NO_GRADIENT_YET)
        found = built.gradients(*inputs, output=0, upstream=upstream)
        expected = Answer(lambda x, memory: module(x, memory, memory)[0]).gradients(*inputs, upstream=upstream)
        for name, ours, theirs in zip(("x", "memory"), found, expected, strict=True):
            case.close(ours, theirs, what=f"the gradient for {name}")


@check("character-model", points=9, from_scratch=LIBRARY_ATTENTION)
def character_model(answer, case):
    """By the properties that any causal language model has; each runs on a small model with random weights."""

    def build(vocab=11, d_model=16, heads=2, context=8, silent=""):
        built = answer(vocab, d_model, heads, context).eval()
        # Larger weights than a fresh model has, so that every effect stands clear of rounding.
        values = {name: value + 0.2 * case.randn(*value.shape) for name, value in built.parameters().items()}
        if silent:
            values = {name: value * 0 if silent in name else value for name, value in values.items()}
        built.load_state_dict(values)
        return built

    def same(a, b):
        return torch.allclose(a, b, rtol=0, atol=1e-5)

    def call(built, tokens, vocab=11, d_model=16, heads=2):
        batch, length = tokens.shape
        logits, weights = case.parts(built(tokens), "logits", "weights")
        mistakes = {
            "the logits are those of the last position only; each position predicts": (batch, vocab),
            "the last two axes are in the wrong order: the vocabulary must come last": (batch, vocab, length),
            "these are features: the head that maps d_model to the vocabulary is missing": (batch, length, d_model),
            "logits and weights are exchanged": (batch, heads, length, length),
            "these are tokens (an argmax?), not a logit for each token of the vocabulary": (batch, length),
        }
        case.shape(logits, (batch, length, vocab), what="logits", mistakes=mistakes)
        return logits, weights

    with case(
        "logits (B, T, vocab_size) and weights (B, H, T, T), T ≤ context",
        points=1,
        hint="the head maps d_model to the vocabulary; T may be smaller than the context",
    ):
        for batch, length in ((3, 8), (2, 3), (2, 1)):
            _, weights = call(build(), case.randint(0, 11, (batch, length)))
            demand_maps(case, weights, (batch, 2, length, length))
        built, tokens = build(), case.randint(0, 11, (2, 8))
        case.true(
            same(call(built, tokens[:, :5])[0], call(built, tokens)[0][:, :5]),
            "the first 5 of 8 tokens alone get other logits than as the beginning of all 8: count positions from the "
            "start, and let nothing depend on what comes later",
        )
        call(build(vocab=5, context=20), case.randint(0, 5, (2, 20)), vocab=5)
        call(build(vocab=40), torch.arange(40).view(5, 8), vocab=40)
    with case("no look into the future", points=2, hint="pass causal_mask(T) to the attention"):
        built, tokens = build(), case.randint(0, 11, (4, 8))
        other = tokens.clone()
        other[:, 5:] = (other[:, 5:] + 1 + case.randint(0, 9, (4, 3))) % 11
        (before, weights), (after, _) = call(built, tokens), call(built, other)
        if (weights.triu(1) == 0).all():
            why = "the attention does not, so something else mixes positions (a norm or softmax along T?)"
        elif (weights.tril(-1) == 0).all():
            why = "the causal mask has the wrong sense"
        else:
            why = "the causal mask is missing or does not arrive (pass it as mask=...)"
        case.true(
            same(before[:, :5], after[:, :5]),
            "the logits of positions 0 … 4 change when only later tokens change: the model sees the future; " + why,
        )
    with case("the past counts", points=1, hint="the attention's output must reach the logits"):
        built, tokens = build(), case.randint(0, 11, (4, 8))
        other = tokens.clone()
        other[:, :4] = (other[:, :4] + 1) % 11
        case.true(
            not same(call(built, tokens)[0][:, -1], call(built, other)[0][:, -1]),
            "the last logits do not change when an earlier token changes: the past is not used (is the attention's "
            "output used, or does the mask hide too much?)",
        )
    with case("the order of the past counts", points=1, hint="add an embedding of the position to that of the token"):
        built, tokens = build(), torch.tensor([[1, 2, 3, 4, 5], [6, 0, 9, 8, 7]])
        case.true(
            not same(call(built, tokens)[0][:, -1], call(built, tokens[:, [2, 0, 1, 3, 4]])[0][:, -1]),
            "the last logits do not change when earlier tokens change places: the model does not know positions "
            "(is the position embedding missing, or added after the attention?)",
        )
    with case("norm(x + y): residual, then norm", points=1, hint="x + attention(x), then self.norm, then the head"):
        # With a silent attention only x itself can carry the letter. (Models without an out_proj are let off.)
        built, tokens = build(silent="out_proj"), case.randint(0, 11, (2, 8))
        case.true(
            not same(call(built, tokens)[0], call(built, (tokens + 1) % 11)[0]),
            "when the attention returns zeros, the logits do not depend on the tokens at all: the residual "
            "connection x + attention(x) is missing",
        )
        # Triple the embeddings and the head. With a norm between them differences grow 3 times, else up to 9 times.
        values = {name: 3 * p for name, p in built.parameters().items() if p.shape in ((11, 16), (8, 16))}
        if len(values) == 3:  # not for tied weights, nor for positions that are not learned
            before = call(built, tokens)[0].diff(dim=1).norm()
            built.load_state_dict(values)
            case.true(
                call(built, tokens)[0].diff(dim=1).norm() < 5 * before,
                "the logits grow with the size of the embeddings: x + attention(x) does not go through the norm",
            )
    with case("the attention maps are causal and sum to 1", points=1, hint="return the weights of your attention"):
        _, weights = call(build(), case.randint(0, 11, (2, 8)))
        demand_maps(case, weights, (2, 2, 8, 8))
        case.true(
            (weights.triu(1) == 0).all(),
            "some query gives weight to a later token: the model sees the future",
        )
        case.true(
            weights.diagonal(0, -2, -1).any(),
            "no position gives weight to itself: the diagonal of the mask must be True",
        )
        case.close(weights.sum(-1), torch.ones(2, 2, 8), what="the sum of each query's weights")
    with case("one batch can be learnt by heart", points=2, hint="raw logits: no softmax, no ReLU at the end"):
        tokens = case.randint(0, 11, (4, 9))
        logits, _ = call(build(), tokens[:, :-1])
        for axis, over in ((-1, "vocabulary"), (1, "positions")):
            probabilities = (logits.sum(axis) - 1).abs().max() < 1e-4 and logits.min() >= 0
            case.true(
                not probabilities,
                f"the logits sum to 1 over the {over}: return them raw, with no softmax (cross_entropy has its own)",
            )
        case.true(
            logits.min() < 0,
            "no logit is negative: is there a ReLU, a sigmoid or an exp at the end? Return them raw",
        )
        gradients = build().parameter_gradients(tokens[:, :-1], output=0, upstream=case.randn(4, 8, 11))
        silent = [name for name, gradient in gradients.items() if gradient is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
        built = build()
        case.true(
            same(call(built, tokens[:, :-1])[0], call(built.train(), tokens[:, :-1])[0]),
            "in training mode the logits are others: there is dropout, which this model should not have",
        )
        loss = fit_one_batch(answer(11, 32, 2, 8).eval(), tokens)
        case.true(
            loss < 0.3,
            f"after 200 steps on one batch of 4 sequences the loss is {loss:.2f}, where below 0.3 is usual. Are the "
            "logits raw? Do x and attention(x) both reach them?",
        )


def fit_one_batch(built, tokens, enough=0.3, steps=200, lr=0.02):
    """Train a module through its parameters and gradients alone; return the last cross-entropy in nats."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    values = built.parameters()
    optimizer = torch.optim.Adam(values.values(), lr=lr)
    for _ in range(steps):
        logits = built(inputs)[0].detach().requires_grad_()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if loss < enough:
            break
        (upstream,) = torch.autograd.grad(loss, logits)
        gradients = built.parameter_gradients(inputs, output=0, upstream=upstream)
        for name, value in values.items():
            value.grad = gradients[name]
        optimizer.step()
        built.load_state_dict(values)
    return loss.item()


# -- quiz -------------------------------------------------------------------------------------------------


@check("quiz", points=5)
def quiz(answer, case):
    """Every right answer is computed here, by torch or by counting."""

    def answered(key):
        given = answer()
        case.true(isinstance(given, dict), "quiz must return a dictionary (is the return statement there?)")
        case.true(key in given, f"the key {key!r} is missing; there are {', '.join(map(repr, given))}")
        case.true(given[key] is not None, f"{key} has no answer yet: replace None")
        return given[key]

    def number(key, right, mistakes, what="your number"):
        given = answered(key)
        case.true(not isinstance(given, str), f"{key} is text: write the number without quotation marks")
        near = given != right and abs(given - right) < 0.02 * abs(right) and given not in mistakes.values()
        case.true(not near, f"{given} is nearly right; the exact number is asked")
        case.equal(given, right, what=what, mistakes=mistakes)

    with case("1: learned numbers", points=1, hint="four linear maps with bias; does the number of heads matter?"):
        right = sum(p.numel() for p in nn.MultiheadAttention(512, 8).parameters())
        weights = nn.Linear(512, 512).weight.numel()
        mistakes = {
            "that leaves out the biases": 4 * weights,
            "that counts q, k and v only; the output projection has parameters too": 3 * (weights + 512),
            "that counts q, k and v only, and leaves out the biases": 3 * weights,
            "the heads share the d_model features, so their number does not multiply the parameters": 8 * right,
            "that counts the part of one head; the maps make the features of all heads": right // 8,
            "that is one of the linear maps; how many are there?": weights + 512,
            "that counts one bias too few for each map, or too many: a bias has one number for each output": (
                4 * (weights + 1)
            ),
        }
        number("parameters", right, mistakes)
    with case("2: memory of the scores", points=1, hint="the scores have shape (B, H, T, S)"):
        right = (
            torch.empty(1, 4, 4096, 4096, device="meta").numel() / torch.empty(1, 8, 1024, 1024, device="meta").numel()
        )
        mistakes = {
            "that forgets that there are fewer heads": 16,
            "that grows with T, but the scores grow with T²": 2,
            "that grows with T, but the scores grow with T², and there are fewer heads": 4,
            "half as many heads need half the memory, not twice as much": 32,
            "that goes the wrong way: is it more memory, or less?": 1 / right,
        }
        number("memory_factor", right, mistakes, what="your factor")
    with case(
        "3: spread of a dot product",
        points=1,
        hint="variances of independent terms add; then the square root",
    ):
        right = math.sqrt(256)
        mistakes = {
            "that is the variance; the question asks for the standard deviation": 256,
            "that is the value after the division by √d; the question asks for q · k itself": 1,
            "that is what the scores are divided by in the other direction: they grow with d": 1 / 16,
        }
        number("score_std", right, mistakes)
    with case("4: pairs under a causal mask", points=1, hint="1 + 2 + … + 10"):
        right = int(torch.ones(10, 10).tril().sum())
        mistakes = {
            "that leaves out the diagonal: a position sees itself": 45,
            "that counts all pairs, masked ones too": 100,
            "that is half of all pairs; the diagonal does not halve": 50,
            "that is the number of positions; count pairs": 10,
        }
        number("causal_pairs", right, mistakes)
    with case("5: shuffled tokens", points=1, hint="does a query care in which order the keys come?"):
        x, order = case.randn(1, 6, 8), torch.tensor([3, 0, 5, 1, 4, 2])
        plain = F.scaled_dot_product_attention(x, x, x)
        shuffled = F.scaled_dot_product_attention(x[:, order], x[:, order], x[:, order])
        outcomes = {
            "unchanged": torch.allclose(shuffled, plain, atol=1e-5),
            "shuffled": torch.allclose(shuffled, plain[:, order], atol=1e-5),
            "different": True,
        }
        right = next(name for name, holds in outcomes.items() if holds)
        mistakes = {
            "each query keeps its own output, but the queries themselves have moved": "unchanged",
            "look at one query: its scores are the same numbers in another order, and so is its weighted mean": (
                "different"
            ),
        }
        word = answered("shuffled")
        word = word.strip().lower() if isinstance(word, str) else word
        case.true(word in outcomes, f"answer with one of the words {', '.join(outcomes)}")
        case.equal(word, right, what="your word", mistakes=mistakes)
