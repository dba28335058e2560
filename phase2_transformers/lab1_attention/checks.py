"""The checks of Lab 1, Attention.

The oracles are torch's own attention, masks written down by hand, and identities. Shapes: B batch, H heads,
T queries, S keys, d features of a head, D = d_model.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.checks import check

PER_KEY = "softmax over the last axis of the scores: the keys. Each query then has weights that sum to 1."


def torch_weights(q, k, **options):
    """Return torch's attention weights: what attention makes of the values 'one-hot key number'."""
    return F.scaled_dot_product_attention(q, k, torch.eye(k.shape[-2], dtype=q.dtype), **options)


def weight_mistakes(q, k, mask=None):
    """Return the weights that common mistakes lead to, under the sentence that names each."""
    d, s = q.shape[-1], k.shape[-2]
    raw = q @ k.transpose(-2, -1)
    found = {
        "the scores are not divided by √d": torch_weights(q, k, attn_mask=mask, scale=1.0),
        "the scores are divided by d, not by √d": torch_weights(q, k, attn_mask=mask, scale=1 / d),
        "the scores are multiplied by √d instead of divided": torch_weights(q, k, attn_mask=mask, scale=d**0.5),
        "the scores are divided by √S, the number of keys; d is the size of one key": torch_weights(
            q, k, attn_mask=mask, scale=s**-0.5
        ),
        "the softmax runs over the wrong axis: over the queries, not over the keys": (raw / d**0.5).softmax(-2),
        "the result is before the softmax: these are the scores": raw / d**0.5,
    }
    if mask is None:
        return found
    plain = torch_weights(q, k)
    return found | {
        "the mask has the wrong sense: True means that a query may attend to a key": torch_weights(
            q, k, attn_mask=~mask
        ),
        "the mask is not used at all": plain,
        "the mask is applied after the softmax, so the weights that remain do not sum to 1": plain * mask,
        "masked scores are set to 0 instead of -inf: e⁰ = 1 still gets weight": ((raw / d**0.5 * mask).softmax(-1)),
        "masked scores are set to 0 instead of -inf, and the weights hidden afterwards do not sum to 1": (
            (raw / d**0.5 * mask).softmax(-1) * mask
        ),
        "the mask is transposed: its rows are the queries, its columns the keys": lambda: torch_weights(
            q, k, attn_mask=mask.transpose(-2, -1)
        ),
    }


def output_mistakes(q, k, v, mask=None):
    """Return the outputs that common mistakes lead to."""
    return {name: (lambda w=w: (w() if callable(w) else w) @ v) for name, w in weight_mistakes(q, k, mask).items()}


@check("scaled-dot-product-attention", points=12)
def scaled_dot_product_attention(answer, case):
    """Against `torch.nn.functional.scaled_dot_product_attention`."""
    with case(
        "one output for each query, one weight for each pair",
        points=1,
        hint="(B, H, T, d_v) and (B, H, T, S)",
    ):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 6)
        output, weights = case.parts(answer(q, k, v), "output", "weights")
        case.shape(weights, (2, 3, 4, 5), what="weights")
        case.shape(output, (2, 3, 4, 6), what="output")
    with case("the weights of each query sum to 1", points=1, hint=PER_KEY):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        _, weights = case.parts(answer(q, k, v), "output", "weights")
        over_queries = "the weights sum to 1 over the queries (wrong axis), not over the keys"
        case.close(
            weights.sum(-1),
            torch.ones(2, 3, 5),
            what="the sum of each query's weights",
            mistakes={over_queries: lambda: bool((weights.sum(-2) - 1).abs().max() < 1e-4)},
        )
    with case("the weights are softmax(q kᵀ / √d)", points=3, hint="scores q kᵀ, one scalar factor, then softmax"):
        q, k, v = case.randn(2, 3, 4, 16), case.randn(2, 3, 5, 16), case.randn(2, 3, 5, 16)
        _, weights = case.parts(answer(q, k, v), "output", "weights")
        case.close(weights, torch_weights(q, k), what="weights", mistakes=weight_mistakes(q, k))
    with case("the output is the weighted mean of the values", points=3, hint="one matrix product: weights and v"):
        q, k, v = case.randn(2, 3, 4, 16), case.randn(2, 3, 5, 16), case.randn(2, 3, 5, 6)
        output, _ = case.parts(answer(q, k, v), "output", "weights")
        expected = F.scaled_dot_product_attention(q, k, v)
        case.close(output, expected, what="output", mistakes=output_mistakes(q, k, v))
    with case("any number of leading axes", points=1, hint="count axes from the end: transpose(-2, -1), dim=-1"):
        for lead in ((), (4,), (2, 2, 3)):
            q, k, v = case.randn(*lead, 4, 8), case.randn(*lead, 5, 8), case.randn(*lead, 5, 8)
            output, _ = case.parts(answer(q, k, v), "output", "weights")
            what = f"output for q of shape {tuple(q.shape)}"
            case.close(output, F.scaled_dot_product_attention(q, k, v), what=what, mistakes=output_mistakes(q, k, v))
    with case("large scores do not overflow", points=1, hint="torch's softmax subtracts the largest score first"):
        q, k, v = 300 * case.randn(2, 4, 8), 300 * case.randn(2, 5, 8), case.randn(2, 5, 8)
        output, weights = case.parts(answer(q, k, v), "output", "weights")
        case.finite(weights, what="weights")
        case.finite(output, what="output")
    with case("gradients flow to q, k and v", points=1, hint="use tensor operations only, on the inputs themselves"):
        inputs = case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8)
        upstream = case.randn(2, 4, 8)
        found = answer.gradients(*inputs, output=0, upstream=upstream)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        expected = torch.autograd.grad((F.scaled_dot_product_attention(*leaves) * upstream).sum(), leaves)
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            case.close(ours, theirs, what=f"the gradient for {name}")
    with case("the inputs stay as they were", points=1, hint="q / c makes a new tensor; q /= c changes the caller's"):
        case.unchanged(answer, case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8))


