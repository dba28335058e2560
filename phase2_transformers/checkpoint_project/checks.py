"""The checks of the Phase 2 checkpoint project.

The oracles are torch's own attention, layers, optimizer and schedules, brute force, and identities. Shapes: B texts,
T tokens, H heads, D = d_model, d = D / H.

Several answers are tried by a probe, which runs beside the answer: it makes a model, calls the answer, and returns
values. The other processes of a training are played by the probe: what another rank would have sent was recorded
before.
"""

import importlib.util
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common import runtime
from common.checks import Answer, alike, always, check

# Library functions that would be the whole answer (see `check`).
LIBRARY_ATTENTION = (
    "scaled_dot_product",
    "multi_head_attention",
    "MultiheadAttention(",
    "flex_attention",
    "nn.Transformer",
)
LIBRARY_ADAM = ("optim.Adam", "_functional", "_single_tensor", "_multi_tensor", "_fused")


# -- attention --------------------------------------------------------------------------------------------


def torch_attention(q, k, v, mask=None, **options):
    """Return what torch's own attention computes."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def attention_mistakes(q, k, v, mask=None):
    """Return the outputs that common mistakes lead to, under the sentence that names each."""
    d, shown = q.shape[-1], torch_attention
    scores = q @ k.transpose(-2, -1) / d**0.5
    found = {
        "the scores are not divided by √d": lambda: shown(q, k, v, mask, scale=1.0),
        "the scores are divided by d, not by √d": lambda: shown(q, k, v, mask, scale=1 / d),
        "the scores are multiplied by √d instead of divided": lambda: shown(q, k, v, mask, scale=d**0.5),
        "the scores are divided by the root of the number of keys; d is the size of one key": (
            lambda: shown(q, k, v, mask, scale=k.shape[-2] ** -0.5)
        ),
        "the scores are divided by the root of the size of a value; d is the size of one key": (
            lambda: shown(q, k, v, mask, scale=v.shape[-1] ** -0.5)
        ),
        "queries see earlier keys only: there is a causal mask that nobody asked for": lambda: (
            scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
            .masked_fill(torch.zeros(()).bool() if mask is None else ~mask, -torch.inf)
            .softmax(-1)
            .nan_to_num()
            @ v
        ),
        "the softmax runs over the queries; the keys are the last axis": (
            lambda: (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-2).nan_to_num() @ v
        ),
    }
    if mask is None:
        return found
    weights = shown(q, k, torch.eye(k.shape[-2], dtype=q.dtype))
    return found | {
        "the mask is not used: this is the result without it": lambda: shown(q, k, v),
        "the mask has the wrong sense: True means that a query may attend to a key": lambda: shown(q, k, v, ~mask),
        "the mask is applied after the softmax, so the weights that remain do not sum to 1": lambda: (
            (weights * mask) @ v
        ),
        "masked scores are set to 0 instead of -inf: e⁰ = 1 still gets weight": (
            lambda: (scores * mask).softmax(-1) @ v
        ),
        "the mask is added to the scores, as 0 and 1": lambda: (scores + mask.float()).softmax(-1) @ v,
    }


@check("attention", points=5, from_scratch=LIBRARY_ATTENTION)
def attention(answer, case):
    """Against `torch.nn.functional.scaled_dot_product_attention`."""
    with case("agrees with torch", points=1, hint="softmax(q kᵀ / √d) v; return the output alone"):
        q, k, v = case.randn(2, 3, 4, 16), case.randn(2, 3, 5, 16), case.randn(2, 3, 5, 6)
        result = answer(q, k, v)
        both = "the result is a tuple; return the output alone, without the weights"
        case.true(not isinstance(result, tuple), both)
        case.close(result, torch_attention(q, k, v), what="output", mistakes=attention_mistakes(q, k, v))
        result = answer(100 * q, k, v)
        case.finite(result, what="the output for scores of some hundreds, whose exponentials overflow,")
        expected = torch_attention(100 * q, k, v)
        case.close(result, expected, what="the output for scores of some hundreds", tolerance=1e-3)
    with case("any number of leading axes", points=1, hint="count axes from the end: transpose(-2, -1), dim=-1"):
        for lead in ((), (4,), (2, 2, 3)):
            q, k, v = case.randn(*lead, 4, 6), case.randn(*lead, 5, 6), case.randn(*lead, 5, 6)
            what, mistakes = f"output for q of shape {tuple(q.shape)}", attention_mistakes(q, k, v)
            case.close(answer(q, k, v), torch_attention(q, k, v), what=what, mistakes=mistakes)
    with case("True in the mask means: may attend", points=1, hint="-inf where the mask is False, before the softmax"):
        q, k, v = case.randn(2, 3, 4, 8), case.randn(2, 3, 5, 8), case.randn(2, 3, 5, 6)
        mask = torch.tensor([1, 1, 0, 1, 0]).bool() | (case.randn(2, 1, 4, 5) > 1)
        case.close(answer(q, k, v, mask), torch_attention(q, k, v, mask), mistakes=attention_mistakes(q, k, v, mask))
    with case(
        "a query that may see nothing gets 0", points=1, hint="0/0 is NaN; which weights should there be instead?"
    ):
        q, k, v = case.randn(3, 4, 8), case.randn(3, 5, 8), case.randn(3, 5, 8)
        mask = torch.tensor([1, 0, 1]).bool()[:, None, None].expand(3, 4, 5)
        result = answer(q, k, v, mask)
        case.finite(result)
        mean = {
            "a query that may see nothing gets the mean of all values: those that are hidden": v[1].mean(0).expand(4, 8)
        }
        case.close(result[1], torch.zeros(4, 8), what="the output of such a query", mistakes=mean)
        all_zero = {"one query that may see nothing makes the whole output 0": torch.zeros(3, 4, 8)}
        case.close(result, torch_attention(q, k, v) * mask[:, :, :1], what="output", mistakes=all_zero)
    with case("gradients flow, and the inputs stay", points=1, hint="tensor operations only; nothing in place"):
        inputs, upstream = (case.randn(2, 4, 8), case.randn(2, 5, 8), case.randn(2, 5, 8)), case.randn(2, 4, 8)
        mask = torch.arange(5) < torch.tensor([0, 3])[:, None, None]
        case.unchanged(answer, *inputs, mask)
        found = answer.gradients(*inputs, mask, upstream=upstream)
        expected = Answer(torch_attention).gradients(*inputs, mask, upstream=upstream)
        for name, ours, theirs in zip("qkv", found, expected, strict=True):
            case.finite(ours, what=f"the gradient for {name}")
            case.close(ours, theirs, what=f"the gradient for {name}")


def fill(case, built):
    """Give a module weights that are larger than fresh ones, so that every effect stands clear of rounding; return
    them."""
    values = {name: 0.3 * case.randn(*value.shape) for name, value in sorted(built.parameters().items())}
    values = {name: value + ("norm" in name and name.endswith("weight")) for name, value in values.items()}
    built.load_state_dict(values)
    return values


def demand_names(case, built, names):
    """Demand exactly these parameters."""
    own = set(built.parameters())
    missing, more = sorted(set(names) - own), sorted(own - set(names))
    case.true(not missing, f"the parameters {', '.join(missing)} are missing; keep to the names in the docstring")
    bias = " (bias=False)" if any(name.endswith("bias") for name in more) else ""
    case.true(not more, f"there are parameters that the docstring does not ask for: {', '.join(more)}{bias}")


QKV = ("q", "k", "v", "out")


def torch_heads(values, d_model, heads, prefix=""):
    """Return torch's multi-head attention with these weights."""
    module = nn.MultiheadAttention(d_model, heads, bias=False, batch_first=True).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([values[f"{prefix}{name}.weight"] for name in "qkv"]))
        module.out_proj.weight.copy_(values[f"{prefix}out.weight"])
    return module


def heads_mistakes(values, x, heads, mask=None):
    """Return what common mistakes in splitting and joining heads lead to."""
    B, T, D = x.shape
    q, k, v = (x @ values[f"{name}.weight"].T for name in "qkv")
    out = values["out.weight"].T

    def by(split, join, **options):
        return lambda: join(torch_attention(split(q), split(k), split(v), mask, **options)) @ out

    def split(t):
        return t.view(B, T, heads, -1).transpose(1, 2)

    def join(t):
        return t.transpose(1, 2).reshape(B, T, D)

    def strided(t):
        return t.view(B, T, -1, heads).permute(0, 3, 1, 2)

    hidden = {
        "the mask is not used": lambda: join(torch_attention(split(q), split(k), split(v))) @ out,
        "the mask has the wrong sense: True means that a query may attend to a key": (
            lambda: join(torch_attention(split(q), split(k), split(v), ~mask)) @ out
        ),
    }
    return (hidden if mask is not None else {}) | {
        "(B, T, D) is reshaped to (B, H, T, d) directly, which mixes tokens and features: split D, then transpose": (
            by(lambda t: t.reshape(B, heads, T, -1), lambda t: t.reshape(B, T, D))
        ),
        "(B, T, D) is split into (B, H, T, d) directly, which mixes tokens and heads: split D, then transpose": (
            by(lambda t: t.reshape(B, heads, T, -1), join)
        ),
        "the heads are joined without exchanging the axes of heads and tokens back": by(
            split, lambda t: t.reshape(B, T, D)
        ),
        "head 0 gets every H-th feature; it gets the first d": by(
            strided, lambda t: t.permute(0, 2, 3, 1).reshape(B, T, D)
        ),
        "head 0 is made of every H-th feature; it gets the first d": by(strided, join),
        "the heads attend to each other, each token for itself: exchange the axes of heads and tokens before": (
            lambda: torch_attention(*(t.view(B, T, heads, -1) for t in (q, k, v))).reshape(B, T, D) @ out
        ),
        "the heads are joined in another order than that in which they were split": (
            by(split, lambda t: t.permute(0, 2, 3, 1).reshape(B, T, D))
        ),
        "there is only one head": by(lambda t: t[:, None], lambda t: t[:, 0]),
        "the scores are divided by √D; d = D / H is the size of one key": by(split, join, scale=D**-0.5),
        "queries and keys are exchanged": (lambda: join(torch_attention(split(k), split(q), split(v), mask)) @ out),
        "the values are the input itself; apply the map v to it": (
            lambda: join(torch_attention(split(q), split(k), split(x), mask)) @ out
        ),
        "the values come from the map of the keys; they have a map of their own": (
            lambda: join(torch_attention(split(q), split(k), split(k), mask)) @ out
        ),
        "queries, keys and values come from one and the same linear map; each has its own": (
            lambda: join(torch_attention(split(q), split(q), split(q), mask)) @ out
        ),
        "the input is added to the result; that is done in the encoder layer": (
            lambda: x + join(torch_attention(split(q), split(k), split(v), mask)) @ out
        ),
        "H and d are exchanged: there are d heads of H features each": by(
            lambda t: t.view(B, T, D // heads, heads).transpose(1, 2), join
        ),
        "the last linear map, `out`, is missing": lambda: join(torch_attention(split(q), split(k), split(v), mask)),
        "the weights are used transposed: a linear map is x Wᵀ": lambda: (
            join(torch_attention(*(split(x @ values[f"{name}.weight"]) for name in "qkv"), mask)) @ out.T
        ),
    }


@check("multi-head-attention", points=5, from_scratch=LIBRARY_ATTENTION)
def multi_head_attention(answer, case):
    """Against `nn.MultiheadAttention`, with copied weights."""

    def demand(B, T, D, heads, mask=None):
        built = answer(D, heads).eval()
        values, x = fill(case, built), case.randn(B, T, D)
        module = torch_heads(values, D, heads)
        hidden = None if mask is None else ~mask.expand(B, heads, T, T).flatten(0, 1)
        expected = module(x, x, x, attn_mask=hidden, need_weights=False)[0]
        result = built(x) if mask is None else built(x, mask)
        case.close(result, expected, mistakes=heads_mistakes(values, x, heads, mask))

    with case("four linear maps without bias: q, k, v, out", points=1, hint="nn.Linear(d_model, d_model, bias=False)"):
        built = answer(12, 3)
        demand_names(case, built, [f"{name}.weight" for name in QKV])
        for name, value in built.parameters().items():
            case.shape(value, (12, 12), what=name)
    with case("agrees with torch", points=1, hint="(B, T, D) → (B, T, H, d) → (B, H, T, d), and back"):
        demand(2, 5, 12, 3)
        demand(3, 4, 16, 2)
    with case("the mask reaches every head", points=1, hint="pass the mask on to attention"):
        demand(2, 5, 12, 3, torch.ones(5, 5).tril().bool())
        demand(2, 5, 12, 3, (torch.arange(5) < torch.tensor([3, 5])[:, None])[:, None, None])
    with case("gradients reach all weights", points=1, hint="no .detach(), no torch.no_grad()"):
        built, x, upstream = answer(12, 3), case.randn(2, 5, 12), case.randn(2, 5, 12)
        values = fill(case, built)
        module = torch_heads(values, 12, 3)
        (module(x, x, x, need_weights=False)[0] * upstream).sum().backward()
        found = built.parameter_gradients(x, upstream=upstream)
        silent = [name for name in values if found[name] is None]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}")
        case.close(found["out.weight"], module.out_proj.weight.grad, what="the gradient of out.weight")
        joint = torch.cat([found[f"{name}.weight"] for name in "qkv"])
        case.close(joint, module.in_proj_weight.grad, what="the gradients of q, k and v")
    with case("d_model must be a multiple of heads", points=1, hint="raise ValueError before anything is built"):
        case.true(refuses(answer, 10, 4), "d_model = 10 and heads = 4 are accepted; raise a ValueError")


def refuses(answer, *arguments):
    """Whether a call raises ValueError."""
    try:
        answer(*arguments)
    except ValueError:
        return True
    return False