@check("causal-mask", points=6)
def causal_mask(answer, case):
    """Against the definition, entry by entry."""

    def by_definition(size):
        return torch.tensor([[key <= query for key in range(size)] for query in range(size)])

    with case("one row for each query, one column for each key", points=1, hint="a matrix of shape (T, T)"):
        for size in (3, 7):
            case.shape(answer(size), (size, size), what=f"the mask for T = {size}")
    with case("made of booleans", points=1, hint="dtype torch.bool: True where a query may attend"):
        case.dtype(answer(4), torch.bool, what="the mask")
    with case("a position sees itself and all before it", points=3, hint="row t is True in columns 0 … t"):
        for size in (4, int(case.randint(5, 12))):
            right = by_definition(size)
            mistakes = {
                "the mask has the wrong sense: it is True where a query may not attend": ~right,
                "the mask is transposed: here each position sees itself and what comes after it": right.T,
                "a position does not see itself: the diagonal must be True": right & ~torch.eye(size).bool(),
                "a position sees one step into the future: the diagonal above the main one must be False": (
                    right | torch.ones(size, size).tril(1).bool()
                ),
                "nothing is masked: every entry is True": torch.ones_like(right),
                "this is an additive mask (0 and -inf); return booleans": torch.zeros(size, size).masked_fill(
                    ~right, -torch.inf
                ),
                "a position sees only itself": torch.eye(size).bool(),
            }
            case.equal(answer(size), right, what="the mask", mistakes=mistakes)
    with case("a sequence of one token", points=1, hint="T = 1 gives [[True]]"):
        case.equal(answer(1), torch.tensor([[True]]), what="the mask for T = 1")


@check("padding-mask", points=8)
def padding_mask(answer, case):
    """Against the definition, entry by entry."""

    def by_definition(lengths, size):
        return torch.tensor([[[[key < int(length) for key in range(size)]]] for length in lengths])

    def mistakes_for(lengths, size):
        right = by_definition(lengths, size)
        return {
            "the mask has the wrong sense: True belongs to real tokens, False to padding": ~right,
            "one token too many is visible: position `length` is padding already (< or <=?)": by_definition(
                lengths + 1, size
            ),
            "the last real token is hidden: positions 0 … length - 1 are real": by_definition(lengths - 1, size),
            "the padding is taken to be at the start; it is at the end": right.flip(-1),
            "nothing is masked": torch.ones_like(right),
            "every sequence gets the mask of the first one": right[:1].expand_as(right),
            "the shape is (B, T): two axes of size 1, for heads and queries, are missing": right[:, 0, 0],
            "the shape is (B, 1, T): one axis of size 1 is missing": right[:, 0],
            "the axes are in the wrong order: this masks queries, (B, 1, T, 1), not keys": right.transpose(-2, -1),
            "the axes are in the wrong order: the batch comes first": right.permute(1, 0, 2, 3),
        }

    with case("shape (B, 1, 1, T)", points=2, hint="index with None, or unsqueeze: heads and queries share the mask"):
        lengths = torch.tensor([2, 5, 3])
        mistakes = {name: wrong.shape for name, wrong in mistakes_for(lengths, 6).items()}
        case.shape(answer(lengths, 6), (3, 1, 1, 6), what="the mask", mistakes=mistakes)
    with case("made of booleans", points=1, hint="a comparison gives booleans: True for a real token"):
        case.dtype(answer(torch.tensor([2, 4]), 4), torch.bool, what="the mask")
    with case("True for real tokens, False for padding", points=3, hint="compare positions 0 … T-1 with the lengths"):
        size = int(case.randint(6, 12))
        lengths = torch.stack([case.randint(2, 4), case.randint(4, size), case.randint(2, size)])
        case.equal(
            answer(lengths, size),
            by_definition(lengths, size),
            what="the mask",
            mistakes=mistakes_for(lengths, size),
        )
    with case("T may be larger than the longest sequence", points=1, hint="T is given; do not use lengths.max()"):
        lengths = torch.tensor([0, 1, 3])
        case.equal(answer(lengths, 5), by_definition(lengths, 5), what="the mask", mistakes=mistakes_for(lengths, 5))
    with case("combines with a causal mask by &", points=1, hint="(B, 1, 1, T) & (T, T) gives (B, 1, T, T)"):
        lengths, causal = torch.tensor([2, 4]), torch.ones(4, 4).tril().bool()
        mask = answer(lengths, 4)
        case.true(isinstance(mask, torch.Tensor), "the mask is not a tensor")
        case.equal(mask & causal, by_definition(lengths, 4) & causal, what="padding & causal")