# -- positions --------------------------------------------------------------------------------------------


def table(T, D, angle=lambda t, i, D: t / 10000 ** (2 * i / D), even=math.sin, odd=math.cos):
    """Return a table of positions, entry by entry in double precision, as the paper defines it or otherwise."""
    rows = [[(odd if column % 2 else even)(angle(t, column // 2, D)) for column in range(D)] for t in range(T)]
    return torch.tensor(rows, dtype=torch.float64).float()


@check("positions", points=3)
def positions(answer, case):
    """Against the definition, entry by entry."""

    def demand(T, D, rows=None):
        right, result = table(T, D), answer(T, D)
        found = {
            "sine and cosine are exchanged: sine comes first": table(T, D, even=math.cos, odd=math.sin),
            "all columns are sines; the odd ones are cosines": table(T, D, odd=math.sin),
            "the sines stand on the left and the cosines on the right; they alternate": torch.cat(
                [right[:, 0::2], right[:, 1::2]], dim=1
            ),
            "the exponent is i/D; it is 2i/D": table(T, D, lambda t, i, D: t / 10000 ** (i / D)),
            "the exponent is the number of the column, odd for cosines; both columns of a pair have 2i": torch.tensor(
                [[(math.cos if c % 2 else math.sin)(t / 10000 ** (c / D)) for c in range(D)] for t in range(T)]
            ),
            "the exponent is 4i/D: 2i is doubled once more": table(T, D, lambda t, i, D: t / 10000 ** (4 * i / D)),
            "t is multiplied by 10000^(2i/D); divide": table(T, D, lambda t, i, D: t * 10000 ** (2 * i / D)),
            "the first position is 0, not 1": table(T + 1, D)[1:],
            "the base is 1000; it is 10000": table(T, D, lambda t, i, D: t / 1000 ** (2 * i / D)),
            "the last exponent is 1: 2i is divided by D - 2, not by D": table(
                T, D, lambda t, i, D: t / 10000 ** (2 * i / max(1, D - 2))
            ),
            "all frequencies are 1: the exponent 2i/D is cut to a whole number": table(T, D, lambda t, i, D: t),
            "the exponent is 2i without the division by D": table(T, D, lambda t, i, D: t / 10000.0 ** (2 * i)),
        }
        case.shape(
            result, (T, D), mistakes={"rows and columns are exchanged": (D, T), "there is an extra axis": (1, T, D)}
        )
        # A float32 angle of some hundred radians is rounded in its fifth decimal.
        case.close(result, right, what="the table", mistakes=found, tolerance=1e-6 * max(20, T))

    with case("one row for each position, float32", points=1, hint="(length, d_model)"):
        case.shape(
            answer(3, 8),
            (3, 8),
            mistakes={"rows and columns are exchanged": (8, 3), "there is an extra axis": (1, 3, 8)},
        )
        case.dtype(answer(3, 8), torch.float32)
    with case("sines and cosines alternate", points=1, hint="column 2i: sine; column 2i + 1: cosine of the same angle"):
        demand(7, 8)
        demand(5, 2)
    with case("long texts, many features", points=1, hint="t / 10000^(2i/D), for every t and i"):
        demand(int(case.randint(200, 300)), 64)


# -- the layer --------------------------------------------------------------------------------------------

LAYER = (
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "up.weight", "up.bias", "down.weight", "down.bias"),
    *(f"attention.{name}.weight" for name in QKV),
)


def copy_layer(layer, values, prefix=""):
    """Copy weights into one of torch's layers."""
    parts = {"linear1": "up", "linear2": "down", "norm1": "norm1", "norm2": "norm2"}
    state = {
        f"{theirs}.{p}": values[f"{prefix}{ours}.{p}"] for theirs, ours in parts.items() for p in ("weight", "bias")
    }
    joint = torch.cat([values[f"{prefix}attention.{name}.weight"] for name in "qkv"])
    state["self_attn.in_proj_weight"], state["self_attn.in_proj_bias"] = joint, torch.zeros(len(joint))
    state["self_attn.out_proj.weight"] = values[f"{prefix}attention.out.weight"]
    state["self_attn.out_proj.bias"] = torch.zeros(len(joint) // 3)
    layer.load_state_dict(state)


def torch_layer(values, D, heads, d_ff, norm_first=True, activation="gelu"):
    """Return torch's layer with these weights."""
    layer = nn.TransformerEncoderLayer(D, heads, d_ff, 0.0, activation, batch_first=True, norm_first=norm_first).eval()
    copy_layer(layer, values)
    return layer


def layer_mistakes(values, x, heads, d_ff, hidden=None):
    """Return what common mistakes lead to."""
    D = x.shape[-1]
    right = torch_layer(values, D, heads, d_ff)

    def by(**options):
        return lambda: torch_layer(values, D, heads, d_ff, **options)(x, src_key_padding_mask=hidden)

    def attend(t):
        return right.self_attn(t, t, t, key_padding_mask=hidden, need_weights=False)[0]

    def forward(t):
        return right.linear2(F.gelu(right.linear1(t)))

    def sum_of(first, second):
        def made():
            y = first(x)
            return second(y)

        return made

    def by_norm(normed):
        """Both halves with another norm: normed(x) is scaled and shifted by the norm's weights."""
        one, two = (lambda t, n=n: normed(t) * values[f"norm{n}.weight"] + values[f"norm{n}.bias"] for n in (1, 2))
        return sum_of(lambda t: t + attend(one(t)), lambda t: t + forward(two(t)))

    def over_tokens(t):
        return F.layer_norm(t.mT, t.mT.shape[-1:]).mT

    found = {
        "the norms come after the sums (post-norm); here each stands before its half": by(norm_first=False),
        "the activation is a ReLU; it is a GELU": by(activation="relu"),
        "the GELU is approximated by tanh; use the exact one": by(activation=partial(F.gelu, approximate="tanh")),
        "the residual connection around the attention is missing": (
            sum_of(lambda t: attend(right.norm1(t)), lambda t: t + forward(right.norm2(t)))
        ),
        "the residual connection around the feed-forward part is missing": (
            sum_of(lambda t: t + attend(right.norm1(t)), lambda t: forward(right.norm2(t)))
        ),
        "norm1 is used twice, norm2 never": sum_of(
            lambda t: t + attend(right.norm1(t)), lambda t: t + forward(right.norm1(t))
        ),
        "the residual is taken after the norm: the sum is norm(x) + f(norm(x)), where x + f(norm(x)) is asked": (
            sum_of(
                lambda t: right.norm1(t) + attend(right.norm1(t)), lambda t: right.norm2(t) + forward(right.norm2(t))
            )
        ),
        "both halves start from the same x; the second starts from what the first has made": (
            lambda: x + attend(right.norm1(x)) + forward(right.norm2(x))
        ),
        "norm1 and norm2 are exchanged": sum_of(
            lambda t: t + attend(right.norm2(t)), lambda t: t + forward(right.norm1(t))
        ),
        "the norm before the attention is missing": sum_of(
            lambda t: t + attend(t), lambda t: t + forward(right.norm2(t))
        ),
        "the norm before the feed-forward part is missing": sum_of(
            lambda t: t + attend(right.norm1(t)), lambda t: t + forward(t)
        ),
        "the norms divide by the unbiased deviation, by D - 1; use nn.LayerNorm": by_norm(
            lambda t: (t - t.mean(-1, keepdim=True)) / (t.std(-1, keepdim=True) + 5e-6)
        ),
        "the norms run over the tokens; nn.LayerNorm runs over the features of each token": by_norm(over_tokens),
        "the norms run over tokens and features together; nn.LayerNorm runs over the features of each token": by_norm(
            lambda t: F.layer_norm(t, t.shape[1:])
        ),
        "the GELU comes after `down`; it stands between `up` and `down`": sum_of(
            lambda t: t + attend(right.norm1(t)), lambda t: t + F.gelu(right.linear2(right.linear1(right.norm2(t))))
        ),
        "there are no norms": sum_of(lambda t: t + attend(t), lambda t: t + forward(t)),
        "there is no activation between `up` and `down`": (
            sum_of(lambda t: t + attend(right.norm1(t)), lambda t: t + right.linear2(right.linear1(right.norm2(t))))
        ),
        "the feed-forward part comes first": (
            sum_of(lambda t: t + forward(right.norm2(t)), lambda t: t + attend(right.norm1(t)))
        ),
    }
    for other in (1, 2, 3, 4, 6):
        if other != heads and D % other == 0:
            found[f"the attention has {other} heads, not the {heads} that were asked for"] = lambda other=other: (
                torch_layer(values, D, other, d_ff)(x, src_key_padding_mask=hidden)
            )
    if hidden is not None:
        found["the mask does not arrive at the attention"] = lambda: right(x)
    return found


@check("encoder-layer", points=5, from_scratch=LIBRARY_ATTENTION)
def encoder_layer(answer, case):
    """Against `nn.TransformerEncoderLayer(norm_first=True)`, with copied weights."""

    def demand(B, T, D, heads, d_ff, hidden=None):
        built = answer(D, heads, d_ff).eval()
        values, x = fill(case, built), case.randn(B, T, D)
        expected = torch_layer(values, D, heads, d_ff)(x, src_key_padding_mask=hidden)
        result = built(x) if hidden is None else built(x, ~hidden[:, None, None, :])
        case.close(result, expected, mistakes=layer_mistakes(values, x, heads, d_ff, hidden))

    with case("its parts have the names of the docstring", points=1, hint="norm1, attention, norm2, up, down"):
        demand_names(case, answer(12, 3, 20), LAYER)
    with case("agrees with torch's pre-norm layer", points=2, hint="x + f(norm(x)), twice"):
        demand(2, 5, 12, 3, 20)
        demand(3, 4, 8, 2, 40)
        case.unchanged(answer(12, 3, 20), case.randn(2, 5, 12))
    with case("the mask reaches the attention", points=1, hint="self.attention(..., mask)"):
        demand(2, 5, 12, 3, 20, torch.arange(5) >= torch.tensor([3, 5])[:, None])
    with case("dropout falls on what is added to x", points=1, hint="x + dropout(f(norm(x))): never on x itself"):
        built, plain, x = answer(12, 3, 20, 1.0), answer(12, 3, 20).eval(), case.randn(2, 5, 12)
        values = fill(case, built)
        plain.load_state_dict(values)
        expected = plain(x)  # the answer's own result, which another case judges
        case.close(built.eval()(x), expected, what="the result in evaluation mode", mistakes=always(
            "in evaluation mode there is dropout: use nn.Dropout, which eval() switches off (F.dropout: training=...)"
        ))  # fmt: skip
        right = torch_layer(values, 12, 3, 20)
        half = x + right.self_attn(right.norm1(x), right.norm1(x), right.norm1(x), need_weights=False)[0]
        mistakes = {
            "there is no dropout in training mode": expected,
            "x itself is dropped: all is 0 with a probability of 1": torch.zeros_like(x),
            "the attention's part is not dropped": half,
            "the feed-forward part is not dropped": x + right.linear2(F.gelu(right.linear1(right.norm2(x)))),
            "the feed-forward part is dropped before `down` only, whose bias is still added": x + values["down.bias"],
        }
        mistakes |= always(
            "with dropout 1 in training mode something else than x is left: does dropout get its probability, and is x "
            "itself left alone?"
        )
        case.close(
            built.train()(x),
            x,
            what="with dropout 1 in training mode, where only x is left, the result",
            mistakes=mistakes,
        )


# -- the classifier ---------------------------------------------------------------------------------------


@check("masked-mean", points=3)
def masked_mean(answer, case):
    """Against a loop over the texts."""

    def by_loop(x, real):
        return torch.stack(
            [x[b][real[b]].mean(0) if real[b].any() else torch.zeros(x.shape[-1]) for b in range(len(x))]
        )

    def mistakes(x, real):
        weights = real[..., None].float()
        return {
            "this is the mean over all T positions: padding counts": x.mean(1),
            "padding is not added, but the sum is divided by T instead of the number of real tokens": (
                x * weights
            ).mean(1),
            "this is the sum; divide by the number of real tokens": (x * weights).sum(1),
            "padding is added, and the sum divided by the number of real tokens": x.sum(1)
            / weights.sum(1).clamp(min=1),
            "this is the mean of the padding: the mask is used the wrong way round": (
                (x * (1 - weights)).sum(1) / (1 - weights).sum(1).clamp(min=1)
            ),
            "this is the largest value, not the mean": x.masked_fill(~real[..., None], -torch.inf).amax(1),
            "this is the first token alone": x[:, 0],
            "the sum is divided by the number of real tokens in the whole batch": (x * weights).sum(1) / weights.sum(),
            "one token too many is counted: the divisor is the number of real tokens plus 1": (
                (x * weights).sum(1) / (weights.sum(1) + 1)
            ),
            "this is the mean over all real tokens of the batch; each text has its own": (
                x[real].mean(0).expand(len(x), -1)
            ),
            "a text without tokens gets the mean of its padding": torch.where(
                real.any(1)[:, None], (x * weights).sum(1) / weights.sum(1), x.mean(1)
            ),
        }

    with case("the mean over the real tokens", points=1, hint="add up the real ones; divide by how many they are"):
        x, real = case.randn(4, 6, 5), torch.arange(6) < torch.tensor([6, 2, 5, 1])[:, None]
        case.shape(answer(x, real), (4, 5), mistakes={"the mean is over the features": (4, 6)})
        case.close(answer(x, real), by_loop(x, real), mistakes=mistakes(x, real))
    with case("padding may hold anything", points=1, hint="multiply by the mask, or fill with 0, before the sum"):
        x, real = case.randn(3, 7, 4), torch.arange(7) < torch.tensor([4, 3, 7])[:, None]
        loud = torch.where(real[..., None], x, 1000 * case.randn(3, 7, 4))
        case.close(answer(loud, real), by_loop(x, real), mistakes=mistakes(loud, real))
        case.unchanged(answer, loud, real)
    with case("a text without tokens gives zeros", points=1, hint="0/0 is NaN: divide by 1 at least"):
        x, real = case.randn(3, 4, 5), torch.arange(4) < torch.tensor([0, 3, 4])[:, None]
        result = answer(x, real)
        case.finite(result)
        case.close(result, by_loop(x, real), mistakes=mistakes(x, real))


def classifier_names(layers):
    """Return the names of all parameters of a classifier."""
    inner = (f"layers.{number}.{name}" for number in range(layers) for name in LAYER)
    return ("embed.weight", "norm.weight", "norm.bias", "head.weight", "head.bias", *inner)


def classify_by_torch(values, tokens, heads, layers, d_ff, change=""):
    """Return the logits of a classifier made of torch's layers; `change` names a mistake to make."""
    D = values["embed.weight"].shape[1]
    real = tokens != 0
    layer = nn.TransformerEncoderLayer(D, heads, d_ff, 0.0, "gelu", batch_first=True, norm_first=True)
    norm = None if change == "norm" else nn.LayerNorm(D)
    encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False).eval()
    for number in range(layers):
        copy_layer(encoder.layers[number], values, f"layers.{0 if change == 'shared' else number}.")
    if norm is not None:
        norm.load_state_dict({"weight": values["norm.weight"], "bias": values["norm.bias"]})
    scale = {"positions": 0.0, "loud": 1.0}.get(change, 0.05)
    T, places = tokens.shape[1], table(LONGEST, D)
    places = places[LONGEST - T :] if change == "end" else places[1 : T + 1] if change == "from 1" else places[:T]
    size = {"quiet": 0.05, "root": D**0.5}.get(change, 1.0)
    x = size * F.embedding(tokens, values["embed.weight"]) + scale * places
    if change == "unknown":
        real = tokens > 1
    if change == "blind":
        real = torch.ones_like(real)
    seen = {"attention": None, "inverted": real, "flipped": real}.get(change, ~real)
    if change in ("again", "each normed"):
        first = x
        for one in encoder.layers:
            x = one(first if change == "again" else x, src_key_padding_mask=seen)
            x = norm(x) if change == "each normed" else x
        x = x if change == "each normed" else norm(x)
    elif change == "queries":
        for one in encoder.layers:
            normed = one.norm1(x)
            x = x + one.self_attn(normed, normed, normed, need_weights=False)[0] * real[..., None]
            x = x + one.linear2(F.gelu(one.linear1(one.norm2(x))))
        x = norm(x)
    else:
        if change == "one":
            encoder.layers = encoder.layers[:1]
        if change == "late":
            encoder.norm = None
        x = encoder(x, src_key_padding_mask=seen)
    weights = torch.ones_like(real) if change == "pool" else ~real if change == "inverted" else real
    x = x.masked_fill(~weights[..., None], 0.0)
    pooled = x[:, 0] if change == "first" else x.sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
    pooled = norm(pooled) if change == "late" else pooled
    logits = F.linear(pooled, values["head.weight"], values["head.bias"])
    squeezed = {"softmax": logits.softmax(-1), "log": logits.log_softmax(-1), "sigmoid": logits.sigmoid()}
    return squeezed.get(change, logits)


LONGEST = 16  # max_length of the classifiers that are built here
CHANGES = {
    "softmax": "these are probabilities: cross_entropy applies a softmax itself, so return the raw logits",
    "log": "these are logarithms of probabilities; return the raw logits",
    "pool": "the mean counts padding: pool over the real tokens only",
    "queries": "the mask hides what padding sees, not padding itself: the keys are its last axis, (B, 1, 1, T)",
    "attention": "tokens attend to padding: pass the mask (B, 1, 1, T) to the layers",
    "norm": "the norm after the last layer is missing",
    "positions": "the positions are not added: the order of the words is lost",
    "loud": "the positions are not multiplied by 0.05",
    "first": "only the first token is read; pool over all real ones",
    "shared": "all layers have the weights of the first: build each anew",
    "sigmoid": "there is a sigmoid on the logits; return them raw",
    "quiet": "the embeddings are multiplied by 0.05, too: only the positions are",
    "root": "the embeddings are multiplied by √D; here they go in as they are",
    "end": "the positions are the last rows of the table; the first token has position 0",
    "from 1": "the positions are counted from 1; the first token has position 0",
    "unknown": "token 1 is taken for padding: it is [UNK], a real token; only 0 is padding",
    "inverted": "the mask has the wrong sense: True means a real token",
    "flipped": "the mask that the layers get has the wrong sense: True means a real token",
    "blind": "padding is recognised neither by the attention nor by the mean",
    "again": "every layer gets the embeddings; each should get what the layer before it has made",
    "one": "only the first layer is used",
    "each normed": "the last norm comes after every layer; it comes once, after the last one",
    "late": "the norm comes after the mean; it comes before it, on every token",
}


def draws(built, values, tokens, copies=64):
    """Return what differs from 0 of a logit in training mode that reads one feature of the mean, without bias.

    Dropout on what goes into the head makes it 0, or else scales it; so what is left varies among copies of one text
    only if there is dropout elsewhere, too.
    """
    head = torch.zeros_like(values["head.weight"])
    head[:, 0] = 1.0
    built.load_state_dict(values | {"head.weight": head, "head.bias": torch.zeros(len(head))})
    found = built.train()(tokens.expand(copies, -1))[:, 0]
    return found[found != 0]


def varies(found):
    """Whether these numbers differ by more than rounding."""
    return len(found) > 1 and bool(found.max() - found.min() > 1e-4 * found.abs().max())


def stays_behind(model, tokens):
    """Return whether a model on another device (one that computes shapes only) meets a tensor left on the CPU."""
    try:
        model.to("meta")(tokens.to("meta"))
    except RuntimeError as error:
        return "same device" in str(error) or "expected device" in str(error)
    except Exception:  # what such a device cannot do is no fault of the model
        return False
    return False


@check("text-classifier", points=7, from_scratch=LIBRARY_ATTENTION)
def text_classifier(answer, case):
    """Against `nn.TransformerEncoder` with copied weights, and by what padding and dropout may not do."""
    V, D, H, L, E = 30, 12, 3, 2, 20

    def build(**options):
        return answer(V, D, H, L, E, LONGEST, **options)

    def demand(built, values, tokens, what="the logits"):
        expected = classify_by_torch(values, tokens, H, L, E)
        mistakes = {
            sentence: (lambda c=c: classify_by_torch(values, tokens, H, L, E, c)) for c, sentence in CHANGES.items()
        }
        case.close(built(tokens), expected, what=what, mistakes=mistakes, tolerance=3e-5)

    with case("its parts have the names of the docstring", points=1, hint="embed, layers, norm, head"):
        built = build(classes=3)
        layers = {name.split(".")[1] for name in built.parameters() if name.startswith("layers.")}
        none = "the parameters below `layers` are missing: is it an nn.ModuleList? A plain list hides its layers"
        case.true(len(layers) > 0, none)
        case.true(len(layers) == L, f"of {L} layers {len(layers)} have parameters of their own: build each anew")
        demand_names(case, built, classifier_names(L))
        two = {"there are 2 classes, though 3 were asked for": (2, D)}
        case.shape(built.parameters()["head.weight"], (3, D), what="head.weight", mistakes=two)
        spread = answer(400, D, H, 1, E, LONGEST).parameters()["embed.weight"].std()
        case.true(
            0.043 < spread < 0.057,
            f"the embeddings have a standard deviation of {spread:.3f}; draw them from N(0, 0.05²)",
        )
        behind = built.probe(stays_behind, case.randint(1, V, (2, 5)))
        case.true(
            not behind,
            "when the model is moved to another device, as to a GPU, a tensor stays behind on the CPU: is the table of "
            "positions a buffer?",
        )
    with case("agrees with torch's encoder", points=2, hint="embed + 0.05 · positions, layers, norm, mean, head"):
        built = build().eval()
        values = fill(case, built)
        tokens = case.randint(1, V, (3, 9))
        tokens[1, 4] = 1  # [UNK] is no padding
        demand(built, values, tokens)
        demand(built, values, case.randint(1, V, (1, 1)), "the logits of a text of one token")
    with case("padding changes nothing", points=2, hint="real = tokens != 0: for the attention, and for the mean"):
        built = build().eval()
        values = fill(case, built)
        tokens = case.randint(1, V, (3, 9)) * (torch.arange(9) < torch.tensor([9, 4, 1])[:, None])
        demand(built, values, tokens)
        longer = F.pad(tokens, (0, 7))
        case.close(
            built(longer),
            classify_by_torch(values, tokens, H, L, E),
            what="the logits with more padding",
            tolerance=3e-5,
        )
    with case(
        "dropout in training only", points=1, hint="nn.Dropout: in the layers, on the embeddings, before the head"
    ):
        built, tokens = build(dropout=1.0), case.randint(1, V, (3, 9))
        values = fill(case, built)
        plain = build().eval()
        plain.load_state_dict(values)
        known = always("in evaluation mode there is dropout: use nn.Dropout, which eval() switches off")
        case.close(built.eval()(tokens), plain(tokens), what="the logits in evaluation mode", mistakes=known)
        expected = values["head.bias"].expand(3, 2)
        result, what = built.train()(tokens), "with dropout 1, where only the head's bias is left, the logits"
        known = always("with dropout 1 something still reaches the head: drop what goes in there")
        case.close(result, expected, what=what, mistakes=known)
        built = build(dropout=0.5)
        values = fill(case, built)
        added = [name for name in values if "attention.out" in name or "down" in name]
        still = values | {name: torch.zeros_like(values[name]) for name in added}
        only_positions = still | {"embed.weight": torch.zeros(V, D)}
        case.true(
            varies(draws(built, still, tokens[:1])),
            "with dropout=0.5 in training mode, what goes into the first layer is not dropped",
        )
        case.true(
            varies(draws(built, only_positions, tokens[:1])),
            "only the embeddings are dropped; what goes into the first layer is their sum with the positions",
        )
        nothing = values | {"embed.weight": -0.05 * table(1, D).expand(V, D)}  # + the first position: 0, dropped or not
        case.true(
            varies(draws(built, nothing, tokens[:1, :1])),
            "there is no dropout in the layers: pass its probability on to each EncoderLayer",
        )
    with case("gradients reach all weights", points=1, hint="no .detach(); every layer is used"):
        built, tokens = build(), case.randint(1, V, (3, 9))
        fill(case, built)
        found = built.parameter_gradients(tokens, upstream=case.randn(3, 2))
        silent = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}")


# -- optimization -----------------------------------------------------------------------------------------


def torch_schedule(steps, max_lr, min_lr, warmup, total):
    """Return the learning rates of these steps from torch's schedulers: a line, a cosine, then a constant."""
    rates = []
    for step in steps:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=max_lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=min_lr)
        # The closed form: a scheduler that jumps to a step computes it from the step alone.
        cosine.last_epoch = min(max(step - warmup, 0), total - warmup)
        rates.append(cosine._get_closed_form_lr()[0] if step >= warmup else max_lr * step / warmup)
    return torch.tensor(rates, dtype=torch.float64)


@check("warmup-cosine", points=5, from_scratch=("lr_scheduler",))
def warmup_cosine(answer, case):
    """Against torch's CosineAnnealingLR, step by step."""

    def demand(steps, max_lr, min_lr, warmup, total, what):
        options = {"max_lr": max_lr, "min_lr": min_lr, "warmup": warmup, "total": total}
        given = [answer(step, **options) for step in steps]
        numbers = all(isinstance(rate, (int, float, torch.Tensor)) for rate in given)
        case.true(numbers, "the result is no number; is a return statement missing in one of the branches?")
        found, at = torch.tensor([float(rate) for rate in given], dtype=torch.float64), torch.tensor(steps).double()
        right = torch_schedule(steps, **options)
        line, after = at < warmup, at > total
        share = ((at - warmup) / (total - warmup)).clamp(0, 1)

        def from_here(rates):
            return torch.where(line | after, right, rates)

        mistakes = {
            "the line begins with step + 1: it should be 0 at step 0 and max_lr at step warmup": (
                torch.where(line, max_lr * (at + 1) / max(warmup, 1), right)
            ),
            "the line is divided by warmup - 1: max_lr comes a step too early": (
                torch.where(line, max_lr * at / max(warmup - 1, 1), right)
            ),
            "the line is divided by warmup + 1: at step warmup max_lr is not reached": (
                torch.where(line, max_lr * at / (warmup + 1), right)
            ),
            "the cosine is divided by total - warmup - 1: it arrives a step too early": from_here(
                min_lr
                + (max_lr - min_lr) * (1 + (math.pi * ((at - warmup) / (total - warmup - 1)).clamp(max=1)).cos()) / 2
            ),
            "every rate is that of the step after": torch_schedule([step + 1 for step in steps], **options),
            "every rate is that of the step before": torch_schedule([max(step - 1, 0) for step in steps], **options),
            "the line begins at min_lr; it begins at 0": (
                torch.where(line, min_lr + (max_lr - min_lr) * at / max(warmup, 1), right)
            ),
            "there is no warmup": torch.where(line, torch.full_like(right, max_lr), right),
            "the cosine is counted from step 0; it begins at step warmup and runs over total - warmup steps": (
                from_here(min_lr + (max_lr - min_lr) * (1 + (math.pi * at / total).cos()) / 2)
            ),
            "the cosine is divided by total; its span is total - warmup steps": (
                from_here(min_lr + (max_lr - min_lr) * (1 + (math.pi * (at - warmup) / total).cos()) / 2)
            ),
            "min_lr is left out of the cosine: it falls to 0": from_here(max_lr * (1 + (math.pi * share).cos()) / 2),
            "min_lr is only a lower limit; the cosine itself should end there": (
                from_here((max_lr * (1 + (math.pi * share).cos()) / 2).clamp(min=min_lr))
            ),
            "min_lr is added to a cosine from max_lr to 0, so that it begins too high": (
                from_here(min_lr + max_lr * (1 + (math.pi * share).cos()) / 2)
            ),
            "it falls in a straight line, not along a cosine": from_here(max_lr + (min_lr - max_lr) * share),
            "it is a quarter of a cosine; half a period goes from 1 to -1": (
                from_here(min_lr + (max_lr - min_lr) * (math.pi * share / 2).cos())
            ),
            "after `total` the cosine goes on, and up again; keep min_lr from there": torch.where(
                after, min_lr + (max_lr - min_lr) * (1 + (math.pi * (at - warmup) / (total - warmup)).cos()) / 2, right
            ),
            "it begins at twice the height: (1 + cos) goes from 2 to 0, so half of it is asked": (
                from_here(min_lr + (max_lr - min_lr) * (1 + (math.pi * share).cos()))
            ),
            "it is a whole period of the cosine, down and up again; half of one goes from 1 to -1": (
                from_here(min_lr + (max_lr - min_lr) * (1 + (2 * math.pi * share).cos()) / 2)
            ),
            "the cosine has the wrong sign: the rate rises from min_lr to max_lr": (
                from_here(min_lr + (max_lr - min_lr) * (1 - (math.pi * share).cos()) / 2)
            ),
            "π is missing: half a period of the cosine ends at π, not at 1": (
                from_here(min_lr + (max_lr - min_lr) * (1 + share.cos()) / 2)
            ),
            "the line is 0 throughout: // cuts step / warmup to a whole number": (
                torch.where(line, torch.zeros_like(right), right)
            ),
            "after `total` the rate is 0; keep min_lr": torch.where(after, torch.zeros_like(right), right),
        }
        mistakes = {name: wrong / max_lr for name, wrong in mistakes.items()}
        case.close(
            found / max_lr, right / max_lr, what=f"{what}, as shares of max_lr,", mistakes=mistakes, tolerance=1e-7
        )

    warmup, total = int(case.randint(4, 9)), int(case.randint(20, 40))
    with case("a straight line from 0", points=1, hint="step / warmup of max_lr"):
        demand(list(range(warmup)), 3e-3, 2e-4, warmup, total, "the rates of the warmup")
    with case("then half a cosine down to min_lr", points=2, hint="how far from warmup to total: a number from 0 to 1"):
        demand(list(range(warmup, total + 1)), 3e-3, 2e-4, warmup, total, "the rates of the cosine")
    with case("then min_lr for ever", points=1, hint="what is further than total counts as total"):
        demand([total, total + 1, total + warmup, 3 * total], 3e-3, 2e-4, warmup, total, "the rates after the end")
    with case("no warmup at all", points=1, hint="with warmup = 0, step 0 has max_lr; mind the division"):
        demand([0, 1, 5, 10], 1e-2, 1e-3, 0, 10, "the rates without warmup")


def clip_and_look(clip, gradients, max_norm, often=False):
    """Clip parameters with these gradients; return what was returned, the gradients then, and whether they were
    replaced. With `often`, the parameters are a list, which can be gone through as often as one likes."""
    parameters = [nn.Parameter(torch.full((3,) if g is None else g.shape, 3.0)) for g in gradients]
    for p, g in zip(parameters, gradients):  # noqa: B905
        p.grad = None if g is None else g.clone()
    before = [p.grad for p in parameters]
    given = parameters if often else (p for p in parameters)  # like model.parameters(): to be gone through once
    norm = clip(given, max_norm)
    return norm, [p.grad for p in parameters], before, [p.detach() for p in parameters]


@check("clip-gradients", points=5, from_scratch=("clip_grad",))
def clip_gradients(answer, case):
    """Against `nn.utils.clip_grad_norm_`."""

    def joined(tensors):
        return torch.cat([t.flatten() for t in tensors])

    def demand(gradients, max_norm, what="the gradients"):
        norm, after, held, parameters = answer.probe(clip_and_look, gradients, max_norm)
        right = [torch.zeros_like(g, requires_grad=True) for g in gradients]
        for p, g in zip(right, gradients, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(right, max_norm)
        case.true(
            all(bool((p == 3).all()) for p in parameters),
            "the parameters themselves are changed; only their gradients should be",
        )
        missing = "a gradient has become None"
        case.true(all(g is not None for g in after), missing)
        flat, total = joined(gradients), joined(gradients).norm()
        if torch.equal(joined(after), flat) and total > max_norm:
            again = joined(answer.probe(clip_and_look, gradients, max_norm, True)[1])
            case.true(
                torch.equal(again, flat),
                "nothing has changed: `parameters` is a generator here, as model.parameters() makes it, which can be "
                "gone through once; a second loop finds nothing",
            )
        alone = [g * (max_norm / (g.norm() + 1e-6)).clamp(max=1) for g in gradients]
        mistakes = {
            "nothing has changed, though the norm is larger than max_norm": flat,
            "each gradient is clipped by its own norm; take the norm of all together": joined(alone),
            "each gradient is divided by its own norm": joined([g / (g.norm() + 1e-6) * max_norm for g in gradients]),
            "gradients that are short enough are scaled up to max_norm": flat * max_norm / (total + 1e-6),
            "single entries are cut off at max_norm; scale all by one factor": flat.clamp(-max_norm, max_norm),
            "the norm is the sum of absolute values; take the root of the sum of squares": (
                flat * (max_norm / (flat.abs().sum() + 1e-6)).clamp(max=1)
            ),
            "the root is missing: the sum of squares is used as the norm": (
                flat * (max_norm / (flat.square().sum() + 1e-6)).clamp(max=1)
            ),
            "the norms are added; their squares add up": (
                flat * (max_norm / (sum(g.norm() for g in gradients) + 1e-6)).clamp(max=1)
            ),
            "the gradients are divided by the norm, but max_norm is forgotten": flat / (total + 1e-6),
            "the norm of the first gradient is used; take that of all together": (
                flat * (max_norm / (gradients[0].norm() + 1e-6)).clamp(max=1)
            ),
            "the mean of the squares is used; they add up": (
                flat * (max_norm / (flat.square().mean().sqrt() + 1e-6)).clamp(max=1)
            ),
            "the largest entry is used as the norm; take the root of the sum of squares": (
                flat * (max_norm / (flat.abs().max() + 1e-6)).clamp(max=1)
            ),
            "the factor is upside down: the gradients are longer now": flat * total / max_norm,
            "the largest of the norms is used; take that of all together": (
                flat * (max_norm / (max(g.norm() for g in gradients) + 1e-6)).clamp(max=1)
            ),
        }
        case.close(joined(after), joined([p.grad for p in right]), what=what, mistakes=mistakes)
        return norm, held, joined([p.grad for p in right])

    with case("too long: scaled down together", points=2, hint="one factor for all: max_norm / (norm + 1e-6)"):
        demand([2 * case.randn(3, 4), 3 * case.randn(5), 0.1 * case.randn(2, 2)], 1.0)
        demand([0.3 * case.randn(3, 4), 0.4 * case.randn(5)], 0.2)
    with case("short enough: left as they are", points=1, hint="only where norm > max_norm"):
        demand([0.1 * case.randn(3, 4), 0.1 * case.randn(5)], 20.0)
    with case("in place, and parameters without gradient are passed over", points=1, hint="p.grad.mul_(factor)"):
        gradients = [case.randn(6), None, case.randn(2, 3)]
        _, after, held, _ = answer.probe(clip_and_look, gradients, 0.5)
        case.true(after[1] is None, "a parameter without gradient has got one")
        right = [torch.zeros(6, requires_grad=True), torch.zeros(2, 3, requires_grad=True)]
        right[0].grad, right[1].grad = gradients[0].clone(), gradients[2].clone()
        nn.utils.clip_grad_norm_(right, 0.5)
        case.close(joined([after[0], after[2]]), joined([p.grad for p in right]), what="the gradients")
        replaced = "p.grad is replaced by a new tensor; change it in place, for others may hold it"
        case.close(joined([held[0], held[2]]), joined([p.grad for p in right]), what="what was p.grad before",
                   mistakes={replaced: joined([gradients[0], gradients[2]])})  # fmt: skip
    with case("returns the norm before", points=1, hint="of all gradients together, as a tensor without axes"):
        gradients = [case.randn(3, 4), case.randn(5)]
        norm = answer.probe(clip_and_look, gradients, 0.5)[0]
        flat = joined(gradients)
        mistakes = {
            "this is the norm after clipping": torch.tensor(0.5),
            "this is the norm of the last gradient alone": gradients[-1].norm(),
            "this is the square of the norm": flat.square().sum(),
        }
        number = "the norm is a plain number; return a tensor without axes (no .item(), no float())"
        case.true(not isinstance(norm, (int, float)), number)
        case.close(norm, flat.norm(), what="the norm", mistakes=mistakes)


def optimize(make, starts, gradients, groups, rates, saved_at, look=False):
    """Run an optimizer over given gradients, one list for each step; return the parameters at last and between.

    A gradient may be None. `rates` sets the learning rate of each step. At step `saved_at` everything is put into a
    fresh optimizer by its state_dict. With `look`, the last thing returned is whether a gradient was changed.
    """
    parameters = [nn.Parameter(start.clone()) for start in starts]

    def made():
        if len(groups) == 1:
            return make(parameters, **groups[0])
        return make([{"params": [p], **group} for p, group in zip(parameters, groups)])  # noqa: B905

    optimizer, history, spoiled = made(), [], False
    for number, step in enumerate(gradients):
        if number == saved_at:
            state = optimizer.state_dict()
            optimizer = made()
            optimizer.load_state_dict(state)
        for p, gradient in zip(parameters, step):  # noqa: B905
            p.grad = None if gradient is None else gradient.clone()
        for group in optimizer.param_groups if rates else []:
            group["lr"] = rates[number]
        optimizer.step()
        history.append([p.detach().clone() for p in parameters])
        spoiled = spoiled or any(
            gradient is not None and not torch.equal(p.grad, gradient)
            for p, gradient in zip(parameters, step)  # noqa: B905
        )
    return [*history, spoiled] if look else history


def by_hand(starts, gradients, options, change):
    """Return the parameters after each step of an AdamW that makes one mistake."""
    lr, (b1, b2), eps, decay = options["lr"], options["betas"], options["eps"], options["weight_decay"]
    values, history, together = [start.clone() for start in starts], [], 0
    m, v, t = [torch.zeros_like(p) for p in values], [torch.zeros_like(p) for p in values], [0] * len(values)
    if change == "v from 1":
        v = [torch.ones_like(p) for p in values]
    for number, step in enumerate(gradients):
        for i, (p, g) in enumerate(zip(values, step, strict=True)):
            if g is None and change == "zeros":
                g = torch.zeros_like(p)
            if g is None:
                p.mul_(1 - lr * decay if change == "decay all" else 1)
                continue
            t[i], together = t[i] + 1, together + 1
            n = {"each counts": together, "steps": number + 1, "all anew": 1}.get(change, t[i])
            first, new = (m[i], v[i]) if "anew" not in change else (torch.zeros_like(p), torch.zeros_like(p))
            if change == "from g" and n == 1:
                first, new = g.clone(), g * g
            p.mul_(1 - lr * decay)
            late = first
            m[i] = b1 * first + (g if change == "whole g" else (1 - b1) * g)
            v[i] = (1 if change == "sum" else b2) * new + (1 - b2) * (g.abs() if change == "abs" else g * g)
            c1, c2 = (1 - b1, 1 - b2) if change == "no power" else (1 - b1**n, 1 - b2**n)
            p.sub_(lr * ((late if change == "late" else m[i]) / c1) / ((v[i] / c2).sqrt() + eps))
        history.append([p.clone() for p in values])
    return history


ADAM = {
    "no power": "the bias is corrected by 1 - beta in each step; after step 1 it is 1 - beta^t",
    "anew": "m and v begin at 0 again in each step; after step 1 they should remember",
    "all anew": "t, m and v begin anew in each step; after step 1 they should remember",
    "from g": "m and v begin with the first gradient; they begin at 0",
    "whole g": "g is added to m as a whole; it gets the share 1 - beta1",
    "v from 1": "v begins at 1; it begins at 0",
    "late": "p is moved by the m of the step before: update m first",
    "sum": "v adds up the squares without forgetting any: beta2 is missing",
    "abs": "v is made of |g|; it is made of g²",
    "each counts": "t counts for all parameters together; after step 1 each has a t of its own, in self.state[p]",
    "steps": "t counts the optimizer's steps; after step 1 a parameter's own t is how often it was moved itself",
    "decay all": "a parameter without a gradient decays; after step 1 it should be as it was",
    "zeros": "a missing gradient is taken for zeros, so that p moves on; after step 1 it should be as it was",
}


def adam_mistakes(starts, gradients, options, number):
    """Return what these mistakes make of all parameters after a step."""
    return {
        sentence: lambda change=change: torch.cat(
            [p.flatten() for p in by_hand(starts, gradients, options, change)[number]]
        )
        for change, sentence in ADAM.items()
    }


def call_with_closure(make, start, options):
    """Take two steps with a closure whose loss is the sum of squares; return what they returned, and the
    parameter."""
    p = nn.Parameter(start.clone())
    optimizer = make([p], **options)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(2)]
    return [None if loss is None else loss.detach() for loss in losses], p.detach()


@check("adamw", points=8, from_scratch=LIBRARY_ADAM)
def adamw(answer, case):
    """Against `torch.optim.AdamW`, from the first step to the restart."""
    DEFAULTS = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.3}

    def of_torch(*arguments):
        return Answer(torch.optim.AdamW).probe(optimize, *arguments)

    def first_steps(start, g, lr, betas, eps, weight_decay):
        """What common mistakes make of the first step, where m = (1 - beta1) g and v = (1 - beta2) g²."""
        b1, b2 = betas
        m, v = (1 - b1) * g, (1 - b2) * g * g
        decayed = start * (1 - lr * weight_decay)
        adam, mixed = g / (g.abs() + eps), g + weight_decay * start
        return {
            "there is no weight decay": start - lr * adam,
            "the decay is added to the gradient (L2, as in Adam); here it is decoupled: p itself shrinks": (
                start - lr * mixed / (mixed.abs() + eps)
            ),
            "the bias is not corrected: divide m and v by 1 - beta^t": decayed - lr * m / (v.sqrt() + eps),
            "only m is corrected for its bias": decayed - lr * g / (v.sqrt() + eps),
            "only v is corrected for its bias": decayed - lr * m / (g.abs() + eps),
            "eps stands inside the root; it is added to the root": decayed - lr * g / (g * g + eps).sqrt(),
            "eps is added before v is corrected for its bias": (
                decayed - lr * (g * (1 - b2) ** 0.5) / (v.sqrt() + eps)
            ),
            "the root of v is missing": decayed - lr * g / (g * g + eps),
            "the decay is not multiplied by lr": start * (1 - weight_decay) - lr * adam,
            "eps is missing": decayed - lr * g.sign(),
            "the decay comes after the step; p shrinks first": (start - lr * adam) * (1 - lr * weight_decay),
            "the decay has the wrong sign: p grows by it": start * (1 + lr * weight_decay) - lr * adam,
            "the decay is done twice": decayed - lr * adam - lr * weight_decay * decayed,
            "the sign is wrong: p grows along the gradient": decayed + lr * adam,
            "t begins at 0, so the first step divides by 0 or not at all; it is 1 in the first step": start,
            "t is 2 in the first step: count it up once": (
                decayed - lr * (m / (1 - b1**2)) / ((v / (1 - b2**2)).sqrt() + eps)
            ),
            "the learning rate is not used": start * (1 - lr * weight_decay) - adam,
        }

    with case("the first step", points=2, hint="m and v begin at 0, t at 1; the formulas stand in the docstring"):
        start, g = case.randn(4, 5), case.randn(4, 5)
        found = answer.probe(optimize, [start], [[g]], [DEFAULTS], [], -1)[0][0]
        case.true(found.isfinite().any(), "p is not finite after one step: with t = 0, 1 - beta^t is 0; t begins at 1")
        root = "a part of p is not finite after one step: has v, made of squares, become negative? It is not m"
        case.true(found.isfinite().all(), root)
        expected = of_torch([start], [[g]], [DEFAULTS], [], -1)[0][0]
        mistakes = first_steps(start, g, **DEFAULTS)
        for change in ("whole g", "v from 1", "late", "from g", "abs"):
            mistakes[ADAM[change]] = by_hand([start], [[g]], DEFAULTS, change)[0][0]
        case.close(found, expected, what="p after one step", mistakes=mistakes)
        spoiled = answer.probe(optimize, [start], [[g]], [DEFAULTS], [], -1, True)[-1]
        case.true(not spoiled, "the gradient itself is changed: p.grad is not the optimizer's, so work on a copy")
    with case("many steps", points=1, hint="m and v remember; t counts up"):
        arguments = (
            [case.randn(4, 5), case.randn(3)],
            [[case.randn(4, 5), case.randn(3)] for _ in range(12)],
            [DEFAULTS],
            [],
            -1,
        )
        swapped = *arguments[:2], [DEFAULTS | {"betas": (0.9, 0.8)}], *arguments[3:]
        found, expected, other = answer.probe(optimize, *arguments), of_torch(*arguments), of_torch(*swapped)
        for number in (1, 11):
            ours, right, wrong = (torch.cat([p.flatten() for p in one[number]]) for one in (found, expected, other))
            mistakes = adam_mistakes(*arguments[:2], DEFAULTS, number)
            mistakes["the betas are exchanged: beta1 belongs to m, beta2 to v"] = wrong
            case.close(ours, right, what=f"the parameters after step {number + 1}", mistakes=mistakes, tolerance=3e-5)
    with case("torch's own default options", points=1, hint="lr 1e-3, betas (0.9, 0.999), eps 1e-8, weight_decay 0.01"):
        arguments = [10 * case.randn(4, 5)], [[0.01 * case.randn(4, 5)] for _ in range(3)], [{}], [], -1
        scale = 1000.0  # steps of 0.001 on values of 10: look at what has changed
        moved = [
            1e2 * (run(*arguments)[-1][0] - arguments[0][0]) for run in (partial(answer.probe, optimize), of_torch)
        ]
        case.close(moved[0], moved[1], what="100 times the change after 3 steps", tolerance=scale * 1e-6)
    with case("groups with options of their own, and a schedule", points=1, hint="read group[...] in each step"):
        groups = [DEFAULTS, {"lr": 0.1, "betas": (0.5, 0.6), "eps": 0.3, "weight_decay": 0.0}]
        gradients = [[case.randn(3), case.randn(3)] for _ in range(4)]
        starts = [case.randn(3), case.randn(3)]
        for rates, what in (
            ([], "the parameters of two groups"),
            ([0.1, 0.05, 0.0, 0.2], "the parameters, with another lr in each step"),
        ):
            found = answer.probe(optimize, starts, gradients, groups, rates, -1)[-1]
            expected = of_torch(starts, gradients, groups, rates, -1)[-1]
            slow = [group | {"lr": 1e-3} for group in groups]
            mistakes = {
                "lr is the one given to __init__; each group has its own, which a schedule changes": (
                    lambda slow=slow: torch.cat(of_torch(starts, gradients, slow, [], -1)[-1])
                ),
                "the schedule is not seen: read lr from the group in each step": (
                    lambda: torch.cat(of_torch(starts, gradients, groups, [], -1)[-1])
                ),
                "all groups are moved by the options of the first": (
                    lambda rates=rates: torch.cat(of_torch(starts, gradients, groups[:1] * 2, rates, -1)[-1])
                ),
                "only the first group is moved": torch.cat([expected[0], starts[1]]),
            }
            case.close(torch.cat(found), torch.cat(expected), what=what, mistakes=mistakes)
    with case("without a gradient: as it was", points=1, hint="skip it: no decay, no counting"):
        gradients = [[case.randn(3), None], [case.randn(3), case.randn(3)], [None, case.randn(3)]]
        arguments = [case.randn(3), case.randn(3)], gradients, [DEFAULTS], [], -1
        found, expected = answer.probe(optimize, *arguments), of_torch(*arguments)
        for number in range(3):
            case.close(
                torch.cat(found[number]),
                torch.cat(expected[number]),
                what=f"the parameters after step {number + 1}",
                mistakes=adam_mistakes(*arguments[:2], DEFAULTS, number),
            )
    with case("goes on from its state_dict", points=1, hint="everything that is remembered lies in self.state[p]"):
        arguments = [case.randn(4)], [[case.randn(4)] for _ in range(6)], [DEFAULTS], []
        found, expected = answer.probe(optimize, *arguments, 3)[-1][0], of_torch(*arguments, -1)[-1][0]
        lost = {
            "m, v and t were lost: a fresh optimizer would do the same": lambda: forgotten(of_torch, arguments),
            **always("after a restart p goes another way: is all that is remembered, t too, in self.state[p]?"),
        }
        case.close(found, expected, what="p after a restart", mistakes=lost)
    with case(
        "a closure is called with gradients on", points=1, hint="torch.enable_grad() around it; return its value"
    ):
        start = case.randn(5)
        losses, p = answer.probe(call_with_closure, start, DEFAULTS)
        expected, right = Answer(torch.optim.AdamW).probe(call_with_closure, start, DEFAULTS)
        case.true(all(loss is not None for loss in losses), "step(closure) does not return what the closure returned")
        case.close(torch.stack(losses), torch.stack(expected), what="the losses")
        case.close(p, right, what="p after two steps with a closure")


def forgotten(of_torch, arguments):
    """Return the parameter after six steps when the optimizer forgets all after three."""
    starts, gradients, groups, rates = arguments
    half = of_torch(starts, gradients[:3], groups, rates, -1)[-1]
    return of_torch(half, gradients[3:], groups, rates, -1)[-1][0]


# -- several processes ------------------------------------------------------------------------------------


def shard_and_look(shard, arguments):
    """Return two calls' results, and whether torch's global generator has been touched between."""
    before = torch.get_rng_state()
    first = [int(i) for i in shard(*arguments)]
    touched = not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12345)
    return first, [int(i) for i in shard(*arguments)], touched


@check("shard", points=7, from_scratch=("DistributedSampler",))
def shard(answer, case):
    """By the properties that a sharded epoch must have."""

    def dealt(samples, world, epoch=0, seed=5):
        return [[int(i) for i in answer(samples, rank, world, epoch, seed)] for rank in range(world)]

    def demand_all(samples, world):
        ranks = dealt(samples, world)
        every = [i for rank in ranks for i in rank]
        lengths = {len(rank) for rank in ranks}
        wanted = -(-samples // world)
        case.true(all(0 <= i < samples for i in every), f"there is a sample outside 0 ... {samples - 1}")
        alike = world > 1 and all(sorted(rank) == list(range(samples)) for rank in ranks)
        case.true(not alike, "every rank gets all samples: they have to be shared out")
        case.true(
            world == 1 or any(rank != ranks[0] for rank in ranks),
            "all ranks get the same samples: each takes a share of its own",
        )
        case.true(
            samples % world or lengths != {wanted} or all(len(set(rank)) == len(rank) for rank in ranks),
            "a rank gets a sample twice, and others never: shuffle, instead of drawing with replacement",
        )
        missing = sorted(set(range(samples)) - set(every))
        why = (
            "are the last ones cut off when they cannot be shared evenly?"
            if samples % world
            else "do all ranks shuffle alike?"
        )
        case.true(not missing, f"of {samples} samples for {world} ranks, {len(missing)} come on no rank: {why}")
        case.true(
            len(lengths) == 1,
            f"the ranks get {sorted(lengths)} samples: a rank with fewer would leave the others waiting",
        )
        double = len(every) - samples
        case.true(
            lengths == {wanted}, f"of {samples} samples for {world} ranks each gets {lengths.pop()}, expected {wanted}"
        )
        case.true(double == wanted * world - samples, f"{double} samples come more than once in an epoch")

    with case("each sample once, over all ranks", points=2, hint="one order for all ranks; each takes its part"):
        demand_all(24, 2)
        demand_all(24, 4)
        demand_all(7, 1)
        found = answer(24, 0, 2, 0, 5)
        case.true(
            isinstance(found, (list, tuple)), f"the result is a {type(found).__name__}; return a list of integers"
        )
        case.true(
            not any(torch.is_tensor(i) for i in found), "the list holds tensors; return a list of integers (.tolist())"
        )
    with case("equal lengths, when it does not divide", points=1, hint="let the order go on with its own beginning"):
        demand_all(10, 4)
        demand_all(25, 3)
        found, whole = dealt(10, 4), [int(i) for i in answer(10, 0, 1, 0, 5)]
        order = [found[place % 4][place // 4] for place in range(12)]
        case.true(order == whole + whole[:2], "the samples that fill up are not those at the beginning of the order")
    with case("dealt out like cards", points=1, hint="rank r gets number r, r + world, r + 2 world, ... of the order"):
        whole = [int(i) for i in answer(24, 0, 1, 0, 5)]
        for world in (2, 3):
            found = dealt(24, world)
            blocks = [whole[rank * 24 // world : (rank + 1) * 24 // world] for rank in range(world)]
            case.true(found != blocks, "each rank gets one block of the order; deal it out in turn, so that the first "
                      "batches of all ranks together are the first batch of a single process")  # fmt: skip
            case.true([found[place % world][place // world] for place in range(24)] == whole,
                      "the ranks' samples, put together in turn, are not the order of a single process: do all ranks "
                      "shuffle alike, with seed + epoch alone?")  # fmt: skip
    with case("a new order in each epoch, the same for the same epoch", points=1, hint="seed + epoch"):
        one, again, other = dealt(40, 2, 0), dealt(40, 2, 0), dealt(40, 2, 1)
        case.true(one == again, "the same call gives another order each time: seed a generator with seed + epoch")
        flat = [i for rank in one for i in rank]
        case.true(flat != sorted(flat) and one != [list(range(r, 40, 2)) for r in range(2)], "nothing is shuffled")
        case.true(one != other, "epoch 0 and epoch 1 have the same order: the epoch has to change the seed")
        case.true(
            sorted(one[0]) != sorted(other[0]),
            "each rank keeps its own samples in every epoch: shuffle before dealing out",
        )
    with case("another seed, another order", points=1, hint="seed + epoch: so epoch 1 of seed 5 is epoch 0 of seed 6"):
        case.true(dealt(40, 2, 0, seed=5) != dealt(40, 2, 0, seed=6), "the seed changes nothing")
        case.true(dealt(40, 2, 1, seed=5) == dealt(40, 2, 0, seed=6), "the generator is not seeded with seed + epoch")
    with case("torch's global generator is left alone", points=1, hint="torch.Generator().manual_seed(...)"):
        first, second, touched = answer.probe(shard_and_look, (30, 1, 2, 3, 4))
        case.true(first == second, "the order depends on torch's global generator, which differs from rank to rank")
        case.true(
            not touched,
            "torch's global generator is seeded or drawn from: dropout would repeat itself, on all ranks alike",
        )


def odd_model(seed):
    """Return a small model with all that is easily forgotten: frozen and shared weights, buffers, a layer not in
    use."""
    torch.manual_seed(seed)
    model = nn.ModuleDict(
        {
            "a": nn.Linear(3, 4),
            "norm": nn.BatchNorm1d(4),
            "b": nn.Linear(4, 4),
            "frozen": nn.Linear(4, 4),
            "spare": nn.Linear(4, 2),
        }
    )
    model["c"] = nn.Linear(4, 4, bias=False)
    model["c"].weight = model["b"].weight  # shared
    for p in model["frozen"].parameters():
        p.requires_grad_(False)
    model.own = nn.Parameter(torch.randn(3))  # of the model itself, in none of its parts
    nn.init.constant_(model["norm"].bias, seed % 2)  # 0 on some ranks only
    model["norm"].running_mean.normal_()
    model["norm"].num_batches_tracked.fill_(2**24 + 2 * seed + 1)  # no float32 holds it
    model["norm"].register_buffer("secret", torch.randn(2), persistent=False)
    return model


def broadcast_two(broadcast_weights, seeds):
    """Let two ranks broadcast: first rank 0, whose tensors are written down, then rank 1, which is given them.

    Returns the tensors of both ranks by name, what rank 1 has lost, the first disagreement between the two, or "",
    and what rank 1 has received into tensors that are not the model's.
    """
    sent, models, trouble, beside = [], [odd_model(seed) for seed in seeds], [], []
    own = {t.data_ptr() for t in (*models[1].parameters(), *models[1].buffers())}

    def send(tensor, src):
        if src != 0:
            trouble.append("the source is not rank 0")
        sent.append(tensor.detach().clone())

    def receive(tensor, src):
        if src != 0:
            trouble.append("the source is not rank 0")
        if not sent or sent[0].shape != tensor.shape:
            trouble.append("the ranks broadcast other tensors, or in another order: real ones would wait for ever")
            return
        tensor.detach().copy_(sent.pop(0))
        if tensor.data_ptr() not in own:
            beside.append(tensor.detach().clone())

    kept = [torch.get_rng_state()]
    broadcast_weights(models[0], send)
    broadcast_weights(models[1], receive)
    kept.append(torch.get_rng_state())
    values = [dict(m.named_parameters(remove_duplicate=False)) | dict(m.named_buffers()) for m in models]
    after = models[1]
    lost = []
    if after["c"].weight is not after["b"].weight:
        lost.append("the weight that two layers share is no longer shared")
    if not all(p.is_leaf for p in after.parameters()):
        lost.append("a parameter is no longer a leaf: no gradient would stay with it")
    if any(p.requires_grad for p in after["frozen"].parameters()) or not after["a"].weight.requires_grad:
        lost.append("requires_grad has changed")
    if sent:
        trouble.append("rank 0 broadcasts more tensors than rank 1 takes")
    return [{name: t.detach().double() for name, t in one.items()} for one in values], lost, trouble[:1], beside


@check("broadcast-weights", points=4, from_scratch=("DistributedDataParallel", "_sync_"))
def broadcast_weights(answer, case):
    """Two ranks with different weights, of which the first one's messages reach the second."""

    def look(names, what):
        (first, second), _, trouble, beside = answer.probe(broadcast_two, (3, 4), uses=(odd_model,))
        case.true(not trouble, "".join(trouble))
        right = dict(odd_model(3).named_parameters(remove_duplicate=False)) | dict(odd_model(3).named_buffers())
        for name in names:
            exact = right[name].detach().double()
            rounded = exact.float().double()
            mistakes = {f"{name} is rounded: no float32 holds it, so send it in its own dtype": rounded}
            mistakes = {} if torch.equal(rounded, exact) else mistakes
            case.close(first[name], exact, what=f"{name} of rank 0", mistakes=mistakes, tolerance=1e-9)
            apart = f"{what} of rank 1 are still its own ({name}): the ranks would go on with different models"
            if any(alike(copy.double(), exact) for copy in beside):
                apart = f"{what} of rank 1 are still its own ({name}): what it receives lands in a copy"
            known = mistakes | always(apart)
            case.close(second[name], exact, what=f"{name} of rank 1", mistakes=known, tolerance=1e-9)

    with case("the parameters become rank 0's", points=1, hint="for each of model.parameters()"):
        look(("a.weight", "a.bias", "b.weight", "spare.weight", "norm.weight", "norm.bias"), "parameters")
        look(("own",), "parameters of the model itself, in none of its parts,")
    with case("frozen ones too", points=1, hint="whether they are trained does not matter"):
        look(("frozen.weight", "frozen.bias"), "frozen parameters")
    with case(
        "the buffers too", points=1, hint="model.buffers(): running means, counters; also those outside the state_dict"
    ):
        look(("norm.running_mean", "norm.num_batches_tracked", "norm.secret"), "buffers")
    with case("in place: shared stays shared", points=1, hint="hand the tensors themselves to broadcast, detached"):
        _, lost, trouble, _ = answer.probe(broadcast_two, (3, 4), uses=(odd_model,))
        case.true(not trouble, "".join(trouble))
        case.true(not lost, "".join(lost[:1]))


def average_two(average_gradients, batches, world, unused):
    """Let several ranks average: each alone first, to write down what it sends; then rank 0 again, given all the
        sums.

    Returns rank 0's gradients by name (None where there is none) before and after, those of the loss of all batches
    in one process, how often the ranks called all_reduce, and the first trouble, or "".
    """

    def model_after_backward(rank):
        model = odd_model(7)
        x, target = batches[rank]
        h = model["a"](x)
        y = model["c"](model["b"](h).tanh()) + model["frozen"](h)
        if rank != unused:
            y = torch.cat([y, model["spare"](h)], dim=1)
            target = torch.cat([target, target[:, :2]], dim=1)
        loss = (y - target).square().sum(1).mean()
        loss.backward()
        return model

    def record(tensors):
        def all_reduce(tensor):
            tensors.append(tensor.detach().clone())

        return all_reduce

    def gradients(model):
        return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}

    sent = []
    for rank in range(world):
        sent.append([])
        average_gradients(model_after_backward(rank), world, record(sent[-1]))
    trouble = ""
    shapes = [[tuple(t.shape) for t in one] for one in sent]
    if any(one != shapes[0] for one in shapes):
        trouble = "the ranks ask for sums of different tensors: real ones would wait for each other for ever"
    model, calls = model_after_backward(0), [0]

    def all_reduce(tensor):
        if tensor.requires_grad and not tensor.is_leaf:
            raise RuntimeError("all_reduce was called with a tensor that has a graph")
        tensor.detach().copy_(sum(one[calls[0]] for one in sent))
        calls[0] += 1

    before = gradients(model)
    if not trouble:
        average_gradients(model, world, all_reduce)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    return before, gradients(model), kept, [len(one) for one in sent], trouble


@check("average-gradients", points=7, from_scratch=("DistributedDataParallel",))
def average_gradients(answer, case):
    """Several ranks, each with its part of a batch; against the gradient of the whole batch in one process."""

    def ranks(world):
        return [(case.randn(5, 3), case.randn(5, 4)) for _ in range(world)]

    def run(batches, unused=-1):
        found = answer.probe(average_two, batches, len(batches), unused, uses=(odd_model,))
        case.true(not found[4], found[4])
        return found

    def whole(batches, spare=True):
        """Gradients of the mean loss of all batches, in one process; `spare` says on which ranks that layer is
        used."""
        model = odd_model(7)
        total = 0.0
        for rank, (x, target) in enumerate(batches):
            h = model["a"](x)
            y = model["c"](model["b"](h).tanh()) + model["frozen"](h)
            loss = (y - target).square().sum(1)
            if spare is True or rank != spare:
                loss = loss + (model["spare"](h) - target[:, :2]).square().sum(1)
            total = total + loss.mean() / len(batches)
        total.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    def demand(found, right, before, world, names, unused=False):
        trained = [name for name in found if not name.startswith("frozen")]
        for name in names:
            case.true(found[name] is not None, f"after averaging, {name} has no gradient")
            own = torch.zeros_like(right[name]) if before[name] is None else before[name]
            same = "nothing has changed: these are rank 0's own gradients"
            if before[name] is None:
                same = f"{name} was not used on rank 0, and gets 0: the other rank's gradient is missing in the mean"
            sums = "these are the sums over the ranks; divide by world"
            if unused and name.startswith("spare"):
                sums = "the sum is divided by the number of ranks that have a gradient; the others count as 0, too"
            mistakes = {
                sums: world * right[name],
                same: own,
                "rank 0's own gradients are divided by world, but not added to the others'": own / world,
                "these are divided by world twice": right[name] / world,
                "the mean is added to rank 0's own gradient; it takes its place": own + right[name],
            }
            if world != 2:
                half = f"the sum is divided by 2; one process would divide by world, here {world}"
                mistakes[half] = world / 2 * right[name]
            mistakes |= {
                f"the sum is divided by {number}, the number of tensors; divide by world": world / number * right[name]
                for number in (len(found), len(trained))
            }
            mistakes["the mean is rounded: the gradients have to travel in a dtype of their own precision"] = (
                lambda name=name: alike(found[name], right[name], 3e-3)
            )
            if right[name].ndim == 2:
                turned = "the entries of a matrix come back in another order: flatten and unflatten it alike"
                mistakes[turned] = right[name].mT.reshape(right[name].shape)
            mistakes |= always(
                f"the gradient of {name} on rank 0 is not the mean: do all ranks send the same parameters in the same "
                "order, does each piece come back to its own, and is the sum divided by world?"
            )
            case.close(found[name], right[name], what=f"the gradient of {name} on rank 0", mistakes=mistakes)

    used = ("a.weight", "a.bias", "b.weight", "b.bias", "spare.weight", "spare.bias")
    with case("the mean over two ranks", points=2, hint="the sum, divided by world"):
        batches = ranks(2)
        before, found, *_ = run(batches)
        demand(found, whole(batches), before, 2, used)
    with case("over three ranks: one process with the whole batch", points=1, hint="the same for any world"):
        batches = ranks(3)
        before, found, *_ = run(batches)
        demand(found, whole(batches), before, 3, used)
    with case("a layer that this rank did not use counts as 0", points=1, hint="where p.grad is None, send zeros"):
        batches = ranks(2)
        before, found, *_ = run(batches, unused=0)
        demand(found, whole(batches, spare=0), before, 2, used, unused=True)
        batches = ranks(2)
        before, found, *_ = run(batches, unused=1)
        demand(found, whole(batches, spare=1), before, 2, used, unused=True)
    with case("frozen parameters take no part", points=1, hint="if p.requires_grad"):
        _, found, kept, _, _ = run(ranks(2))
        case.true(found["frozen.weight"] is None, "a frozen parameter has got a gradient: an optimizer would move it")
        right = dict(odd_model(7).named_parameters())
        for name in ("a.weight", "frozen.weight"):
            case.close(
                kept[name],
                right[name].detach(),
                what=name,
                mistakes=always(f"{name} itself has changed; only gradients should"),
            )
    with case("all ranks call all_reduce alike", points=1, hint="never decide by what only this rank knows"):
        _, _, _, calls, _ = run(ranks(2), unused=1)
        case.true(len(set(calls)) == 1, f"the ranks call all_reduce {calls} times: real ones would wait for ever")
        case.true(calls[0] > 0, "all_reduce is never called")
    with case("few calls", points=1, hint="torch.cat all gradients to one long tensor; split it afterwards"):
        _, _, _, calls, _ = run(ranks(2))
        many = f"all_reduce is called {calls[0]} times; join the gradients into one tensor, for each call has its price"
        case.true(calls[0] <= 3, many)


# -- checkpoints ------------------------------------------------------------------------------------------


def small_training(steps):
    """Return a model with dropout and an optimizer, after some steps."""
    torch.manual_seed(steps)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    take_steps(model, optimizer, steps)
    return model, optimizer


def take_steps(model, optimizer, steps):
    """Train on random numbers; all randomness comes from torch's generator."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()


def numbers_of(model, optimizer):
    """Return all tensors of a training by name, those of the optimizer's state among them."""
    found = {f"model {name}": value.detach().clone().float() for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number} {name}": torch.as_tensor(value).clone().float() for name, value in state.items()}
    return found


CHECKPOINT = (small_training, take_steps, numbers_of)


def save_and_read(save_checkpoint, how, steps, states):
    """Save a training; return what lies in the file, read without executing anything, and what was saved."""
    import io
    import os
    import tempfile
    from pathlib import Path

    model, optimizer = small_training(3)
    given = None if states is None else [{"cpu": state} for state in states]
    own = torch.get_rng_state()
    more = {} if given is None else {"generators": given}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "checkpoint.pt")
        out = {"path": place, "text": str(place), "file": io.BytesIO()}[how]
        save_checkpoint(model, optimizer, steps, out, **more)
        after = torch.get_rng_state()
        source = place if how != "file" else io.BytesIO(out.getvalue())
        files = sorted(os.listdir(folder))
        try:
            state = torch.load(source, weights_only=True)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300], "files": files}
    if not isinstance(state, dict):
        return {"error": f"the file holds a {type(state).__name__}, no dictionary", "files": files}
    found = {
        "keys": [str(key) for key in state],
        "step": state.get("step"),
        "files": files,
        "drawn": not torch.equal(own, after),
    }
    try:
        fresh, restored = small_training(0)
        fresh.load_state_dict(state["model"])
        found["model"] = {name: value.float() for name, value in fresh.state_dict().items()}
        restored.load_state_dict(state["optimizer"])
        found["optimizer"] = {k: v for k, v in numbers_of(fresh, restored).items() if k.startswith("optimizer")}
    except Exception as error:
        found["unreadable"] = f"{type(error).__name__}: {error}"[:200]
    generators = state.get("generators")
    if isinstance(generators, list) and all(isinstance(one, dict) and "cpu" in one for one in generators):
        found["generators"] = [one["cpu"] for one in generators]
    found["own"] = own
    found["right"] = numbers_of(model, optimizer)
    return found


def save_and_die(save_checkpoint):
    """Save over an older checkpoint, first with a death in the middle of writing, then whole.

    Returns whether the older one was "whole", "half" or "gone" after the death, whether it was still there at the
    moment at which the new one took its place by renaming (None: it was not renamed), whether the new one came, and
    which other files it left behind.
    """
    import os
    import tempfile
    from pathlib import Path

    model, optimizer = small_training(2)
    write, replace, rename, renamed = torch.save, os.replace, os.rename, []

    def die(state, out, *arguments, **keywords):
        if hasattr(out, "write"):
            out.write(b"half a file")
            if hasattr(out, "flush"):
                out.flush()
        else:
            Path(out).write_bytes(b"half a file")
        raise KeyboardInterrupt

    def watched(call):
        def renaming(source, target, *arguments, **keywords):
            if str(target) == str(place):
                renamed.append(place.exists() and place.read_bytes() == old)
            return call(source, target, *arguments, **keywords)

        return renaming

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "checkpoint.pt")
        old = b"the older checkpoint, byte by byte"
        place.write_bytes(old)
        torch.save = die
        try:
            save_checkpoint(model, optimizer, 2, place)
            survived = "not interrupted"
        except KeyboardInterrupt:
            survived = "gone" if not place.exists() else "whole" if place.read_bytes() == old else "half"
        finally:
            torch.save = write
        for name in os.listdir(folder):  # what the killed one left there, it could not remove
            Path(folder, name).unlink()
        place.write_bytes(old)
        os.replace, os.rename = watched(replace), watched(rename)
        try:
            save_checkpoint(model, optimizer, 2, place)
        finally:
            os.replace, os.rename = replace, rename
        left = sorted(name for name in os.listdir(folder) if name != "checkpoint.pt")
        whole = place.read_bytes() != old
    return survived, renamed[-1] if renamed else None, whole, left


@check("save-checkpoint", points=5, allows=("files",))
def save_checkpoint(answer, case):
    """By reading the file, and by dying in the middle of writing it."""

    def saved(how="path", steps=3, states=None):
        found = answer.probe(save_and_read, how, steps, states, uses=CHECKPOINT)
        error = found.get("error", "")
        case.true("FileNotFoundError" not in error, "afterwards there is no file at the path")
        whole = "it holds more than tensors and plain values. Is a whole object saved, in place of its state_dict()?"
        error = whole if "Weights only load failed" in error else error
        case.true(not error, f"the file cannot be read with weights_only=True: {error}")
        missing = [key for key in ("model", "optimizer", "step", "generators") if key not in found["keys"]]
        case.true(not missing, f"the dictionary lacks the keys {missing}")
        case.true(
            "unreadable" not in found,
            f"what was saved of model or optimizer cannot be taken back: {found.get('unreadable')}",
        )
        return found

    def demand(found, part):
        right = {name: value for name, value in found["right"].items() if name.startswith(part)}
        ours = {name if part == "optimizer" else f"model {name}": value for name, value in found[part].items()}
        lost = f"the {part}'s state is not in the file: save its state_dict()"
        case.true(
            set(ours) == set(right),
            f"of the {part}'s state {sorted(set(right) - set(ours))[:4]} is missing; save its state_dict()",
        )
        for name, value in right.items():
            case.close(ours[name], value, what=name, mistakes=always(lost) if not ours[name].any() else None)

    with case("weights and step", points=1, hint="a dictionary with the four keys of the docstring"):
        steps = int(case.randint(100, 10000))
        found = saved(steps=steps)
        demand(found, "model")
        case.equal(found["step"], steps, what="the step")
    with case("the optimizer's memory", points=1, hint="optimizer.state_dict(): without it, m and v begin anew"):
        demand(saved(), "optimizer")
    with case("the generators", points=1, hint="[generator_state()] where no states are given"):
        found = saved()
        case.true(
            "generators" in found, "generators is not a list of what generator_state() returns, one for each rank"
        )
        case.equal(len(found["generators"]), 1, what="the number of states")
        case.equal(found["generators"][0], found["own"], what="the state of torch's generator")
        case.true(
            not found["drawn"],
            "saving itself changes torch's generator: the training would go another way than without saving",
        )
        states = [torch.randint(0, 255, (5056,), dtype=torch.uint8) for _ in range(3)]
        found = saved(states=states)
        flat = "with three ranks, generators is not the list of their states as it was given"
        case.true("generators" in found, flat)
        case.equal(len(found["generators"]), 3, what="with three ranks, the number of states")
        for rank, state in enumerate(states):
            case.equal(found["generators"][rank], state, what=f"the state of rank {rank}")
    with case("to a path, a text or a file object", points=1, hint="hasattr(out, 'write') tells a file object"):
        for how in ("path", "text", "file"):
            case.equal(saved(how, steps=7)["step"], 7, what=f"the step, saved to a {how},")
    with case(
        "whole or not at all",
        points=1,
        hint="write to another file beside it; then replace the old one by it, in one go",
    ):
        survived, renamed, whole, left = answer.probe(save_and_die, uses=CHECKPOINT)
        case.true(whole, "saving over an older checkpoint leaves the older one there")
        died = "killed in the middle of writing, it leaves half a file where the older checkpoint was"
        case.true(survived != "half", died)
        deleted = "the older checkpoint is deleted before the new one takes its place; os.replace does both in one go"
        case.true(survived != "gone" and renamed is not False, deleted)
        case.true(
            renamed is not None,
            "the new file is written over the older one; write another file, and rename it with os.replace",
        )
        case.true(not left, f"other files are left behind: {left}")


def load_and_look(load_checkpoint, how, rank, arguments):
    """Write a checkpoint as the docstring of save_checkpoint describes it, and load it into a fresh training."""
    import io
    import tempfile
    from pathlib import Path

    model, optimizer = small_training(5)
    right = numbers_of(model, optimizer)
    states = []
    for seed in (11, 12, 13):
        torch.manual_seed(seed)
        states.append({"cpu": torch.get_rng_state()})
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1234, "generators": states}
    fresh, restored = small_training(1)
    for group in restored.param_groups:
        group["lr"] = 0.3  # of a process that has just begun
    tag = torch.serialization.location_tag
    with tempfile.TemporaryDirectory() as folder:
        place, memory = Path(folder, "checkpoint.pt"), io.BytesIO()
        if how == "gpu":
            torch.serialization.location_tag = lambda storage: "cuda:99"
        try:
            torch.save(state, place)
            torch.save(state, memory)
        finally:
            torch.serialization.location_tag = tag
        memory.seek(0)
        source = {"path": place, "text": str(place), "file": memory, "gpu": place}[how]
        try:
            step = load_checkpoint(source, fresh, restored, *arguments)
        except RuntimeError as error:
            if how != "gpu" or "CUDA" not in str(error):
                raise
            return "CUDA"
    own, training = torch.get_rng_state(), fresh.training
    found = numbers_of(fresh, restored)
    take_steps(fresh, restored, 3)
    torch.set_rng_state(states[rank]["cpu"])
    take_steps(model, optimizer, 3)
    return (
        step,
        found,
        right,
        own,
        [one["cpu"] for one in states],
        numbers_of(fresh, restored),
        numbers_of(model, optimizer),
        training,
    )


def load_code(load_checkpoint):
    """Load a file with code in it; return whether the code ran, and whether the file was refused."""
    import io

    class Trap:
        def __reduce__(self):
            return nn.Linear, (1, 1)  # harmless; any function might stand here

    model, optimizer = small_training(1)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 1,
        "generators": [{"cpu": torch.get_rng_state()}],
    }
    memory = io.BytesIO()
    torch.save(state | {"trap": Trap()}, memory)
    memory.seek(0)
    try:
        load_checkpoint(memory, model, optimizer)
    except Exception as error:
        return type(error).__name__
    return ""