@check("masked-attention", points=16)
def masked_attention(answer, case):
    """Against torch's attention with `attn_mask`."""

    def some_mask(*shape):  # at least one key is left for each query
        mask = case.randn(*shape) > 0
        mask[..., 0] = True
        return mask

    with case("without a mask: plain attention", points=2, hint="mask=None leaves your first answer unchanged"):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        output, _ = case.parts(answer(q, k, v), "output", "weights")
        case.close(output, F.scaled_dot_product_attention(q, k, v), what="output", mistakes=output_mistakes(q, k, v))
    with case("with a mask: agrees with torch", points=3, hint="change the scores, before the softmax"):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        mask = torch.ones(5, 5).tril().bool()
        output, _ = case.parts(answer(q, k, v, mask), "output", "weights")
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        case.close(output, expected, what="output", mistakes=output_mistakes(q, k, v, mask))
    with case("masked keys get a weight of exactly 0", points=2, hint="e^(-inf) = 0, whatever the other scores are"):
        q, k, v = 40 * case.randn(2, 3, 4, 8), 40 * case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        mask = some_mask(2, 1, 4, 5)
        _, weights = case.parts(answer(q, k, v, mask), "output", "weights")
        case.shape(weights, (2, 3, 4, 5), what="weights")
        case.true(
            (weights.masked_select(~mask) == 0).all(),
            "some masked keys get weight: their scores are not low enough (0 instead of -inf?), or the mask has "
            "the wrong sense, or it is not used",
        )
    with case("the weights that remain sum to 1", points=2, hint="mask first, softmax afterwards"):
        q, k, v = case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 8)
        mask = some_mask(5, 5)
        _, weights = case.parts(answer(q, k, v, mask), "output", "weights")
        case.close(weights, torch_weights(q, k, attn_mask=mask), what="weights", mistakes=weight_mistakes(q, k, mask))
    with case("a padding mask (B, 1, 1, S) is broadcast", points=2, hint="masked_fill and torch.where broadcast"):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 6, 8), case.randn(2, 3, 6, 8)
        mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])[:, None, None]
        output, _ = case.parts(answer(q, k, v, mask), "output", "weights")
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        case.close(output, expected, what="output", mistakes=output_mistakes(q, k, v, mask))
    with case("a query that may see nothing gets zeros", points=3, hint="after the softmax, set masked weights to 0"):
        q, k, v = case.randn(2, 1, 3, 8), case.randn(2, 1, 4, 8), case.randn(2, 1, 4, 8)
        mask = torch.tensor([[True] * 4, [False] * 4])[:, None, None]
        output, weights = case.parts(answer(q, k, v, mask), "output", "weights")
        nothing = "the row of a query that may see nothing is NaN: its softmax is 0/0"
        case.true(not output.isnan().any() and not weights.isnan().any(), nothing)
        average = v[1:].mean(-2, keepdim=True).expand(1, 1, 3, 8)
        case.close(
            output[1:],
            torch.zeros(1, 1, 3, 8),
            what="the output of a query that may see nothing",
            mistakes={
                "a query that may see nothing averages all values; it should give zeros": average,
                "the mask is not used, or has the wrong sense": F.scaled_dot_product_attention(q[1:], k[1:], v[1:]),
            },
        )
        case.close(weights[1:], torch.zeros(1, 1, 3, 4), what="the weights of a query that may see nothing")
        case.close(output[:1], F.scaled_dot_product_attention(q[:1], k[:1], v[:1]), what="the other outputs")
    with case(
        "gradients are right, with masked rows too",
        points=1,
        hint="a NaN that is hidden still has a gradient",
    ):
        inputs = case.randn(2, 3, 8), case.randn(2, 4, 8), case.randn(2, 4, 8)
        mask = torch.tensor([[[True, False, True, True]], [[False] * 4]])
        upstream = case.randn(2, 3, 8)
        found = answer.gradients(*inputs, mask, output=0, upstream=upstream)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        torch_output = F.scaled_dot_product_attention(*(leaf[:1] for leaf in leaves), attn_mask=mask[:1])
        expected = torch.autograd.grad((torch_output * upstream[:1]).sum(), leaves)
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            case.close(ours, theirs, what=f"the gradient for {name}")
    with case("the inputs stay as they were", points=1, hint="masked_fill makes a new tensor, masked_fill_ does not"):
        mask = some_mask(4, 5)
        case.unchanged(answer, case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8), mask)