@check("load-checkpoint", points=5, allows=("files",))
def load_checkpoint(answer, case):
    """With files that the check has written."""

    def load(how="path", rank=0, arguments=()):
        return answer.probe(load_and_look, how, rank, arguments, uses=CHECKPOINT)

    with case("returns the step", points=1, hint="return state['step']; from a path, a text, a file object"):
        for how in ("path", "text", "file"):
            step = load(how)[0]
            mistakes = {"nothing is returned; return the number of steps that were done": None}
            case.equal(step, 1234, what=f"the step from a {how}", mistakes=mistakes)
    with case("weights and optimizer are taken back", points=1, hint="load_state_dict of both"):
        _, found, right, *_ = load()
        for name, value in right.items():
            case.true(name in found, f"{name} is missing: is the optimizer's state loaded?")
            part = name.split()[0]
            part = "model's buffer" if "running" in name or "num_batches" in name else part
            mistakes = always(f"the {part} is as it was before: its state is not loaded")
            case.close(found[name], value, what=name, mistakes=mistakes)
        case.true(
            load("gpu") != "CUDA",
            "a checkpoint from a GPU that this machine does not have cannot be loaded: map_location says where to",
        )
    with case(
        "the generator of this rank is taken back", points=1, hint="set_generator_state(state['generators'][rank])"
    ):
        for rank, arguments in ((0, ()), (2, (2,))):
            own, states = load(rank=rank, arguments=arguments)[3:5]
            case.true(torch.equal(own, states[rank]),
                      "torch's generator has the state of another rank" if any(torch.equal(own, one) for one in states)
                      else "torch's generator is not set back: dropout would go on with other numbers")  # fmt: skip
    with case("three steps later, still equal", points=1, hint="weights, optimizer, generator: all of them, in place"):
        *_, found, right, training = load(rank=1, arguments=(1,))
        mode = "the model was in training mode before, and is in evaluation mode afterwards"
        case.true(training, mode)
        for name, value in right.items():
            case.true(name in found, f"{name} is missing 3 steps later: is the optimizer's state loaded?")
            rest = "3 steps later it is another training: are generator and optimizer, with options like lr, all back?"
            case.close(found[name], value, what=f"{name}, 3 steps later,", mistakes=always(rest))
    with case("a file with code in it is refused", points=1, hint="weights_only=True"):
        error = answer.probe(load_code, uses=CHECKPOINT)
        case.true(
            error != "", "a file from a stranger can run any code while it is loaded: weights_only=True refuses that"
        )


# -- export -----------------------------------------------------------------------------------------------


def export_and_run(export, batches, metadata):
    """Export a small model with a batch norm; run the file on these batches, and describe it."""
    import os
    import tempfile

    import onnxruntime

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head, self.norm = nn.Embedding(50, 8), nn.Linear(8, 2), nn.BatchNorm1d(8)
            self.register_buffer("table", torch.randn(40, 8))
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(2, 3)

        def forward(self, tokens):
            modes.append(self.training)
            real = (tokens != 0)[..., None].float()
            x = self.embed(tokens) + self.table[: tokens.shape[1]]
            heads = x.view(*tokens.shape, 2, 4).transpose(1, 2)
            scores = (heads @ heads.transpose(2, 3)).masked_fill(tokens[:, None, None] == 0, -torch.inf)
            x = x + (scores.softmax(-1) @ heads).transpose(1, 2).flatten(2)
            return self.head(self.norm((x * real).sum(1) / real.sum(1).clamp(min=1)))

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 2)

        def forward(self, tokens):
            return self.embed(tokens).mean(1)

    modes = []
    torch.manual_seed(0)
    tiny, model = Tiny().eval(), Small().train()
    with torch.no_grad():
        expected = [model.eval()(batch) for batch in batches]
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "small.onnx")
        modes.clear()
        export(model, path, metadata)
        exported_in_training = any(modes)
        training, files = model.training, sorted(os.listdir(folder))
        with tempfile.TemporaryDirectory() as another:
            export(tiny, os.path.join(another, "tiny.onnx"), metadata)
        if "small.onnx" not in files:
            return {"files": files}
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            return {"files": files, "broken": f"{type(error).__name__}: {error}"[:200]}
        found = {
            "files": files,
            "training": training,
            "tiny training": tiny.training,
            "exported in training": exported_in_training,
            "inputs": [
                (one.name, one.type, [str(n) if isinstance(n, str) else n for n in one.shape])
                for one in session.get_inputs()
            ],
            "outputs": [
                (one.name, one.type, [str(n) if isinstance(n, str) else n for n in one.shape])
                for one in session.get_outputs()
            ],
            "metadata": {str(k): str(v) for k, v in session.get_modelmeta().custom_metadata_map.items()},
        }
        name = session.get_inputs()[0].name
        results = []
        for batch in batches:
            try:
                results.append(torch.from_numpy(session.run(None, {name: batch.numpy()})[0]))
            except Exception as error:
                results.append(f"{type(error).__name__}: {error}"[:200])
    with torch.no_grad():
        loud = [model.train()(batch) if len(batch) > 1 else expected[0] for batch in batches]
    return found | {"results": results, "in training": loud, "expected": expected}