@check("split-heads", points=6)
def split_heads(answer, case):
    """Against slices of the features."""

    def mistakes_for(x, heads):
        b, t, features = x.shape
        d = features // heads
        return {
            "the axes are not transposed: this is (B, T, H, d), expected (B, H, T, d)": lambda: x.view(b, t, heads, d),
            "reshaping straight to (B, H, T, d) mixes tokens: first split the features, then transpose": (
                lambda: x.reshape(b, heads, t, d)
            ),
            "the features are interleaved: head 0 gets the first d features, not every H-th": (
                lambda: x.view(b, t, d, heads).permute(0, 3, 1, 2)
            ),
            "the axes are in the wrong order: heads come before the batch": (
                lambda: x.view(b, t, heads, d).permute(2, 0, 1, 3)
            ),
            "the last two axes are in the wrong order: this is (B, H, d, T)": (
                lambda: x.view(b, t, heads, d).permute(0, 2, 3, 1)
            ),
        }

    with case("shape (B, H, T, d)", points=2, hint="two steps: split the last axis into (H, d), then move H forward"):
        x = case.randn(2, 5, 12)
        mistakes = {name: make().shape for name, make in mistakes_for(x, 3).items()}
        case.shape(answer(x, 3), (2, 3, 5, 4), mistakes=mistakes)
    with case("head h holds features h·d … (h+1)·d - 1 of each token", points=3, hint="transpose; no second reshape"):
        x = case.randn(2, 6, 12)
        result = answer(x, 3)
        for head in range(3):
            sliced = x[:, :, 4 * head : 4 * head + 4]
            mistakes = {
                name: (lambda make=make: result.shape == make().shape and torch.equal(result, make()))
                for name, make in mistakes_for(x, 3).items()
            }
            case.shape(result, (2, 3, 6, 4))
            case.close(result[:, head], sliced, what=f"head {head}", mistakes=mistakes)
    with case("one head, or as many as features", points=1, hint="compute d from the input; nothing is fixed"):
        x = case.randn(3, 4, 6)
        case.close(answer(x, 1), x[:, None], what="one head", mistakes=mistakes_for(x, 1))
        case.close(answer(x, 6), x.mT[..., None], what="six heads of size 1", mistakes=mistakes_for(x, 6))


@check("merge-heads", points=6)
def merge_heads(answer, case):
    """Against the features of each head, put side by side."""

    def mistakes_for(x):
        b, heads, t, d = x.shape
        return {
            "reshaping without transposing back mixes tokens: bring the axes to (B, T, H, d) first": (
                lambda: x.reshape(b, t, heads * d)
            ),
            "the heads are not concatenated: the result still has an axis for them": (
                lambda: x.transpose(1, 2).reshape(b, t, heads, d)
            ),
            "the heads are averaged or added; they are concatenated": lambda: x.mean(1),
            "the heads are added; they are concatenated": lambda: x.sum(1),
            "the features are interleaved: all features of head 0 come first": (
                lambda: x.permute(0, 2, 3, 1).reshape(b, t, d * heads)
            ),
            "the tokens of the heads are put one after another: concatenate along the features, not the tokens": (
                lambda: x.reshape(b, heads * t, d)
            ),
        }

    with case("shape (B, T, D)", points=2, hint="the heads' features side by side: D = H · d"):
        x = case.randn(2, 3, 5, 4)
        mistakes = {name: make().shape for name, make in mistakes_for(x).items()}
        case.shape(answer(x), (2, 5, 12), mistakes=mistakes)
    with case("features h·d … (h+1)·d - 1 come from head h", points=3, hint="undo split_heads, in reverse order"):
        x = case.randn(2, 3, 6, 4)
        merged = answer(x)
        mistakes = {
            name: (lambda make=make: merged.shape == make().shape and torch.allclose(merged, make()))
            for name, make in mistakes_for(x).items()
        }
        case.shape(merged, (2, 6, 12))
        for head in range(3):
            case.close(merged[..., 4 * head : 4 * head + 4], x[:, head], what=f"head {head}", mistakes=mistakes)
    with case("any memory layout", points=1, hint="after a transpose .view fails; .reshape copies where it must"):
        x = case.randn(2, 5, 3, 4).transpose(1, 2)
        case.close(answer(x), x.transpose(1, 2).flatten(2), mistakes=mistakes_for(x))


NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")


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


def oracle(module, x, memory=None, keep=None, values=None):
    """Return torch's output and weights; `keep` (B or 1, T, S) is True where a query may attend."""
    memory = x if memory is None else memory
    if keep is not None:  # torch wants one mask for each head, True where it may not attend
        keep = keep.expand(x.shape[0], x.shape[1], memory.shape[1])
        keep = ~keep.repeat_interleave(module.num_heads, 0)
    values = memory if values is None else values
    with torch.no_grad():
        return module(x, memory, values, attn_mask=keep, average_attn_weights=False)


def changed(module, factor=1.0, out=True):
    """Return a copy of `module` whose scores are multiplied by `factor`, or without its output projection."""
    copy = nn.MultiheadAttention(module.embed_dim, module.num_heads, batch_first=True)
    copy.load_state_dict(module.state_dict())
    with torch.no_grad():
        copy.in_proj_weight[: module.embed_dim] *= factor
        copy.in_proj_bias[: module.embed_dim] *= factor
        if not out:
            copy.out_proj.weight.copy_(torch.eye(module.embed_dim))
            copy.out_proj.bias.zero_()
    return copy


def module_mistakes(module, x, memory=None, keep=None):
    """Return the outputs that common mistakes in multi-head attention lead to."""
    source = x if memory is None else memory
    d = module.embed_dim // module.num_heads
    heads, features = module.num_heads, module.embed_dim

    def run(changed_module=module, a=x, b=source, mask=keep, values=None):
        return lambda: oracle(changed_module, a, b, mask, values)[0]

    def by_hand(split, merge):
        def compute():
            w, b = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
            q, k, v = (split(F.linear(z, w[i], b[i])) for i, z in enumerate((x, source, source)))
            mask = None if keep is None else keep[:, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return module.out_proj(merge(y)).detach()

        return compute

    def apart(z):
        return z.unflatten(-1, (heads, d)).transpose(1, 2)

    def straight(z):
        return z.reshape(z.shape[0], heads, -1, d)

    found = {
        "the output projection is missing: out_proj comes after the heads are merged": run(changed(module, out=False)),
        "the scores are not scaled by 1/√d": run(changed(module, d**0.5)),
        "the scores are divided by √d_model; each head has only d = d_model / num_heads features": run(
            changed(module, heads**-0.5)
        ),
        "the heads are split without transposing: tokens are mixed": by_hand(
            straight, lambda y: y.transpose(1, 2).reshape(x.shape[0], -1, features)
        ),
        "the heads are split and merged without transposing: tokens are mixed": by_hand(
            straight, lambda y: y.reshape(x.shape[0], -1, features)
        ),
        "the heads are merged without transposing back": by_hand(apart, lambda y: y.reshape(x.shape[0], -1, features)),
        "there is only one head: q, k and v are not split": by_hand(
            lambda z: z[:, None], lambda y: y.reshape(x.shape[0], -1, features)
        ),
    }
    if keep is not None:
        found |= {
            "the mask is not used": run(mask=None),
            "the mask has the wrong sense: True means that a query may attend": run(mask=~keep),
        }
    if memory is not None:
        found |= {
            "the memory is not used: keys and values must come from it": run(a=x, b=x, mask=None),
            "the queries are taken from the memory; they come from x": run(a=memory, b=memory, mask=None),
            "queries and memory are exchanged: queries come from x, keys and values from the memory": run(
                a=memory, b=x, mask=None
            ),
            "the values are taken from x; they come from the memory": run(values=x),
            "the keys are taken from x; they come from the memory": run(b=x, values=memory),
        }
    return found


def loaded(case, answer, d_model, heads, prefix=""):
    """Return a module of the answer's class with the weights of torch's, and torch's module."""
    module, state = torch_attention(case, d_model, heads, prefix)
    built = answer(d_model, heads)
    names = built.parameters()
    missing = [name for name in state if name not in names]
    case.true(not missing, f"the module has no parameter named {', '.join(missing)}; it has {', '.join(names)}")
    extra = [name for name in names if name not in state]
    case.true(not extra, f"the module has parameters that do not belong there: {', '.join(extra)}")
    built.load_state_dict(state)
    return built.eval(), module


@check("multi-head-attention", points=18)
def multi_head_attention(answer, case):
    """Against `nn.MultiheadAttention` with the same weights."""
    with case(
        "four linear maps from d_model to d_model, with bias",
        points=2,
        hint="q_proj, k_proj, v_proj, out_proj",
    ):
        _, state = torch_attention(case, 12, 3)
        parameters = answer(12, 3).parameters()
        for name, value in state.items():
            case.true(name in parameters, f"there is no parameter {name}; there are {', '.join(parameters)}")
            case.shape(parameters[name], value.shape, what=name)
        extra = set(parameters) - set(state)
        case.true(not extra, f"there are more parameters than these four maps have: {', '.join(sorted(extra))}")
    with case("self-attention agrees with torch", points=4, hint="project, split, attend, merge, project"):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 6, 12)
        output, _ = case.parts(built(x), "output", "weights")
        case.close(output, oracle(module, x)[0], what="output", mistakes=module_mistakes(module, x))
    with case(
        "one attention map for each head",
        points=1,
        hint="return the weights of shape (B, H, T, S) as they are",
    ):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 5, 12)
        _, weights = case.parts(built(x), "output", "weights")
        expected = oracle(module, x)[1]
        case.close(weights, expected, what="weights", mistakes={"the heads' maps are averaged": expected.mean(1)})
    with case("queries from x, keys and values from the memory", points=3, hint="x asks, the memory answers"):
        built, module = loaded(case, answer, 12, 3)
        x, memory = case.randn(2, 5, 12), case.randn(2, 5, 12)
        output, _ = case.parts(built(x, memory), "output", "weights")
        expected = oracle(module, x, memory)[0]
        case.close(output, expected, what="output", mistakes=module_mistakes(module, x, memory))
        longer = case.randn(2, 7, 12)
        output, weights = case.parts(built(x, longer), "output", "weights")
        case.shape(weights, (2, 3, 5, 7), what="weights for a memory of 7 tokens")
        case.close(output, oracle(module, x, longer)[0], what="output for a memory of 7 tokens")
    with case(
        "the mask reaches every head",
        points=2,
        hint="pass the mask on; (T, S) and (B, 1, 1, S) both broadcast",
    ):
        built, module = loaded(case, answer, 12, 3)
        x = case.randn(2, 5, 12)
        causal = torch.ones(5, 5).tril().bool()
        output, _ = case.parts(built(x, mask=causal), "output", "weights")
        keep = causal[None]
        case.close(
            output,
            oracle(module, x, keep=keep)[0],
            what="output",
            mistakes=module_mistakes(module, x, keep=keep),
        )
        padding = torch.tensor([[True] * 5, [True, True, False, False, False]])
        output, _ = case.parts(built(x, mask=padding[:, None, None]), "output", "weights")
        keep = padding[:, None].expand(2, 5, 5)
        case.close(
            output,
            oracle(module, x, keep=keep)[0],
            what="output",
            mistakes=module_mistakes(module, x, keep=keep),
        )
    with case("a query that may see nothing gets the output's bias", points=1, hint="use your masked_attention"):
        built, module = loaded(case, answer, 12, 3)
        output, _ = case.parts(
            built(case.randn(1, 3, 12), mask=torch.zeros(3, 3, dtype=torch.bool)), "output", "weights"
        )
        case.close(output, module.out_proj.bias.detach().expand(1, 3, 12), what="output")
    with case("other sizes, one head among them", points=1, hint="take every size from the arguments"):
        for d_model, heads in ((8, 1), (8, 8), (20, 5)):
            built, module = loaded(case, answer, d_model, heads)
            x = case.randn(3, 4, d_model)
            output, _ = case.parts(built(x), "output", "weights")
            what = f"output with d_model = {d_model}, num_heads = {heads}"
            case.close(output, oracle(module, x)[0], what=what, mistakes=module_mistakes(module, x))
    with case("every projection learns", points=2, hint="nothing is detached, and each projection is used once"):
        built, _ = loaded(case, answer, 12, 3)
        gradients = built.parameter_gradients(case.randn(2, 5, 12), output=0, upstream=case.randn(2, 5, 12))
        silent = [
            name
            for name, gradient in gradients.items()
            if gradient is None or (name != "k_proj.bias" and not gradient.any())  # a bias of the keys shifts nothing
        ]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
    with case("num_heads must divide d_model: ValueError", points=1, hint="check it first, and say both numbers"):
        try:
            answer(10, 3)
        except ValueError:
            pass
        else:
            case.true(
                False,
                "MultiHeadAttention(10, 3) raises no ValueError: 10 features cannot be split among 3 heads",
            )
    with case("the inputs stay as they were", points=1, hint="x = x + y makes a new tensor; x += y does not"):
        built, _ = loaded(case, answer, 12, 3)
        case.unchanged(built, case.randn(2, 5, 12), case.randn(2, 4, 12))