@check("export", points=6)
def export(answer, case):
    """By running the file with ONNX Runtime on batches of other sizes."""
    kept = {}
    texts = {"tokenizer": '{"a": "ü"}', "max_length": "40"}

    def exported():
        if not kept:
            sizes = (2, 8), (5, 3), (1, 1), (1, 40), (3, 17)
            batches = [torch.randint(1, 50, size) for size in sizes]
            kept.update(answer.probe(export_and_run, batches, texts))
        case.true("small.onnx" in kept["files"], "there is no file at the path")
        further = [name for name in kept["files"] if name != "small.onnx"]
        alone = f"; there are further files, {further}, and the file alone is worth nothing" if further else ""
        case.true("broken" not in kept, f"ONNX Runtime cannot load the file: {kept.get('broken')}{alone}")
        return kept

    def demand_run(found, numbers):
        kind = found["inputs"][0][1]
        case.true("int64" in kind, f"the tokens are {kind}, expected int64")
        for number in numbers:
            result, expected = found["results"][number], found["expected"][number]
            refused = f"the file refuses a batch of another size ({len(expected)} texts): {result}"
            free = all(isinstance(size, str) for size in found["inputs"][0][2])
            advice = "mark both axes of `tokens` as dynamic"
            if free:
                advice = "both axes are dynamic, but a size of the example has become a constant: was one of them 1?"
            case.true(not isinstance(result, str), f"{refused}; {advice}")
            in_training = found["in training"][number]
            mistakes = {
                "the file computes what the model computes in training mode: call eval() before": in_training,
                "these are probabilities, not logits": expected.softmax(-1),
            }
            case.close(result, expected, what="the logits of the file", mistakes=mistakes)

    with case("one input tokens, one output logits", points=1, hint="input_names=['tokens'], output_names=['logits']"):
        found = exported()
        case.true(
            [one[0] for one in found["inputs"]] == ["tokens"], f"the inputs are {[one[0] for one in found['inputs']]}"
        )
        case.true(
            [one[0] for one in found["outputs"]] == ["logits"],
            f"the outputs are {[one[0] for one in found['outputs']]}",
        )
        case.true("int64" in found["inputs"][0][1], f"the tokens are {found['inputs'][0][1]}, expected int64")
        kind = found["outputs"][0][1]
        case.true(kind == "tensor(float)", f"the logits are {kind}, expected float32")
    with case(
        "computes what the model computes in evaluation mode",
        points=1,
        hint="model.eval() before, the old mode afterwards",
    ):
        found = exported()
        demand_run(found, [0])
        wrong_mode = "the model was exported in training mode: call eval() before, or dropout may end up in the file"
        case.true(not found["exported in training"], wrong_mode)
        case.true(
            found["training"],
            "the model was in training mode before, and is in evaluation mode afterwards: set it back",
        )
        case.true(
            not found["tiny training"],
            "a model that was in evaluation mode is in training mode afterwards: set back the mode in which it was",
        )
    with case("batches of any size, texts of any length", points=2, hint="both axes are dynamic"):
        found = exported()
        for axis, what in enumerate(("batch", "length")):
            size = found["inputs"][0][2][axis]
            case.true(isinstance(size, str), f"the {what} is fixed at {size} in the file: mark this axis as dynamic")
        demand_run(found, range(5))
    with case("carries the metadata", points=1, hint="metadata_props of the ONNX model"):
        found = exported()
        case.true(
            set(texts) <= set(found["metadata"]),
            f"the file's metadata_props hold {sorted(found['metadata'])}, not {sorted(texts)}",
        )
        for name, text in texts.items():
            case.equal(found["metadata"][name], text, what=f"the text {name!r}")
    with case("one file, with all weights in it", points=1, hint="nothing may be written beside it"):
        files = exported()["files"]
        further = [name for name in files if name != "small.onnx"]
        case.true(not further, f"there are further files: {further}; the file alone would be worth nothing")