@check("cross-attention", points=8)
def cross_attention(answer, case):
    """Against `nn.MultiheadAttention`, and by changing what must not matter."""
    prefix = "attention."
    with case("one output for each query", points=1, hint="the memory's length shows only in the weights"):
        output, weights = case.parts(answer(12, 3)(case.randn(2, 4, 12), case.randn(2, 6, 12)), "output", "weights")
        case.shape(output, (2, 4, 12), what="output")
        case.shape(weights, (2, 3, 4, 6), what="weights")
    with case("x asks, the memory answers", points=3, hint="in MultiHeadAttention the memory is the second argument"):
        built, module = loaded(case, answer, 12, 3, prefix)
        x, memory = case.randn(2, 5, 12), case.randn(2, 5, 12)
        output, _ = case.parts(built(x, memory), "output", "weights")
        expected = oracle(module, x, memory)[0]
        case.close(output, expected, what="output", mistakes=module_mistakes(module, x, memory))
    with case(
        "padding in the memory gets no weight",
        points=1,
        hint="your padding_mask, over the memory's positions",
    ):
        built, _ = loaded(case, answer, 12, 3, prefix)
        lengths = torch.tensor([2, 5])
        _, weights = case.parts(built(case.randn(2, 3, 12), case.randn(2, 5, 12), lengths), "output", "weights")
        case.shape(weights, (2, 3, 3, 5), what="weights")
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
        output, _ = case.parts(built(x, memory, lengths), "output", "weights")
        keep = (torch.arange(6) < lengths[:, None])[:, None].expand(2, 4, 6)
        mistakes = {
            "the lengths are not used": oracle(module, x, memory)[0],
            "the mask has the wrong sense: True belongs to real tokens": oracle(module, x, memory, ~keep)[0],
            "the lengths are taken one too long (< or <=?)": (
                lambda: oracle(module, x, memory, (torch.arange(6) <= lengths[:, None])[:, None].expand(2, 4, 6))[0]
            ),
        }
        case.close(output, oracle(module, x, memory, keep)[0], what="output", mistakes=mistakes)
        spoilt = memory.clone()
        spoilt[0, 3:], spoilt[1, 5:] = 1e3, -1e3
        again, _ = case.parts(built(x, spoilt, lengths), "output", "weights")
        case.close(again, output, what="output after the padding was overwritten")
    with case("without lengths the whole memory is visible", points=1, hint="memory_lengths=None means no mask"):
        built, module = loaded(case, answer, 12, 3, prefix)
        x, memory = case.randn(1, 3, 12), case.randn(1, 5, 12)
        _, weights = case.parts(built(x, memory), "output", "weights")
        case.close(weights, oracle(module, x, memory)[1], what="weights")


@check("attention-entropy", points=6)
def attention_entropy(answer, case):
    """Against `torch.distributions.Categorical`, and the two extremes."""

    def nats(weights):
        return torch.distributions.Categorical(probs=weights).entropy()

    def mistakes_for(weights):
        logs = weights.clamp_min(1e-30).log2()
        return {
            "the entropy is in nats: use log2 to measure in bits": nats(weights),
            "the sign is wrong: entropy is never negative": -nats(weights) / math.log(2),
            "this is the mean over the keys, not the sum": nats(weights) / math.log(2) / weights.shape[-1],
            "the sum runs over the wrong axis: over the queries": -(weights * logs).sum(-2),
            "the sum runs over queries and keys: one number is due for each query": -(weights * logs).sum((-2, -1)),
            "the factor p in front of log2 p is missing": -logs.sum(-1),
        }

    with case("one number for each query", points=1, hint="sum over the keys, the last axis"):
        weights = case.randn(2, 3, 4, 5).softmax(-1)
        entropy = answer(weights)
        case.shape(entropy, (2, 3, 4), what="the entropy")
    with case("the same weight for 8 keys: 3 bits", points=1, hint="log2 8 = 3"):
        weights = torch.full((8, 8), 1 / 8)
        case.close(answer(weights), torch.full((8,), 3.0), what="the entropy", mistakes=mistakes_for(weights))
    with case("all weight on one key: 0 bits, not NaN", points=2, hint="0 · log2 0 counts as 0: treat p = 0 apart"):
        entropy = answer(torch.eye(5))
        case.finite(entropy, what="the entropy")
        case.close(entropy, torch.zeros(5), what="the entropy")
    with case("agrees with torch.distributions", points=1, hint="-Σ p log2 p, summed over the keys"):
        weights = (2 * case.randn(2, 3, 6, 6)).softmax(-1)
        expected = nats(weights) / math.log(2)
        case.close(answer(weights), expected, what="the entropy", mistakes=mistakes_for(weights))
    with case("causal maps and rows of zeros", points=1, hint="a row without any weight has entropy 0"):
        weights = case.randn(4, 4).masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf).softmax(-1)
        expected = torch.cat([nats(weights) / math.log(2), torch.zeros(1)])
        case.close(answer(torch.cat([weights, torch.zeros(1, 4)])), expected, what="the entropy")


@check("character-model", points=9)
def character_model(answer, case):
    """By the properties that any causal language model has; each runs on a small model with random weights."""

    def build(vocab=11, d_model=16, heads=2, context=8):
        built = answer(vocab, d_model, heads, context).eval()
        # Larger weights than a fresh model has, so that every effect stands clear of rounding.
        state = {
            name: value + 0.2 * case.randn(*value.shape) if value.is_floating_point() else value
            for name, value in built.state_dict().items()
        }
        built.load_state_dict(state)
        return built

    def same(a, b):
        return torch.allclose(a, b, rtol=0, atol=1e-5)

    def logits_of(built, tokens):
        return case.parts(built(tokens), "logits", "weights")[0]

    with case(
        "logits (B, T, vocab_size) and weights (B, H, T, T)",
        points=1,
        hint="the head maps d_model to the vocabulary",
    ):
        logits, weights = case.parts(build()(case.randint(0, 11, (3, 8))), "logits", "weights")
        case.shape(logits, (3, 8, 11), what="logits")
        case.shape(weights, (3, 2, 8, 8), what="weights")
    with case("shorter sequences than the context", points=1, hint="take only the first T position embeddings"):
        case.shape(logits_of(build(), case.randint(0, 11, (2, 3))), (2, 3, 11), what="logits")
        case.shape(logits_of(build(), case.randint(0, 11, (2, 1))), (2, 1, 11), what="logits")
    with case("no look into the future", points=2, hint="pass causal_mask(T) to the attention"):
        built, tokens = build(), case.randint(0, 11, (4, 8))
        other = tokens.clone()
        other[:, 5:] = (other[:, 5:] + 1 + case.randint(0, 9, (4, 3))) % 11
        before, after = logits_of(built, tokens), logits_of(built, other)
        case.true(
            same(before[:, :5], after[:, :5]),
            "the logits of positions 0 … 4 change when only later tokens change: the model sees the future, "
            "because the causal mask is missing or has the wrong sense",
        )
    with case("the past counts", points=1, hint="the attention's output must reach the logits"):
        built, tokens = build(), case.randint(0, 11, (4, 8))
        other = tokens.clone()
        other[:, :4] = (other[:, :4] + 1) % 11
        case.true(
            not same(logits_of(built, tokens)[:, -1], logits_of(built, other)[:, -1]),
            "the last logits do not change when an earlier token changes: the past is not used (is the attention's "
            "output used, or does the mask hide too much?)",
        )
    with case("the order of the past counts", points=1, hint="add an embedding of the position to that of the token"):
        built, tokens = build(), torch.tensor([[1, 2, 3, 4, 5], [6, 0, 9, 8, 7]])
        case.true(
            not same(logits_of(built, tokens)[:, -1], logits_of(built, tokens[:, [2, 0, 1, 3, 4]])[:, -1]),
            "the last logits do not change when earlier tokens change places: the model does not know positions "
            "(is the position embedding missing?)",
        )
    with case("the attention maps are causal and sum to 1", points=1, hint="return the weights of your attention"):
        _, weights = case.parts(build()(case.randint(0, 11, (2, 8))), "logits", "weights")
        case.close(weights.sum(-1), torch.ones(2, 2, 8), what="the sum of each query's weights")
        case.true(
            (weights.triu(1) == 0).all(),
            "some query gives weight to a later token: the model sees the future",
        )
    with case("one batch can be learnt by heart", points=2, hint="raw logits: no softmax, no ReLU at the end"):
        loss = fit_one_batch(answer(11, 32, 2, 8), case.randint(0, 11, (4, 9)))
        case.true(
            loss < 0.3,
            f"after 120 steps on one batch of 4 sequences the loss is {loss:.2f}, where below 0.3 is usual. Are the "
            "logits raw (no softmax)? Does x + attention(x) reach them? Is anything detached?",
        )