# -- what is handed in ------------------------------------------------------------------------------------


def quick_reviews(number, seed):
    """Return fresh generated reviews; the generator lies beside this file."""
    spec = importlib.util.spec_from_file_location("reviews", Path(__file__).with_name("reviews.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_reviews(number, seed)


def held_out_texts(case):
    """Return texts that no training has seen, their labels, and the accuracies that give points, at the scale in
    force."""
    if runtime.scale() == "full":
        from common.data import text

        return *text.imdb("test"), (0.80, 0.85, 0.87, 0.88, 0.885)
    return *quick_reviews(1000, int(case.randint(10**6, 10**9))), (0.62, 0.78, 0.81, 0.83, 0.85)


def look_at_file(classify):
    """Return what is to be said against the file classifier.onnx in this folder, or ""; and its size."""
    import os

    path = "classifier.onnx"
    try:
        classify([])
    except NotImplementedError:  # nothing is written yet: that comes first
        raise
    except Exception:  # what is wrong with the file comes before what that does to the answer
        pass
    if not os.path.isfile(path):
        return f"there is no file {path} beside the notebook: the section before this task writes it", 0
    size = os.path.getsize(path)
    if size > 32 * 2**20:
        return f"{path} has {size / 2**20:.0f} MiB; 32 MiB are the most that is taken", size
    try:
        import onnx

        proto = onnx.load(path, load_external_data=False)
    except Exception as error:
        return f"{path} is no ONNX file, or a damaged one ({type(error).__name__})", size
    initializers = list(proto.graph.initializer)
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in initializers):
        return f"the weights of {path} lie in another file: export it with all weights inside", size
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"ONNX Runtime cannot load {path} ({type(error).__name__}: {str(error)[:150]})", size
    missing = [name for name in ("tokenizer", "max_length") if name not in session.get_modelmeta().custom_metadata_map]
    if missing:
        return f"{path} lacks {' and '.join(missing)} in its metadata_props: nobody could make tokens for it", size
    return "", size


def logits_by_the_rules(classify, texts, cutting="as in training"):
    """Return what classifier.onnx says about texts, alone and padded beside three others, without the answer.

    Args:
        cutting: how long texts are shortened: "as in training", or otherwise.
    """
    del classify
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession("classifier.onnx", providers=["CPUExecutionProvider"])
    carried = session.get_modelmeta().custom_metadata_map
    tokenizer, length = Tokenizer.from_str(carried["tokenizer"]), int(carried["max_length"])
    first = {"as in training": length // 4, "first": length, "last": 0, "halves": length // 2}[cutting]
    every = []
    for text in texts:
        ids = tokenizer.encode(text).ids or [1]
        every.append(ids if len(ids) <= length else [*ids[:first], *ids[len(ids) - (length - first) :]])
    tokens = np.zeros((len(every), length), np.int64)
    for row, ids in zip(tokens, every):  # noqa: B905
        row[: len(ids)] = ids
    alone = [session.run(None, {"tokens": np.array([ids], np.int64)})[0] for ids in every]
    padded = [session.run(None, {"tokens": tokens[i : i + 4]})[0] for i in range(0, len(tokens), 4)]
    return tuple(torch.from_numpy(np.concatenate(logits)).double() for logits in (alone, padded))


def largest_batch(classify, texts):
    """Return how many texts go through the model at once, at most, and what comes back."""
    import onnxruntime

    run, sizes = onnxruntime.InferenceSession.run, [0]

    def watched(self, names, inputs, *more, **options):
        sizes.extend(len(value) for value in inputs.values())
        return run(self, names, inputs, *more, **options)

    onnxruntime.InferenceSession.run = watched
    try:
        found = classify(texts)
    finally:
        onnxruntime.InferenceSession.run = run
    return max(sizes), len(found)


def error_of(classify, texts):
    """Return what is raised for these texts, or ""."""
    try:
        classify(texts)
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:150]
    return ""


@check("classify", points=20)
def classify(answer, case):
    """On held-out texts; the accuracy is computed here."""
    kept = {}

    def demand_file():
        trouble, _ = answer.probe(look_at_file)
        case.true(not trouble, trouble)

    def logits_of(texts):
        result = answer(texts)
        case.true(
            isinstance(result, torch.Tensor) or hasattr(result, "dtype"),
            "the result is no tensor and no array; return the logits",
        )
        result = torch.as_tensor(result)
        mistakes = {
            "these are the predicted classes; return the logits of both": (len(texts),),
            "rows and columns are exchanged": (2, len(texts)),
        }
        if len(texts) != 2:
            case.shape(result, (len(texts), 2), what="the logits", mistakes=mistakes)
        case.finite(result, what="the logits")
        case.dtype(result, torch.float32, what="the logits")
        return result.double()

    def the_files_own(texts, cutting="as in training"):
        """The file's logits of each text alone; how far neighbours and padding may move them: see `agrees`."""
        alone, padded = answer.probe(logits_by_the_rules, texts, cutting)
        moved, size = (padded - alone).abs().max(), alone.abs().max().clamp(min=1)
        return alone, torch.maximum(3 * moved, 0.03 * size), moved / size

    def agrees(found, texts, cutting="as in training"):
        """Whether these are the file's logits, up to what an int8 model rounds by the batch.

        It has one scale for all numbers of a batch, so that neighbours move a text's logits: by 1 % as a rule, by 10 %
        where the weights use all 8 bits and the processor adds their products in 16 (no VNNI).
        """
        alone, room, _ = the_files_own(texts, cutting)
        return bool(((found - alone).abs() < room).all())

    def accuracy():
        if not kept:
            demand_file()
            texts, labels, steps = held_out_texts(case)
            found = torch.cat([logits_of(texts[i : i + 500]) for i in range(0, len(texts), 500)])
            kept["share"] = (found.argmax(-1) == torch.tensor(labels)).double().mean().item()
            kept["steps"] = steps
        return kept["share"], kept["steps"]

    with case(
        "classifier.onnx lies beside the notebook, whole", points=2, hint="run the section that exports and ships it"
    ):
        demand_file()
    with case("logits, one row for each text", points=2, hint="(N, 2), raw; also for one text, and for none"):
        demand_file()
        texts = [*quick_reviews(5, int(case.randint(0, 10**6)))[0]]
        found = logits_of(texts)
        rows = found.any(-1)
        case.true(
            rows.all(), f"{int((~rows).sum())} of {len(rows)} rows are 0: is the last, incomplete batch left out?"
        )
        case.true(logits_of(texts[:1]).shape == (1, 2), "a list with one text gives no (1, 2)")
        error = answer.probe(error_of, [])
        case.true(not error, f"an empty list of texts is not taken ({error})")
        case.true(logits_of([]).shape == (0, 2), "an empty list of texts gives no (0, 2)")
        probabilities = bool(((found.sum(-1) - 1).abs() < 1e-4).all() and (found >= 0).all())
        case.true(not probabilities, "these are probabilities; return the raw logits")
        case.true(
            agrees(found, texts) or not agrees(found.flip(-1), texts), "the columns are exchanged: blame, then praise"
        )
        case.true(agrees(found, texts), "the file itself, given the tokens of its own tokenizer, has other logits")
        many = ["great", "dull"] * 600
        at_once, number = answer.probe(largest_batch, many)
        case.equal(number, len(many), what=f"the number of rows for {len(many)} texts")
        case.true(
            at_once < len(many),
            f"a list of {at_once} texts goes through the model in one batch; 25,000 would not fit into the memory",
        )
    with case("each text for itself", points=2, hint="padding, order and neighbours change nothing"):
        demand_file()
        texts = [*quick_reviews(24, int(case.randint(0, 10**6)))[0]]
        _, room, moved = the_files_own(texts)
        case.true(
            moved < 0.25,
            "the file itself gives a text other logits alone than beside others: does the model count padding?",
        )
        alone = torch.cat([logits_of([text]) for text in texts])
        together = logits_of(texts)
        back = logits_of(texts[::-1]).flip(0)
        case.true(
            bool(((back - together).abs() < room).all()),
            "in another order the texts get other logits: put the rows back in the order of the texts",
        )
        case.true(
            bool(((alone - together).abs() < room).all()),
            "a text gets other logits alone than beside others: is padding counted, or added in front?",
        )
    with case("long texts, empty texts, unknown letters", points=2, hint="cut to max_length; at least one token"):
        demand_file()
        word = quick_reviews(1, 3)[0][0]
        logits_of([word])
        for text, said in (
            ("", "the empty text is not taken: it has no token of its own"),
            (f"{word} " * 400, "a text of thousands of tokens is not taken: see train.cut"),
        ):
            error = answer.probe(error_of, [text])
            case.true(not error, f"{said} ({error})")
        found = logits_of(["", "☃ Ω 漢字", f"{word} " * 400, word])
        case.true(found.shape == (4, 2), "one row for each text")
        for text, what in (("", "the empty text"), (" \n ", "a text of blanks only, which has no token either,")):
            said = f"{what} has other logits than [UNK] alone, which is token 1"
            case.true(agrees(logits_of([text]), [text]), said)
        text = 'The MUSIC was great, not dull;<br />a café (or two)... "weak" acting!'
        said = "capitals, accents, marks: these are not the tokens that the file's own tokenizer makes of the text"
        case.true(agrees(logits_of([text]), [text]), said)
        reviews, labels = quick_reviews(400, int(case.randint(0, 10**6)))
        blame, praise = (
            " ".join(text for text, label in zip(reviews, labels, strict=True) if label == kind) for kind in (0, 1)
        )
        for long in (f"{blame} {praise}", f"{praise} {blame}"):
            found = logits_of([long])
            if agrees(found, [long]):
                continue
            cuttings = {
                "first": "of a long text only the first tokens are kept",
                "last": "of a long text only the last tokens are kept",
                "halves": "a long text is cut to equal parts of its beginning and its end",
            }
            for cutting, sentence in cuttings.items():
                case.true(not agrees(found, [long], cutting), f"{sentence}; cut it as train.cut does")
            case.true(False, "a long text is not cut to max_length tokens as in training: see train.cut")
    for number, (points, name) in enumerate(
        zip(
            (2, 3, 3, 2, 2),
            ("better than words alone", "better than pairs of words", "the pass mark", "good", "very good"),
            strict=True,
        )
    ):
        if runtime.scale() == "full":
            name = (
                "better than words counted",
                "the pass mark, 85 %",
                "good",
                "very good",
                "as good as the reference",
            )[number]
        with case(f"held-out texts: {name}", points=points, hint="train longer, or better: section 10 has ideas"):
            share, steps = accuracy()
            least = steps[number]
            other = " Half of all is chance: was it trained on the other kind of reviews? Are the labels exchanged?"
            said = f"{share:.1%} of the held-out texts are classified rightly, more than {least:.1%} are needed."
            case.true(share > least, said + other * (share < 0.6))