def fit_one_batch(built, tokens, steps=120, lr=0.02):
    """Train a module through its state and gradients alone; return the last cross-entropy in nats."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    values = built.parameters()
    optimizer = torch.optim.Adam(values.values(), lr=lr)
    for _ in range(steps):
        logits = built(inputs)[0].detach().requires_grad_()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        (upstream,) = torch.autograd.grad(loss, logits)
        gradients = built.parameter_gradients(inputs, output=0, upstream=upstream)
        for name, value in values.items():
            value.grad = gradients[name]
        optimizer.step()
        built.load_state_dict(built.state_dict() | values)
    return loss.item()


@check("quiz", points=5)
def quiz(answer, case):
    """Every right answer is computed here, by torch or by counting."""

    def answered(key):
        given = answer()
        case.true(isinstance(given, dict), "quiz must return a dictionary")
        case.true(given.get(key) is not None, f"{key} has no answer yet: replace None")
        return given[key]

    with case("1: learned numbers", points=1, hint="four linear maps with bias; does the number of heads matter?"):
        right = sum(p.numel() for p in nn.MultiheadAttention(512, 8).parameters())
        weights = nn.Linear(512, 512).weight.numel()
        mistakes = {
            "that leaves out the biases": 4 * weights,
            "that counts q, k and v only; the output projection has parameters too": 3 * (weights + 512),
            "that counts q, k and v only, and leaves out the biases": 3 * weights,
            "the heads share the d_model features, so their number does not multiply the parameters": 8 * right,
        }
        case.equal(answered("parameters"), right, what="your number", mistakes=mistakes)
    with case("2: memory of the scores", points=1, hint="the scores have shape (B, H, T, S)"):
        right = (
            torch.empty(1, 4, 4096, 4096, device="meta").numel() / torch.empty(1, 8, 1024, 1024, device="meta").numel()
        )
        mistakes = {
            "that forgets that there are fewer heads": 16,
            "that grows with T, but the scores grow with T²": 2,
            "that grows with T, but the scores grow with T², and there are fewer heads": 4,
            "that goes the wrong way: is it more memory, or less?": 1 / right,
        }
        case.equal(answered("memory_factor"), right, what="your factor", mistakes=mistakes)
    with case(
        "3: spread of a dot product",
        points=1,
        hint="variances of independent terms add; then the square root",
    ):
        right = math.sqrt(256)
        mistakes = {"that is the variance; the question asks for the standard deviation": 256}
        case.equal(answered("score_std"), right, what="your number", mistakes=mistakes)
    with case("4: pairs under a causal mask", points=1, hint="1 + 2 + … + 10"):
        right = int(torch.ones(10, 10).tril().sum())
        mistakes = {
            "that leaves out the diagonal: a position sees itself": 45,
            "that counts all pairs, masked ones too": 100,
            "that is half of all pairs; the diagonal does not halve": 50,
        }
        case.equal(answered("causal_pairs"), right, what="your number", mistakes=mistakes)
    with case("5: shuffled tokens", points=1, hint="does a query care in which order the keys come?"):
        x, order = case.randn(1, 6, 8), torch.tensor([3, 0, 5, 1, 4, 2])
        plain = F.scaled_dot_product_attention(x, x, x)
        shuffled = F.scaled_dot_product_attention(x[:, order], x[:, order], x[:, order])
        outcomes = {
            "unchanged": torch.allclose(shuffled, plain, atol=1e-5),
            "shuffled": torch.allclose(shuffled, plain[:, order], atol=1e-5),
        }
        right = next((name for name, holds in outcomes.items() if holds), "different")
        mistakes = {
            "each query keeps its own output, but the queries themselves have moved": "unchanged",
            "look at one query: its scores are the same numbers in another order, and so is its weighted mean": (
                "different"
            ),
        }
        case.equal(answered("shuffled"), right, what="your word", mistakes=mistakes)
