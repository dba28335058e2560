"""The checks of Lab 3, the full Transformer.

The oracles are torch's `nn.Transformer` with the same weights, `F.cross_entropy` with probabilities, and counting
through every possible translation. Shapes: B sentences, T target tokens, S source tokens, D = d_model, V tokens in the
vocabulary.

Functions `..._mistakes` return what common mistakes would have computed, under the sentence that a student reads
when the answer equals it. Functions that are handed to `probe` run beside the answer.
"""

import collections
import copy
import itertools
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from common.checks import alike, always, check

PAD, START, END = 0, 1, 2

# Library functions that would be the whole answer (see `check`).
LIBRARY_TRANSFORMER = ("TransformerDecoder", "nn.Transformer(", "multi_head_attention", "MultiheadAttention")


# -- torch's weights under our names ----------------------------------------------------------------------


def attention_state(module, prefix):
    """Return the weights of an `nn.MultiheadAttention` under the names of `Attention`."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    weights = (*module.in_proj_weight.chunk(3), module.out_proj.weight)
    biases = (*module.in_proj_bias.chunk(3), module.out_proj.bias)
    state = {f"{prefix}{name}.weight": w.detach().clone() for name, w in zip(names, weights, strict=True)}
    return state | {f"{prefix}{name}.bias": b.detach().clone() for name, b in zip(names, biases, strict=True)}


def layer_state(layer, prefix=""):
    """Return the weights of one of torch's encoder or decoder layers under the names of ours."""
    state = attention_state(layer.self_attn, f"{prefix}self_attn.")
    if hasattr(layer, "multihead_attn"):
        state |= attention_state(layer.multihead_attn, f"{prefix}cross_attn.")
    for part in ("linear1", "linear2", "norm1", "norm2", "norm3"):
        if hasattr(layer, part):
            values = getattr(layer, part).state_dict()
            state |= {f"{prefix}{part}.{name}": value.clone() for name, value in values.items()}
    return state


def state_of(transformer):
    """Return the weights of an `nn.Transformer` under the names of `Seq2Seq`; the embedding is not among them."""
    state = {}
    for side in ("encoder", "decoder"):
        stack = getattr(transformer, side)
        for number, layer in enumerate(stack.layers):
            state |= layer_state(layer, f"{side}.{number}.")
        state |= {f"{side}_norm.{name}": value.clone() for name, value in stack.norm.state_dict().items()}
    return state


def randomised(case, module):
    """Give every parameter of a module random values: norms around 1, matrices of unit gain."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(size * case.randn(*parameter.shape))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return module.eval()


def demand_parameters(case, built, state, note=""):
    """Demand the parameters that `state` has, and no others."""
    parameters = built.parameters()
    case.true(parameters, "the module has no parameters: each part must be an attribute of self")
    for name, value in state.items():
        there = ", ".join(list(parameters)[:12])
        shared = " (is one layer used several times?)" if ".1." in name else ""
        if name.startswith("cross_attn") and any(one.startswith("self_attn") for one in parameters):
            shared = " (is it the same object as self_attn? each attention needs weights of its own)"
        case.true(name in parameters, f"the module has no parameter named {name}{shared}; it begins with {there}")
        case.shape(parameters[name], value.shape, what=name)
    extra = sorted(set(parameters) - set(state))
    case.true(not extra, f"the module has parameters that do not belong there: {', '.join(extra)}{note}")


# -- batches ----------------------------------------------------------------------------------------------


def area(lengths, batch):
    """Return rows × longest."""
    return len(batch) * max(lengths[i] for i in batch)


@check("bucket-batches", points=8)
def bucket_batches(answer, case):
    """By counting: what a right division has to fulfil."""

    def draw(count=200):
        return [int(n) for n in case.randint(3, 40, (count,))]

    def batches_of(lengths, max_tokens, seed):
        found = answer(lengths, max_tokens, seed)
        case.true(found is not None, "the result is None (is the return statement missing?)")
        case.true(isinstance(found, list | tuple), "the result must be a list of batches")
        found = [b.tolist() if isinstance(b, torch.Tensor) else list(b) for b in found]
        case.true(all(found), "there is an empty batch")
        return found

    def demand_partition(lengths, found):
        flat = [i for batch in found for i in batch]
        counts = collections.Counter(flat)
        inside = all(isinstance(i, int) and 0 <= i < len(lengths) for i in flat)
        case.true(counts != collections.Counter(lengths), "the batches hold lengths; they must hold indices")
        case.true(inside, "some entries are no indices into lengths (are they lengths, or pairs?)")
        twice = [i for i, n in counts.items() if n > 1]
        case.true(not twice, f"{len(twice)} sentences are in more than one batch, or several times in one")
        missing = len(lengths) - len(counts)
        case.true(not missing, f"{missing} of {len(lengths)} sentences are in no batch (is the last batch lost?)")

    with case("every sentence is in exactly one batch", points=2, hint="what happens to the last, incomplete batch?"):
        for lengths in (draw(), draw(37), [5]):
            demand_partition(lengths, batches_of(lengths, 120, 1))
    with case("rows × longest stays within max_tokens", points=2, hint="the padding counts, too"):
        lengths = draw()
        for limit in (120, 300):
            found = batches_of(lengths, limit, 2)
            too_large = [batch for batch in found if area(lengths, batch) > limit and len(batch) > 1]
            sums = all(sum(lengths[i] for i in batch) <= limit for batch in found)
            case.true(
                not too_large or not sums,
                "the sum of the lengths stays within max_tokens, but the rectangle does not: padding counts, too",
            )
            case.true(
                not too_large,
                f"with max_tokens = {limit} a batch has rows × longest = {max([area(lengths, b) for b in found])}",
            )
    with case("batches are full, and hold little padding", points=2, hint="sort by length; cut as late as possible"):
        lengths, limit = draw(400), 200
        found = batches_of(lengths, limit, 3)
        demand_partition(lengths, found)
        waste = sum(area(lengths, batch) for batch in found) / sum(lengths) - 1
        case.true(
            waste < 0.1,
            f"there is {waste:.0%} of padding on top of the text: sentences of different lengths are together",
        )
        fewest = sum(lengths) / limit
        alike_rows = len(found) > 3 and len({len(batch) for batch in found}) <= 2
        case.true(
            not alike_rows,
            "all batches have the same number of sentences: what is limited is the area, rows × longest of the batch",
        )
        case.true(
            len(found) < 1.25 * fewest + 2,
            f"there are {len(found)} batches; about {fewest:.0f} could hold the text: they are cut too early",
        )
        long = [7, 90, 8, 6]
        found = batches_of(long, 50, 3)
        demand_partition(long, found)
        case.true([1] in found, "a sentence that is longer than max_tokens must be a batch of its own")
        demand_partition([70, 80], batches_of([70, 80], 50, 3))
        exact = batches_of([5] * 20, 50, 3)
        case.true(
            len(exact) == 2,
            f"20 sentences of 5 tokens with max_tokens = 50 make {len(exact)} batches, expected 2: rows × longest may "
            "be exactly max_tokens",
        )
    with case(
        "chance decides, and the seed decides chance", points=2, hint="shuffle before the stable sort, and the batches"
    ):
        lengths = draw(400)
        first, again, other = (batches_of(lengths, 200, seed) for seed in (4, 4, 5))
        case.true(
            first == again, "the same seed gives other batches: draw from a generator of your own, made of the seed"
        )
        case.true(first != other, "another seed gives the same batches: seed is not used")
        longest = [max(lengths[i] for i in batch) for batch in first]
        ordered = longest in (sorted(longest), sorted(longest, reverse=True))
        case.true(not ordered, "the batches come in the order of their lengths: shuffle them at the end")
        equal = [9] * 60
        first, other = ({frozenset(batch) for batch in batches_of(equal, 90, seed)} for seed in (6, 7))
        case.true(
            first != other,
            "equally long sentences are together in every epoch: shuffle the sentences before you sort",
        )


@check("teacher-forcing", points=6)
def teacher_forcing(answer, case):
    """Against tensors that are filled entry by entry."""

    def draw(*lengths):
        return [[int(i) for i in case.randint(4, 50, (n,))] for n in lengths]

    def table(sentences, entry, width=None):
        """Fill a tensor: entry(sentence, t) says what stands there, None means PAD."""
        width = 1 + max(map(len, sentences)) if width is None else width
        filled = torch.full((len(sentences), width), PAD)
        for row, sentence in enumerate(sentences):
            for t in range(width):
                value = entry(sentence, t)
                filled[row, t] = PAD if value is None else value
        return filled

    def word(sentence, t):
        return sentence[t] if 0 <= t < len(sentence) else None

    def right_input(sentence, t):
        return START if t == 0 else word(sentence, t - 1)

    def right_label(sentence, t):
        return END if t == len(sentence) else word(sentence, t)

    input_mistakes = {
        "the inputs are not shifted: they hold the very tokens that are asked for": right_label,
        "the inputs are not shifted, and START is missing": word,
        "the inputs begin with END instead of START": lambda s, t: END if t == 0 else word(s, t - 1),
        "the inputs begin with PAD instead of START": lambda s, t: PAD if t == 0 else word(s, t - 1),
    }
    label_mistakes = {
        "the labels are not shifted: they hold what the decoder reads at the same place": right_input,
        "the labels are shifted in the wrong direction, or by two": lambda s, t: right_label(s, t + 1),
        "END is missing in the labels: the model would never learn to stop": word,
        "the labels hold START, END instead of the sentence and END": lambda s, t: (
            START if t == 0 else END if t == len(s) + 1 else word(s, t - 1)
        ),
        "the labels end with START instead of END": lambda s, t: START if t == len(s) else word(s, t),
    }

    def call(sentences):
        inputs, labels = case.parts(answer(sentences), "inputs", "labels")
        width = 1 + max(map(len, sentences))
        narrow = {"the width leaves no room for START or END": (len(sentences), width - 1)}
        narrow["there is a column too many: START is no label, and END is no input"] = (len(sentences), width + 1)
        for what, tensor in (("inputs", inputs), ("labels", labels)):
            case.shape(tensor, (len(sentences), width), what=what, mistakes=narrow)
        exchanged = alike(labels, table(sentences, right_input)) and alike(inputs, table(sentences, right_label))
        case.true(not exchanged, "inputs and labels are exchanged: the inputs come first")
        return inputs, labels

    with case("two tensors of integers, with a column for START or END", points=1, hint="T = 1 + longest"):
        inputs, labels = call(draw(3, 5))
        case.dtype(inputs, torch.int64, what="inputs")
        case.dtype(labels, torch.int64, what="labels")
    with case("the labels are the sentence and END", points=2, hint="[*sentence, END], then PAD"):
        for sentences in (draw(4), draw(4, 6, 1)):
            _, labels = call(sentences)
            mistakes = {name: table(sentences, entry) for name, entry in label_mistakes.items()}
            last = table(sentences, word)
            last[:, -1] = END
            mistakes |= {"END stands in the last column of every row; it belongs right behind the sentence": last}
            right = table(sentences, right_label)
            mistakes |= {
                "the rows are in another order than the sentences": lambda found=labels, right=right: (
                    sorted(found.tolist()) == sorted(right.tolist())
                )
            }
            case.equal(labels, right, what="labels", mistakes=mistakes)
        kept = answer.inputs_after(sentences)[0]
        case.true(
            kept == sentences,
            "the caller's lists are changed (by append or insert?): in the next epoch they would grow again",
        )
    with case("the inputs are START and the sentence", points=2, hint="[START, *sentence], then PAD"):
        for sentences in (draw(4), draw(4, 6, 1)):
            inputs, _ = call(sentences)
            asked = table(sentences, right_label) != PAD  # elsewhere the inputs do not matter
            mistakes = {name: table(sentences, entry) * asked for name, entry in input_mistakes.items()}
            case.equal(inputs * asked, table(sentences, right_input), what="inputs", mistakes=mistakes)
    with case("the padding stands on the right, in both", points=1, hint="short sentences are filled up at their end"):
        sentences = draw(2, 7)
        inputs, labels = call(sentences)
        left = inputs[0, 0] == PAD and labels[0, 0] == PAD
        case.true(not left, "the padding stands on the left; it belongs on the right")
        case.true((labels[0, 3:] == PAD).all(), "behind END the labels must be PAD")
        case.true((inputs[0, 4:] == PAD).all(), "behind the sentence the inputs must be PAD")


# -- the decoder layer ------------------------------------------------------------------------------------


def look_up(module, x, keys, values, keep=None):
    """Run torch's attention; `keep` broadcasts to (B, 1, T, S) and is True where a query may attend."""
    if keep is not None:
        B, T, S = x.shape[0], x.shape[1], keys.shape[1]
        keep = ~keep.expand(B, 1, T, S)[:, 0].repeat_interleave(module.num_heads, 0)
    return module(x, keys, values, attn_mask=keep, need_weights=False)[0]


def like_layer(layer, x, memory, keep=None, memory_keep=None, **odd):
    """Compute a decoder layer from torch's own parts; `odd` says what is done wrong."""
    norms = [getattr(layer, f"norm{i}") for i in odd.get("norms", (1, 2, 3))]
    first, second = layer.self_attn, layer.multihead_attn
    if odd.get("swapped"):
        first, second = second, first
    act = odd.get("activation", F.relu)

    def look_back(y, plain):
        source = plain if odd.get("raw_keys") else y
        asks = plain if odd.get("raw_queries") else y
        found = look_up(first, asks, source, source, keep)
        if odd.get("nothing_first"):  # a query without any key: the sum of no values, and the bias
            found = torch.cat([first.out_proj.bias.expand_as(found[:, :1]), found[:, 1:]], dim=1)
        return found

    def look_across(y, plain):
        source = {"target": y, "normed": norms[1](memory)}.get(odd.get("source"), memory)
        asks = plain if odd.get("raw_cross") else y
        if odd.get("sides"):
            return look_up(second, source, asks, asks, odd.get("other_keep"))
        keys = y if odd.get("keys") else source
        values = y if odd.get("values") else source
        return look_up(second, asks, keys, values, memory_keep)

    def feed_forward(y, plain):
        return layer.linear2(act(layer.linear1(y)))

    blocks, begin = [look_back, look_across, feed_forward], x
    for number in odd.get("order", (0, 1, 2)):
        norm = norms[number]
        if odd.get("parallel"):
            x = x + blocks[number](norm(begin if number < 2 else x), begin)
            continue
        if odd.get("post"):
            x = norm(x + blocks[number](x, x))
            continue
        y = x if number in odd.get("bare", ()) else norm(x)
        out = blocks[number](y, x)
        x = out if number in odd.get("alone", ()) else (y if number in odd.get("base", ()) else x) + out
    return x


LAYER_MISTAKES = {
    "the norms come after the blocks (post-norm); here each block normalises its input": {"post": True},
    "the cross-attention is missing": {"order": (0, 2)},
    "the self-attention is missing": {"order": (1, 2)},
    "the feed-forward is missing": {"order": (0, 1)},
    "the cross-attention comes before the self-attention": {"order": (1, 0, 2)},
    "the cross-attention comes before the self-attention (each with the other's norm)": {
        "order": (1, 0, 2),
        "norms": (2, 1, 3),
    },
    "norm1 and norm2 are exchanged": {"norms": (2, 1, 3)},
    "norm2 and norm3 are exchanged": {"norms": (1, 3, 2)},
    "norm1 and norm3 are exchanged": {"norms": (3, 2, 1)},
    "one norm is used for all three blocks": {"norms": (1, 1, 1)},
    "norm1 is used before the cross-attention, too": {"norms": (1, 1, 3)},
    "norm2 is used before the feed-forward, too": {"norms": (1, 2, 2)},
    "self_attn and cross_attn are exchanged": {"swapped": True},
    "the residual around the self-attention is missing": {"alone": (0,)},
    "the residual around the cross-attention is missing": {"alone": (1,)},
    "the residual around the feed-forward is missing": {"alone": (2,)},
    "all residuals are missing": {"alone": (0, 1, 2)},
    "the cross-attention gets the x of the beginning; it must get what the self-attention has made of it": {
        "parallel": True
    },
    "the residuals start from the normalised x; they start from x as it is": {"base": (0, 1, 2)},
    "norm1 is not used": {"bare": (0,)},
    "norm2 is not used": {"bare": (1,)},
    "norm3 is not used": {"bare": (2,)},
    "no norm is used": {"bare": (0, 1, 2)},
    "in the self-attention the keys and values come from x before the norm": {"raw_keys": True},
    "in the self-attention the queries come from x before the norm": {"raw_queries": True},
    "the memory goes through norm2; it has been normalised at the end of the encoder": {"source": "normed"},
    "in the cross-attention keys and values come from the target; they come from the memory": {"source": "target"},
    "in the cross-attention the keys come from the target; they come from the memory": {"keys": True},
    "in the cross-attention the values come from the target; they come from the memory": {"values": True},
    "the sides of the cross-attention are exchanged: queries come from the target, keys and values from the memory": {
        "sides": True
    },
    "there is no ReLU between linear1 and linear2": {"activation": lambda y: y},
    "there is a GELU between linear1 and linear2, not a ReLU": {"activation": F.gelu},
}


def layer_mistakes(layer, x, memory, keep=None, memory_keep=None):
    """Return the outputs that common mistakes lead to."""

    def run(keep=keep, memory_keep=memory_keep, **odd):
        return lambda: like_layer(layer, x, memory, keep, memory_keep, **odd).detach()

    found = {name: run(**odd) for name, odd in LAYER_MISTAKES.items()}
    side = (
        "the sides of the cross-attention are exchanged: queries come from the target, keys and values from the memory"
    )
    found[side + "."] = run(sides=True, other_keep=memory_keep)
    if keep is not None:
        found |= {
            "mask is not used in the self-attention": run(keep=None),
            "mask has the wrong sense in the self-attention: True means that a query may attend": run(keep=~keep),
            "mask is used in the cross-attention: it hides the future of the target, which the memory has not": run(
                memory_keep=keep
            ),
            "mask is used in both attentions; the cross-attention has memory_mask": lambda: run(
                memory_keep=keep if memory_keep is None else keep & memory_keep
            )(),
            "memory_mask is used in the self-attention, and mask in the cross-attention: they are exchanged": run(
                memory_keep, keep
            ),
            "mask is used only in the cross-attention": run(None, keep),
        }
    if memory_keep is not None:
        found |= {
            "memory_mask is not used in the cross-attention": run(memory_keep=None),
            "memory_mask is used in the self-attention, not in the cross-attention": run(memory_keep, None),
            "memory_mask is used in both attentions; it hides the padding of the source": lambda: run(
                memory_keep if keep is None else keep & memory_keep, memory_keep
            )(),
            "memory_mask has the wrong sense: True means that a query may attend": run(memory_keep=~memory_keep),
            "neither mask is used": run(None, None),
        }
    return found


def causal(T, offset=0):
    """Return the causal mask; with an offset, off by so many."""
    return torch.tensor([[key <= query + offset for key in range(T)] for query in range(T)])


def torch_layer(case, d_model=12, heads=3, d_ff=20):
    """Return torch's decoder layer with random weights."""
    layer = nn.TransformerDecoderLayer(d_model, heads, d_ff, dropout=0.0, batch_first=True, norm_first=True)
    return randomised(case, layer)


def loaded_layer(case, answer, d_model=12, heads=3, d_ff=20):
    """Return the answer's layer with the weights of torch's, and torch's layer."""
    layer = torch_layer(case, d_model, heads, d_ff)
    built = answer(d_model, heads, d_ff, 0.0)
    built.load_state_dict(layer_state(layer))
    return built.eval(), layer


@check("decoder-layer", points=16, from_scratch=LIBRARY_TRANSFORMER)
def decoder_layer(answer, case):
    """Against `nn.TransformerDecoderLayer` with the same weights."""

    def expect(built, layer, x, memory, keep=None, memory_keep=None, what="the output"):
        with torch.no_grad():
            hidden = None if keep is None else ~keep
            padding = None if memory_keep is None else ~memory_keep[:, 0, 0]
            right = layer(x, memory, tgt_mask=hidden, memory_key_padding_mask=padding)
            found = built(x, memory, keep, memory_keep)
            blind = {
                "the output is NaN: some query may attend to nothing. Has a mask the wrong sense? True means that a "
                "query may attend": lambda: bool(found.isnan().any())
            }
            mistakes = blind | layer_mistakes(layer, x, memory, keep, memory_keep)
            case.close(found, right, what=what, mistakes=mistakes)

    def padding(*rows):
        return torch.tensor(rows, dtype=torch.bool)[:, None, None, :]

    with case("two attentions, two linear maps, three norms", points=2, hint="use the names that the docstring gives"):
        demand_parameters(case, answer(12, 3, 20), layer_state(torch_layer(case)))
    with case("without masks it agrees with torch", points=4, hint="three times: normalise, block, add"):
        built, layer = loaded_layer(case, answer)
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 5, 12))
        expect(built, layer, case.randn(2, 4, 12), case.randn(2, 7, 12), what="the output for S ≠ T")
    with case("mask is that of the self-attention", points=2, hint="mask: the target; memory_mask: the source"):
        built, layer = loaded_layer(case, answer)
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 5, 12), causal(5))
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 3, 12), causal(5))
    with case("memory_mask is that of the cross-attention", points=3, hint="it has a column for each source token"):
        built, layer = loaded_layer(case, answer)
        keep = padding([1, 1, 1, 0, 0], [1, 1, 1, 1, 0])
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 5, 12), None, keep)
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 5, 12), causal(5), keep)
        keep = padding([1] * 6 + [0], [1] * 3 + [0] * 4)
        expect(built, layer, case.randn(2, 5, 12), case.randn(2, 7, 12), causal(5), keep)
    with case("other sizes", points=1, hint="take every size from the arguments"):
        for d_model, heads, d_ff in ((8, 2, 8), (20, 5, 40)):
            built, layer = loaded_layer(case, answer, d_model, heads, d_ff)
            x, memory = case.randn(3, 4, d_model), case.randn(3, 6, d_model)
            expect(built, layer, x, memory, what=f"the output for d_model = {d_model}, num_heads = {heads}")
    with case(
        "dropout acts in training, and only there", points=2, hint="self.dropout, an nn.Dropout with the given p"
    ):
        x, memory = case.randn(2, 5, 12), case.randn(2, 5, 12)
        built, layer = answer(12, 3, 20, 0.5), torch_layer(case)
        built.load_state_dict(layer_state(layer))
        still = built.eval()(x, memory)
        case.close(
            built(x, memory),
            still,
            what="the output, once more",
            mistakes=always("in evaluation mode two calls differ: dropout acts there, too"),
        )
        case.true(not alike(built.train()(x, memory), still), "in training mode there is no dropout")
        off = answer(12, 3, 20, 0.0)
        off.load_state_dict(layer_state(layer))
        case.close(
            off.train()(x, memory),
            still,
            what="the output in training mode with dropout = 0",
            mistakes=always("with dropout = 0 training mode still drops something: the argument dropout is not used"),
        )
        every = answer(12, 3, 20, 1.0)
        every.load_state_dict(layer_state(layer))
        case.close(
            every.train()(x, memory),
            x,
            what="the output when everything is dropped",
            mistakes=always(
                "when everything that the blocks add is dropped, x should be left: dropout must act on what each block "
                "adds to x, and on nothing else"
            ),
        )
        inner = answer(12, 3, 20, 0.5)
        silent = {name: 0 * value for name, value in layer_state(layer).items() if "out_proj" in name}
        inner.load_state_dict(layer_state(layer) | silent)  # only the feed-forward adds something
        whole = inner.eval()(x, memory) - x
        part = inner.train()(x, memory) - x
        kept = part.abs() > 1e-6
        case.true(
            not alike(part[kept], 2 * whole[kept], 1e-4),
            "there is no dropout after the ReLU: what the feed-forward adds is either dropped or as without dropout",
        )
    with case("everything learns", points=1, hint="nothing is detached, and each part is used"):
        built, layer = loaded_layer(case, answer)
        upstream = case.randn(2, 5, 12)
        gradients = built.parameter_gradients(case.randn(2, 5, 12), case.randn(2, 5, 12), upstream=upstream)
        silent = [n for n, g in gradients.items() if g is None or (not n.endswith("k_proj.bias") and not g.any())]
        case.true(not silent, f"no gradient arrives at {', '.join(silent)}: it is not used, or it is detached")
    with case("the inputs stay as they were", points=1, hint="x = x + y makes a new tensor; x += y does not"):
        built, _ = loaded_layer(case, answer)
        case.unchanged(built, case.randn(2, 5, 12), case.randn(2, 4, 12))


# -- the whole model --------------------------------------------------------------------------------------

VOCAB, WIDTH, HEADS, INNER, LAYERS = 13, 12, 3, 20, 2


def torch_model(case):
    """Return torch's Transformer with random weights, an embedding, and both under the answer's names."""
    with warnings.catch_warnings(action="ignore"):  # that it cannot use nested tensors
        theirs = nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, INNER, dropout=0.0, batch_first=True, norm_first=True)
    randomised(case, theirs)
    embedding = case.randn(VOCAB, WIDTH) / math.sqrt(WIDTH)
    return theirs, embedding, state_of(theirs) | {"embedding.weight": embedding}


def by_definition(length, d_model):
    """Return the sinusoids, entry by entry."""
    rows = [
        [(math.sin, math.cos)[i % 2](t / 10000 ** ((i - i % 2) / d_model)) for i in range(d_model)]
        for t in range(length)
    ]
    return torch.tensor(rows)


def embedded(embedding, tokens, scale=WIDTH**0.5, first=0, still=False, both=False):
    """Return embeddings with positions; `both` scales the positions, too, `still` gives all the same position."""
    positions = by_definition(40, WIDTH)
    T = tokens.shape[1]
    places = positions[first].expand(T, -1) if still else positions[first : first + T]
    x = F.embedding(tokens, embedding)
    return scale * (x + places) if both else scale * x + places


def torch_logits(theirs, embedding, source, inputs, offset=0, hide=True, across="source", norms=(1, 1), ends=1, **odd):
    """Return the logits (B, T, V) by torch's Transformer; other arguments say what is done wrong."""
    mine = {name: odd[name] for name in ("scale", "both") if name in odd}
    places = {name: odd[name] for name in ("first", "still") if name in odd}
    real = (source != PAD)[:, None, None, :]
    x = embedded(embedding, source, **mine, **({"still": True} if odd.get("still_source") else {}))
    if odd.get("no_positions"):
        x = mine.get("scale", math.sqrt(WIDTH)) * F.embedding(source, embedding)
    padding = None if not hide else ~real[:, 0, 0]
    for layer in theirs.encoder.layers if not odd.get("no_encoder") else []:
        x = layer(x, src_key_padding_mask=padding)
    memory = theirs.encoder.norm(x) if norms[0] else x
    if odd.get("raw_memory"):
        memory = embedded(embedding, source, **mine)
    keep = causal(inputs.shape[1], offset)
    if odd.get("alone"):
        keep = torch.eye(inputs.shape[1], dtype=torch.bool)
    if odd.get("open"):
        keep = torch.ones_like(keep)
    if odd.get("first_only"):
        keep = torch.arange(inputs.shape[1]).expand(*keep.shape) == 0
    if odd.get("past"):  # what stands before; the first token has nothing but itself
        keep = causal(inputs.shape[1], -1)
        keep[0, 0] = True
    side = {"source": real, "target": (inputs != PAD)[:, None, None, :], "none": None, "causal": keep}[across]
    x = embedded(embedding, inputs, **mine, **places)
    if odd.get("no_positions"):
        x = mine.get("scale", math.sqrt(WIDTH)) * F.embedding(inputs, embedding)
    if "target_scale" in odd:
        x = embedded(embedding, inputs, odd["target_scale"], **places)
    if odd.get("bare_target"):
        x = F.embedding(inputs, embedding)
    for layer in theirs.decoder.layers[odd.get("run", slice(None))]:
        if odd.get("norm_memory"):
            memory = theirs.encoder.norm(memory)
        x = like_layer(layer, x, memory, keep, side, **odd.get("layer", {}))
    last = theirs.encoder.norm if odd.get("one_norm") else theirs.decoder.norm
    x = last(x) if norms[1] else x
    return (x @ embedding.T * ends).detach()


def model_mistakes(theirs, embedding, source, inputs):
    """Return the logits that common mistakes lead to."""

    def run(**odd):
        return lambda: torch_logits(theirs, embedding, source, inputs, **odd)

    right = run()
    return {
        "the embeddings are not scaled: multiply them by √d_model": run(scale=1.0),
        "the embeddings are multiplied by d_model, not by √d_model": run(scale=WIDTH),
        "the embeddings are divided by √d_model: multiply": run(scale=WIDTH**-0.5),
        "the positions are scaled, too: scale the embedding, then add them": run(both=True),
        "the positions are missing": run(no_positions=True),
        "the positions are missing, and the embeddings are not scaled": run(no_positions=True, scale=1.0),
        "the causal mask is missing: the decoder sees the tokens that it is to predict": run(open=True),
        "the causal mask is off by one: a position sees the next token, which it is to predict": run(offset=1),
        "a position does not see itself: the diagonal of the causal mask must be True": run(offset=-1),
        "the padding of the source is not hidden in the encoder": lambda: torch_logits(
            theirs, embedding, source, inputs, hide=False
        ),
        "the padding of the source is not hidden in the cross-attention": run(across="none"),
        "the padding of the source is hidden nowhere": run(hide=False, across="none"),
        "the mask of the cross-attention is made from the target; it hides the padding of the source": run(
            across="target"
        ),
        "the mask of the cross-attention is the causal one; it hides the padding of the source": run(across="causal"),
        "encoder_norm is not used": run(norms=(0, 1)),
        "decoder_norm is not used": run(norms=(1, 0)),
        "encoder_norm and decoder_norm are not used": run(norms=(0, 0)),
        "encoder_norm is used at the end of the decoder, too; it has decoder_norm": run(one_norm=True),
        "the decoder applies encoder_norm to the memory once more": run(norm_memory=True),
        "the encoder's layers are not used": run(no_encoder=True),
        "the decoder looks at the embedded source; it must look at the memory, what encode returns": run(
            raw_memory=True
        ),
        "only the first layer of the decoder is used": run(run=slice(0, 1)),
        "only the last layer of the decoder is used: each must get the output of the one before": run(
            run=slice(-1, None)
        ),
        "the inputs of the decoder go through embedding alone; use embed, which scales and adds the positions": run(
            bare_target=True
        ),
        "the logits are divided by √d_model": run(ends=WIDTH**-0.5),
        "the logits are multiplied by √d_model": run(ends=WIDTH**0.5),
        "the result is a softmax; return raw logits": lambda: right().softmax(-1),
        "the result is a log-softmax; return raw logits": lambda: right().log_softmax(-1),
    }


def embed_by(model, tokens, start):
    """Call embed with and without a start."""
    return model.embed(tokens), model.embed(tokens, start)


def encode_by(model, source):
    """Call encode."""
    return model.encode(source)


def decode_by(model, inputs, memory, mask):
    """Call decode."""
    return model.decode(inputs, memory, mask)


def starts(model):
    """Return the standard deviation with which the embedding begins."""
    return model.embedding.weight.std().item()


def is_tied(model, source, inputs):
    """Return how the logits change when one row of the embedding changes, and that row's gradient.

    It is the row of a token that is nowhere read.
    """
    logits = model(source, inputs)
    logits[..., -1].square().sum().backward()
    gradient = model.embedding.weight.grad
    gradient = torch.zeros(1) if gradient is None else gradient[-1].clone()
    with torch.no_grad():
        model.embedding.weight[-1] += 1.0
    return (model(source, inputs).detach() - logits.detach()).abs().amax((0, 1)), gradient


def sentences(case, *lengths, width=None):
    """Draw source sentences (B, S) with PAD on the right."""
    width = width or max(lengths)
    tokens = case.randint(3, VOCAB, (len(lengths), width))
    for row, length in enumerate(lengths):
        tokens[row, length:] = PAD
    return tokens


def prefixes(case, B, T):
    """Draw what a decoder reads: START and tokens."""
    return torch.cat([torch.full((B, 1), START), case.randint(3, VOCAB, (B, T - 1))], dim=1)


@check("seq2seq", points=18, from_scratch=LIBRARY_TRANSFORMER)
def seq2seq(answer, case):
    """Against `nn.Transformer` with the same weights."""

    def build(dropout=0.0):
        return answer(VOCAB, WIDTH, HEADS, INNER, LAYERS, dropout)

    def loaded(dropout=0.0):
        theirs, embedding, state = torch_model(case)
        built = build(dropout)
        built.load_state_dict(state)
        return built.eval(), theirs, embedding

    def expect(built, theirs, embedding, source, inputs, what="the logits"):
        right, real = torch_logits(theirs, embedding, source, inputs), inputs != PAD
        found = built(source, inputs)
        case.shape(found, right.shape, what=what)
        blind = {
            "the logits are NaN: some position sees nothing at all. Is every mask True where one may look, and does it "
            "hide keys (the padding of the source, the future of the target), not queries?": lambda: bool(
                found.isnan().any()
            )
        }
        wrong = model_mistakes(theirs, embedding, source, inputs)
        mistakes = blind | {name: (lambda made=made: made()[real]) for name, made in wrong.items()}
        case.close(found[real], right[real], what=what, mistakes=mistakes, tolerance=3e-5)

    with case("its parameters: one embedding, two stacks, two norms", points=2, hint="no output matrix: it is tied"):
        _, _, state = torch_model(case)
        note = ". The output has no matrix of its own: it is that of the embedding"
        demand_parameters(case, build(), state, note)
    with case("the embedding is scaled, and knows the position", points=3, hint="√D · embedding + sinusoids"):
        built, _, embedding = loaded()
        tokens = prefixes(case, 2, 6)
        first, later = case.parts(built.probe(embed_by, tokens, 4), "embed(tokens)", "embed(tokens, 4)")
        positions = by_definition(40, WIDTH)
        plain, root = F.embedding(tokens, embedding), math.sqrt(WIDTH)
        for found, start in ((first, 0), (later, 4)):
            here = positions[start : start + 6]
            mistakes = {
                "the embedding is not scaled: multiply it by √d_model": plain + here,
                "the embedding is multiplied by d_model, not by √d_model": WIDTH * plain + here,
                "the embedding is divided by √d_model: multiply": plain / root + here,
                "the positions are scaled, too: scale the embedding, then add them": root * (plain + here),
                "the positions are missing": root * plain,
                "the positions are missing, and the embedding is not scaled": plain,
                "start is not used: the positions begin at 0 again": root * plain + positions[:6],
                "every token gets the position of start": root * plain + positions[start],
                "the positions go to the rows of the batch, not to the tokens": lambda s=start: (
                    root * plain + positions[s : s + 2, None]
                ),
            }
            case.close(found, root * plain + here, what=f"embed(tokens, {start})", mistakes=mistakes)
        wild = build().probe(starts)
        case.true(
            0.6 < wild * math.sqrt(WIDTH) < 1.6,
            f"the embedding begins with standard deviation {wild:.2f}, not 1/√d_model = {WIDTH**-0.5:.2f}",
        )
    with case(
        "encode: the memory, and the mask of the source's padding", points=3, hint="hide the padding in each layer"
    ):
        built, theirs, embedding = loaded()
        square = sentences(case, 4, 3, 4, 2)  # whatever the shape of the mask, it fits
        _, mask = case.parts(built.probe(encode_by, square), "memory", "mask")
        wrong_shapes = {"two axes of size 1 are missing, for heads and queries": (4, 4)}
        case.shape(mask, (4, 1, 1, 4), what="the mask", mistakes=wrong_shapes)
        source = sentences(case, 7, 4)
        memory, mask = case.parts(built.probe(encode_by, source), "memory", "mask")
        real = source != PAD
        case.dtype(mask, torch.bool, what="the mask")
        case.shape(mask, (2, 1, 1, 7), what="the mask")
        turned = {"the mask has the wrong sense: True where there is a token": ~real[:, None, None]}
        case.equal(mask, real[:, None, None], what="the mask", mistakes=turned)
        x = embedded(embedding, source)
        unmasked, bare, raw = x, x, embedded(embedding, source, scale=1.0)
        for layer in theirs.encoder.layers:
            x = layer(x, src_key_padding_mask=~real)
            raw = layer(raw, src_key_padding_mask=~real)
            unmasked = layer(unmasked)
        norm = theirs.encoder.norm
        mistakes = {
            "the padding is not hidden from the encoder's layers": norm(unmasked)[real].detach(),
            "encoder_norm is not used": x[real].detach(),
            "the embeddings are not scaled": norm(raw)[real].detach(),
            "the encoder's layers are not used": norm(bare)[real].detach(),
            "only the last layer of the encoder is used: each must get the output of the one before": lambda: norm(
                theirs.encoder.layers[-1](bare, src_key_padding_mask=~real)
            )[real].detach(),
        }
        case.shape(memory, (2, 7, WIDTH), what="the memory")
        case.close(
            memory[real], norm(x)[real].detach(), what="the memory of real tokens", mistakes=mistakes, tolerance=3e-5
        )
    with case(
        "with torch's weights it is torch's Transformer, padding included", points=5, hint="go through it step by step"
    ):
        built, theirs, embedding = loaded()
        # equally long sides first: then a mask from the wrong side has a shape that fits
        source, inputs = sentences(case, 6, 3), prefixes(case, 2, 6)
        inputs[0, 4:] = PAD
        expect(built, theirs, embedding, source, inputs)
        expect(built, theirs, embedding, sentences(case, 8, 5, 2), prefixes(case, 3, 4), what="the logits for S ≠ T")
    with case("the output is tied to the embedding", points=1, hint="F.linear(x, self.embedding.weight)"):
        built, _, _ = loaded()
        source, inputs = sentences(case, 6, 3) % (VOCAB - 1), prefixes(case, 2, 5) % (VOCAB - 1)
        change, gradient = built.probe(is_tied, source, inputs)
        case.true(change[-1] > 1e-3, "the logits of a token do not follow its embedding: the output is not tied")
        case.true(
            change[:-1].max() < 1e-4, "a token that nobody has read changes the logits of others (by its embedding)"
        )
        case.true(gradient.any(), "no gradient reaches the embedding from the output: it is detached, or copied")
    with case("no logit depends on a later token", points=2, hint="the causal mask: True on and below the diagonal"):
        built, _, _ = loaded()
        source, inputs = sentences(case, 6, 3), prefixes(case, 2, 7)
        before = built(source, inputs)
        for t in (2, 5):
            other = inputs.clone()
            other[:, t] = 3 + (other[:, t] - 2) % (VOCAB - 3)
            change = (built(source, other) - before).abs().amax((0, 2)) > 1e-5
            case.true(
                not change[: t - 1].any(), f"token {t} of the inputs changes logits before it: the future is seen"
            )
            case.true(not change[t - 1], f"token {t} changes the logits that predict it: the causal mask is off by one")
            case.true(change[t:].any(), "a token of the inputs changes nothing: the decoder does not read it")
    with case("decode can be used alone", points=1, hint="it takes the memory and the mask that encode returned"):
        built, theirs, embedding = loaded()
        source, inputs = sentences(case, 6, 3), prefixes(case, 2, 5)
        memory, mask = built.probe(encode_by, source)
        found = built.probe(decode_by, inputs, memory, mask)
        case.close(found, built(source, inputs), what="the logits of decode", tolerance=3e-5)
        other = built.probe(decode_by, inputs, case.randn(2, 6, WIDTH), mask)
        case.true(not alike(found, other, 1e-3), "decode does not use the memory that it is given")
    with case("dropout acts in training, and only there", points=1, hint="on the embedding, and in the layers"):
        built, _, _ = loaded(dropout=0.5)
        source, inputs = sentences(case, 6, 3), prefixes(case, 2, 5)
        still = built(source, inputs)
        case.true(alike(built(source, inputs), still), "in evaluation mode two calls differ: dropout acts there, too")
        case.true(not alike(built.train()(source, inputs), still), "in training mode there is no dropout")
        nothing = build(dropout=1.0).train()(source, inputs)
        case.true(
            nothing.abs().max() < 1e-5,
            "with dropout = 1 nothing is left, and all logits of a new model should be 0: dropout is missing on the "
            "embeddings, or the layers do not get the argument",
        )


# -- the loss ---------------------------------------------------------------------------------------------


def loss_by_torch(logits, labels, smoothing, shared="words", scope="words", mean="words"):
    """Return the smoothed loss by `F.cross_entropy` with probabilities; the other arguments say what is done wrong."""
    V = logits.shape[-1]
    share = {
        "words": torch.tensor([0.0] + [1 / (V - 1)] * (V - 1)),
        "all": torch.full((V,), 1 / V),
        "words by V": torch.tensor([0.0] + [1 / V] * (V - 1)),
        "all by V - 1": torch.full((V,), 1 / (V - 1)),
        "words twice": torch.tensor([0.0] + [1 / (V - 1) ** 2] * (V - 1)),
    }[shared]
    hot = F.one_hot(labels, V).float()
    q = (1 - smoothing) * hot + smoothing * share
    if scope == "others":  # all tokens but PAD and the right one
        rest = (1 - hot) * (torch.arange(V) != PAD)
        q = (1 - smoothing) * hot + smoothing * rest / (V - 2)
    if scope == "others and PAD":
        q = (1 - smoothing) * hot + smoothing * (1 - hot) / (V - 1)
    if scope == "others, too little":
        q = (1 - smoothing) * hot + smoothing * (1 - hot) * share
    if scope == "added":
        q = hot + smoothing * share
    if scope == "no PAD":
        logits = logits.masked_fill(torch.arange(V) == PAD, -1e9)
    if scope == "raw":
        return -(q * logits).sum(-1)[labels != PAD].mean()
    each = F.cross_entropy(logits.flatten(0, 1), q.flatten(0, 1), reduction="none").view_as(labels)
    real = labels != PAD
    if mean == "words only":
        return each[labels > END].mean()
    if mean == "sum":
        return each[real].sum()
    if mean == "positions":
        return (each * real).mean()
    if mean == "everything":
        return each.mean()
    if mean == "rows":
        return (each * real).sum() / labels.shape[0]
    if mean == "each row":
        return ((each * real).sum(-1) / real.sum(-1)).mean()
    return each[real].mean()


def loss_mistakes(logits, labels, smoothing):
    """Return the losses that common mistakes lead to."""

    def run(smoothing=smoothing, **odd):
        return lambda: loss_by_torch(logits, labels, smoothing, **odd)

    found = {
        "the padded positions count: leave out those whose label is PAD": run(mean="everything"),
        "the padded positions count in the number by which you divide": run(mean="positions"),
        "the result is a sum; return the mean over the real positions": run(mean="sum"),
        "the sum is divided by the number of sentences, not of real tokens": run(mean="rows"),
        "it is the mean of each sentence's mean; every token counts the same": run(mean="each row"),
        "positions whose label is END do not count; only those whose label is PAD are left out": run(mean="words only"),
        "PAD is left out of the softmax; only its share of q is 0": run(scope="no PAD"),
        "the logits are taken for log-probabilities: use log_softmax": run(scope="raw"),
        "the logarithms are to the base 2; take natural ones": lambda: (
            loss_by_torch(logits, labels, smoothing) / math.log(2)
        ),
        "the sign is wrong: the loss is -Σ q log p": lambda: -loss_by_torch(logits, labels, smoothing),
    }
    if smoothing:
        found |= {
            "there is no smoothing": run(smoothing=0.0),
            "the smoothing gives mass to padding: PAD is never an answer, its share is 0": run(shared="all"),
            "the smoothing gives mass to padding, and padded positions count": run(shared="all", mean="everything"),
            "the smoothing gives mass to padding, and padded positions count in the mean": run(
                shared="all", mean="positions"
            ),
            "the share of each token is ε/V; there are V - 1 tokens that share it": run(shared="words by V"),
            "the smoothing gives mass to padding: take PAD out of the sum, too, not only out of V - 1": run(
                shared="all by V - 1"
            ),
            "the share of each token is divided by V - 1 twice (a mean has already divided)": run(shared="words twice"),
            "the right token gets no part of ε, and q sums to less than 1; it is one of the V - 1 that share it": run(
                scope="others, too little"
            ),
            "the right token gets no part of ε; it is one of the V - 1 tokens that share it": run(scope="others"),
            "ε is shared by all tokens but the right one, so padding gets mass": run(scope="others and PAD"),
            "q sums to 1 + ε: the right token must give up what the others get": run(scope="added"),
            "ε and 1 - ε are exchanged": run(smoothing=1 - smoothing),
            "smoothing is fixed at 0.1: use the argument": run(smoothing=0.1),
        }
    return found


@check("smoothed-loss", points=10, from_scratch=("label_smoothing",))
def smoothed_loss(answer, case):
    """Against `F.cross_entropy` with the distribution q written out."""

    def draw(B=3, T=6, V=9):
        logits = 2 * case.randn(B, T, V)
        labels = case.randint(1, V, (B, T))
        for row in range(1, B):
            labels[row, T - 2 * row :] = PAD
        return logits, labels

    def expect(logits, labels, smoothing, what):
        found = answer(logits, labels, smoothing)
        case.shape(found, (), what="the loss")
        mistakes = loss_mistakes(logits, labels, smoothing)
        case.close(found, loss_by_torch(logits, labels, smoothing), what=what, mistakes=mistakes)

    with case("without smoothing it is the cross-entropy of the real tokens", points=3, hint="mean over labels != PAD"):
        logits, labels = draw()
        expect(logits, labels, 0.0, "the loss with smoothing = 0")
    with case("with smoothing it is -Σ q log p", points=3, hint="PAD gets nothing; the right token shares, too"):
        for smoothing in (0.1, 0.3):
            expect(*draw(), smoothing, f"the loss with smoothing = {smoothing}")
        logits, labels = draw(2, 4, 5)
        expect(logits, labels, 0.25, "the loss with V = 5, smoothing = 0.25")
        case.close(answer(logits, labels), loss_by_torch(logits, labels, 0.1), what="the loss without a third argument")
    with case("what the model says at padding is ignored", points=1, hint="select the real positions before the mean"):
        logits, labels = draw()
        other = logits.clone()
        other[labels == PAD] = 5 * case.randn(int((labels == PAD).sum()), 9)
        case.close(
            answer(other, labels, 0.1),
            answer(logits, labels, 0.1),
            what="the loss",
            mistakes=always("the loss depends on the logits at padded positions"),
        )
        wider = F.pad(labels, (0, 3)), F.pad(logits, (0, 0, 0, 3))
        case.close(
            answer(wider[1], wider[0], 0.1),
            answer(logits, labels, 0.1),
            what="the loss",
            mistakes=always("the loss changes when the batch has more padding: divide by the number of real tokens"),
        )
    with case("its gradient is p - q", points=2, hint="everything must stay differentiable"):
        logits, labels = draw()
        (found,) = answer.gradients(logits, labels, 0.2, upstream=torch.tensor(1.0))
        leaf = logits.clone().requires_grad_()
        loss_by_torch(leaf, labels, 0.2).backward()
        case.close(
            found,
            leaf.grad,
            what="the gradient for the logits",
            mistakes=always("the loss is not right yet, so its gradient cannot be, or part of it is detached"),
        )
    with case("large logits do not overflow", points=1, hint="log_softmax, not the logarithm of a softmax"):
        logits, labels = draw()
        found = answer(300 * logits, labels, 0.1)
        case.finite(found, what="the loss for logits of ±600")


# -- searching --------------------------------------------------------------------------------------------


def search_rows(search, tables, rows, max_length, training, noisy):
    """Run greedy search on a model that is a table; return what happened.

    `tables` (kinds, T, V, V): of a kind, by the number of tokens after START and the last token, the logits of the
    next. `rows` (B, 1) says of which kind each row of the batch is.
    """
    seen = {"prefixes": [], "gradients": [], "training": [], "made": 0}

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def encode(self, source):
            raise RuntimeError("the model is asked directly; make the stepper that is handed in, and ask that")

    def stepper(model, source):
        seen["made"] += 1
        seen["training"].append(model.training)
        seen["gradients"].append(torch.is_grad_enabled())

        def step(prefixes):
            seen["prefixes"].append(prefixes.clone())
            seen["training"].append(model.training)
            seen["gradients"].append(torch.is_grad_enabled())
            done = min(prefixes.shape[1] - 1, tables.shape[1] - 1)
            logits = tables[source[:, 0], done, prefixes[:, -1]] * model.scale
            return logits + noisy * torch.randn(logits.shape) if model.training else logits

        return step

    model = Told().train(training)
    with torch.enable_grad():  # and whatever the search does to this switch ends here
        tokens = search(model, rows, max_length, stepper)
        left = torch.is_grad_enabled()
    return tokens, seen["prefixes"], seen["gradients"], seen["training"], seen["made"], model.training, left


def told_tables(case, kinds, T, V, ends):
    """Draw tables for `search_rows`; the kind k is certain to end after ends[k] tokens, and not before."""
    tables = 2 * case.randn(kinds, T, V, V)
    tables[..., END] = -9.0
    tables[..., START] = -9.0
    tables[..., PAD] = -9.0
    for kind, end in enumerate(ends):
        if end:
            tables[kind, end - 1, :, END] = 9.0
    return tables


@check("greedy-search", points=12, from_scratch=("generate(",))
def greedy_search(answer, case):
    """On a model that is a table, so that the most probable continuation can be read off."""
    V = 8

    def follow(tables, rows, max_length, pick=torch.argmax, pad=PAD, stop=True):
        """Read the continuation off the tables, row by row."""
        found = []
        for kind in rows[:, 0].tolist():
            last, line = START, []
            while len(line) < max_length and not (stop and END in line):
                last = int(pick(tables[kind, min(len(line), tables.shape[1] - 1), last]))
                line.append(last)
            found.append(line)
        width = max(map(len, found))
        return torch.tensor([line + [pad] * (width - len(line)) for line in found])

    def run(ends=(3, 6, 1), kinds=(0, 1, 2, 1), max_length=12, training=False, noisy=0.0):
        tables = told_tables(case, len(ends), 13, V, ends)
        rows = torch.tensor(kinds)[:, None]
        result = answer.probe(search_rows, tables, rows, max_length, training, noisy)
        case.true(isinstance(result[0], torch.Tensor), "the result must be a tensor of token ids (B, T)")
        return tables, rows, result

    def expect(tables, rows, tokens, max_length=12):
        right = follow(tables, rows, max_length)
        endless = follow(tables, rows, max_length, stop=False)
        wide = torch.cat([torch.full((len(rows), 1), START), right], dim=1)
        until = [line.tolist().index(END) if END in line else len(line) for line in right]
        ended = torch.tensor([[t <= until[b] for t in range(right.shape[1])] for b in range(len(rows))])

        def goes_on():
            if tokens.shape[0] != right.shape[0] or tokens.shape[1] < right.shape[1]:
                return False
            same = (tokens[:, : right.shape[1]] == right) | ~ended
            return bool(same.all())

        def first_of(column):
            return torch.equal(tokens[:, 0], column)

        mistakes = {
            "START stands before the translations: leave it out": wide,
            "the search never stops at END": endless,
            "a row is not filled with PAD after its END": follow(tables, rows, max_length, pad=END),
            "END is missing: the row that ends gets END first, and PAD after it": right.masked_fill(right == END, PAD),
            "the argmax goes over the rows of the batch; it belongs over the vocabulary, the last axis": lambda: (
                first_of(tables[rows[:, 0], 0, START].argmax(0))
            ),
            "the least probable token is taken": lambda: follow(tables, rows, max_length, pick=torch.argmin),
            "after its END a row goes on: from there on it gets PAD": goes_on,
        }
        case.equal(tokens, right, what="the tokens", mistakes=mistakes)

    with case("each token is the most probable one", points=3, hint="argmax over the vocabulary; then append it"):
        tables, rows, result = run(
            ends=(4, 4), kinds=(0, 1) * (V // 2)
        )  # V rows: an argmax of them has a shape that fits
        case.true(result[1], "the function that stepper returns is never called")
        first = result[1][0]
        case.shape(first, (V, 1), what="the first prefixes")
        case.true((first == START).all(), "the first prefixes must be a column of START")
        for shorter, longer in itertools.pairwise(result[1]):
            grown = longer.shape[1] == shorter.shape[1] + 1 and torch.equal(longer[:, :-1], shorter)
            case.true(grown, "the prefixes must grow by one token each time, and keep what they had")
        same = answer.probe(search_rows, tables, rows, 12, False, 0.0)[0]
        case.true(
            result[0].shape == same.shape and torch.equal(result[0], same),
            "two calls give different translations: take the most probable token, do not draw one",
        )
        expect(tables, rows, result[0])
    with case("after END a row has PAD", points=2, hint="remember for each row whether it has ended"):
        tables, rows, result = run()
        expect(tables, rows, result[0])
    with case("it stops when all rows have ended, and at max_length", points=2, hint="count the calls"):
        tables, rows, result = run()
        calls = len(result[1])
        case.true(calls <= 6, f"all rows have ended after 6 tokens, but there are {calls} calls: stop then")
        case.true(calls >= 6, f"the longest translation has 6 tokens, but there are only {calls} calls")
        tables, rows, result = run(ends=(0, 3), kinds=(0, 1), max_length=5)
        endless = {"there are more than max_length tokens": lambda: result[0].shape[1] > 5}
        endless["there are fewer than max_length tokens, though no END has come"] = lambda: result[0].shape[1] < 5
        right = follow(tables, rows, 5)
        lost = right.masked_fill(right == END, PAD)
        endless["END is missing: the row that ends gets END first, and PAD after it"] = lost
        case.equal(result[0], right, what="the tokens for max_length = 5", mistakes=endless)
    with case("the stepper is made once", points=1, hint="the source is encoded before the loop"):
        made = run()[2][4]
        case.true(made == 1, f"the stepper is made {made} times: the source would be encoded each time")
    with case(
        "evaluation mode while it works, and afterwards as before", points=3, hint="model.eval(), model.train(...)"
    ):
        tables, rows, result = run(training=True, noisy=20.0)
        tokens, _, _, modes, _, after, _ = result
        case.true(
            not any(modes),
            "the model is left in training mode while it translates: dropout is on"
            if all(modes)
            else "the model is in evaluation mode only part of the time: switch before the stepper is made",
        )
        expect(tables, rows, tokens)
        case.true(after, "the model was in training mode, and is in evaluation mode afterwards: put it back")
        case.true(not run(training=False)[2][5], "the model was in evaluation mode, and is in training mode afterwards")
    with case("no gradients are recorded", points=1, hint="torch.no_grad() around all of it, the stepper too"):
        _, _, gradients, _, _, _, left = run()[2]
        case.true(not any(gradients), "gradients are recorded while it translates: use torch.no_grad()")
        case.true(left, "gradients are still switched off afterwards: nothing could learn any more; use a with block")


def search_tree(search, levels, width, max_length, alpha):
    """Run beam search on a model that is a tree; return the result and the prefixes of every call.

    `levels[t]` (V^t, V) has the logits after each of the V^t sequences of t tokens, in the order of counting.
    """
    calls = []
    V = levels[0].shape[1]

    def step(prefixes):
        calls.append(torch.as_tensor(prefixes).clone())
        if len(calls) > 40:
            raise RuntimeError("step has been called more than 40 times")
        index = torch.zeros(len(prefixes), dtype=torch.int64)
        for column in prefixes[:, 1:].T:
            index = index * V + column
        return levels[min(prefixes.shape[1] - 1, len(levels) - 1)][index % len(levels[-1])].clone()

    return search(step, width, max_length, alpha), calls


def path(levels, tokens):
    """Return the log-probability of each of the tokens after START."""
    index, found = 0, []
    for level, token in zip(levels, tokens, strict=False):
        found.append(level[index].log_softmax(-1)[token].item())
        index = index * levels[0].shape[1] + token
    return found


def every_translation(levels, max_length):
    """Return all sequences that can come out, END included, each with its sum of log-probabilities."""
    V = levels[0].shape[1]
    others = [token for token in range(V) if token != END]
    found = []
    for n in range(1, max_length + 1):
        for start in itertools.product(others, repeat=n - 1):
            last = [END] if n < max_length else range(V)
            found += [([*start, token], sum(path(levels, [*start, token]))) for token in last]
    return found


def random_tree(case, V, depth, end=0.0):
    """Draw a tree for `search_tree`; PAD and START are unlikely, `end` is added to the logits of END."""
    levels = [1.5 * case.randn(V**t, V) for t in range(depth)]
    for level in levels:
        level[:, :END] -= 12.0
        level[:, END] += end
    return levels


def tree_of(V, depth, probabilities):
    """Return a tree with these probabilities after certain beginnings; elsewhere all tokens are alike."""
    levels = [torch.zeros(V**t, V) for t in range(depth)]
    for level in levels:
        level[:, :END] = -12.0
    for beginning, row in probabilities.items():
        index = 0
        for token in beginning:
            index = index * V + token
        filled = torch.tensor([1e-9] * END + [1e-6] * (V - END))
        for token, p in row.items():
            filled[token] = p
        levels[len(beginning)][index] = filled.log()
    return levels


def steps_of(tokens, V):
    """Return for each token its level, the index of what comes before it there, and the token."""
    index, found = 0, []
    for level, token in enumerate(tokens):
        found.append((level, index, token))
        index = index * V + token
    return found


ROUND_MISTAKES = {
    "logits are added up, not log-probabilities: use log_softmax": "raw",
    "probabilities are added up, not their logarithms: use log_softmax": "probabilities",
    "extensions are compared by their last token alone, not by the sum": "last",
    "the worst extensions are kept": "worst",
    "each hypothesis keeps only its own best extension: choose among all of them together": "own",
    "extensions that end with END take no place in the beam: of all extensions, finished or not, the `width` best are "
    "kept": "open",
}


def next_round(levels, beginnings, width):
    """Return which beginnings are open in the next round, and which would be after common mistakes."""
    V = levels[0].shape[1]
    table = [(sum(path(levels, [*p, t])), (*p, t)) for p in sorted(beginnings) for t in range(V)]

    def still_open(scored):
        return {p for _, p in sorted(scored, reverse=True)[:width] if p[-1] != END}

    raw = [(sum(levels[i][k][t].item() for i, k, t in steps_of(p, V)), p) for _, p in table]
    own = {max((s, q) for s, q in table if q[:-1] == p)[1] for p in beginnings}
    made = {
        "raw": still_open(raw),
        "probabilities": still_open([(sum(map(math.exp, path(levels, p))), p) for _, p in table]),
        "last": still_open([(path(levels, p)[-1], p) for _, p in table]),
        "worst": still_open([(-s, p) for s, p in table]),
        "own": {p for p in own if p[-1] != END} if len(beginnings) > 1 else still_open(table),
        "open": still_open([one for one in table if one[1][-1] != END]),
    }
    return still_open(table), {sentence: made[kind] for sentence, kind in ROUND_MISTAKES.items()}


@check("beam-search", points=16, from_scratch=("generate(",))
def beam_search(answer, case):
    """Against counting through every translation of a small model, and invariants of what is asked of the model."""
    V, L = 5, 4

    def search(levels, width, max_length=L, alpha=1.0):
        result, calls = answer.probe(search_tree, levels, width, max_length, alpha)
        pair = isinstance(result, tuple | list) and len(result) == 2
        case.true(pair, "the result must be a pair: the tokens, and their score")
        tokens, score = result
        tokens = tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
        case.true(isinstance(tokens, list | tuple), "the tokens must be a list of ints (the score comes second)")
        score = score.item() if isinstance(score, torch.Tensor) else score
        case.true(isinstance(score, int | float), "the score must be a number")
        chosen = width <= 2 and len(calls) > 1 and (calls[1][:, 1:2] == START).any()
        case.true(not chosen, "the worst extensions are kept: the search goes on with a token of probability nearly 0")
        case.true(START not in tokens[:1], "the tokens begin with START: leave it out")
        case.true(END not in tokens, "the tokens hold END: leave it out (what comes after it is no translation)")
        return [int(token) for token in tokens], float(score), calls

    def cut(sequence):
        return [token for token in sequence if token != END]

    with case("a beam that is wide enough finds the best of all translations", points=4, hint="which score decides?"):
        for alpha in (1.0, 0.0, 0.6):
            levels = random_tree(case, V, L, end=0.5)
            everything = every_translation(levels, L)

            def best(key, among=everything):
                return cut(max(among, key=key)[0])

            def score_of(one, alpha=alpha):
                return one[1] / len(one[0]) ** alpha

            tokens, _, _ = search(levels, 2000, L, alpha)
            finished = [one for one in everything if one[0][-1] == END]
            last = [one for one in everything if len(one[0]) == L]
            mistakes = {
                "the scores are not normalised: the best sum wins, whatever alpha says": best(lambda one: one[1]),
                "the length does not count END": best(lambda one, a=alpha: one[1] / max(1, len(one[0]) - 1) ** a),
                "the length counts START": best(lambda one, a=alpha: one[1] / (len(one[0]) + 1) ** a),
                "the sum is multiplied by the length, not divided": best(
                    lambda one, a=alpha: one[1] * len(one[0]) ** a
                ),
                "alpha is not used: it is always the mean of each token": best(lambda one: one[1] / len(one[0])),
                "alpha is used as a factor, not as an exponent": best(
                    lambda one, a=alpha: one[1] / (len(one[0]) * a if a else 1)
                ),
                "the worst score wins": best(lambda one: -score_of(one)),
                "only hypotheses of the last round count: those that finished before are forgotten": best(
                    score_of, last
                ),
                "hypotheses that are still open after max_length tokens are forgotten": best(score_of, finished),
                "only hypotheses that are still open count": best(
                    score_of, [one for one in everything if one[0][-1] != END]
                ),
            }
            right = best(score_of)
            mistakes = {name: wrong for name, wrong in mistakes.items() if wrong != right}
            mistakes = {name: str(wrong) for name, wrong in mistakes.items()}
            case.equal(str(tokens), str(right), what=f"the translation for alpha = {alpha}", mistakes=mistakes)
    with case("a beam of width 1 is greedy", points=2, hint="then each round keeps the single best extension"):
        for _ in range(3):
            levels = random_tree(case, V, L)
            tokens, _, calls = search(levels, 1)
            logps, index = path(levels, tokens + [END] * (len(tokens) < L)), 0
            for t, logp in enumerate(logps):
                row = levels[t][index].log_softmax(-1)
                case.true(abs(row.max().item() - logp) < 1e-5, "with width = 1 a token is not the most probable one")
                index = index * V + (tokens[t] if t < len(tokens) else END)
            case.true(all(len(call) == 1 for call in calls), "with width = 1 more than one hypothesis is open")
    with case(
        "each round keeps the `width` best extensions of all", points=3, hint="one topk over the whole table of sums"
    ):
        # the better sentence begins with the worse word
        garden = tree_of(V, 3, {(): {3: 0.6, 4: 0.4}, (3,): {END: 0.26, 3: 0.24, 4: 0.2}, (4,): {END: 0.9}})
        tokens, _, _ = search(garden, 2, 3, 0.0)
        greedy = {"the beam follows the best first word only: it never comes back to another": "[3]"}
        case.equal(str(tokens), "[4]", what="the translation", mistakes=greedy)
        wrong, explanations = False, None
        for width in (2, 3, 5):
            levels = random_tree(case, 7, L, end=-1.0)
            _, _, calls = search(levels, width)
            case.true(
                {tuple(p) for p in calls[0].tolist()} == {(START,)}, "the first call must have the prefix [START]"
            )
            for now, then in itertools.pairwise(calls):
                longer = then.shape[1] == now.shape[1] + 1
                case.true(longer, "the prefixes must grow by one token from one call to the next")
                asked = {tuple(p[1:]) for p in then.tolist()}
                case.true(len(asked) <= width, f"{len(asked)} hypotheses are open, but width is {width}")
                right, mistakes = next_round(levels, {tuple(p[1:]) for p in now.tolist()}, width)
                wrong = wrong or asked != right
                fit = {sentence for sentence, made in mistakes.items() if asked == made}
                explanations = fit if explanations is None else explanations & fit
        known = [sentence for sentence in ROUND_MISTAKES if sentence in (explanations or ())]
        unknown = "the open hypotheses are not the `width` best extensions of those before"
        case.true(not wrong, known[0] if known else unknown)
    with case("finished hypotheses are put aside and not forgotten", points=2, hint="they compete at the end"):
        early = tree_of(V, L, {(): {END: 0.5, 3: 0.5}, (3,): {3: 0.5, 4: 0.4}, (3, 3): {END: 0.5, 4: 0.5}})
        tokens, _, _ = search(early, 2, L, 0.0)
        later = {"a hypothesis that finished early is forgotten, and a later one with a worse score wins": lambda: True}
        case.true(tokens == [], next(iter(later)))
        late = tree_of(V, L, {(): {END: 0.4, 3: 0.6}, (3,): {4: 0.9, 3: 0.1}, (3, 4): {END: 0.999}})
        tokens, _, _ = search(late, 2, L, 1.0)
        case.true(tokens == [3, 4], "the first hypothesis that finishes wins; a later one has a better score")
    with case("END ends", points=2, hint="what has ended is not extended; and when nothing is open, stop"):
        levels = random_tree(case, V, L, end=1.5)
        _, _, calls = search(levels, 3)
        case.true(
            not any((call == END).any() for call in calls),
            "a hypothesis that has ended with END is extended further",
        )
        certain = tree_of(V, L, {(): {3: 0.97, 4: 0.02}, (3,): {END: 0.999}, (4,): {END: 0.999}})
        tokens, _, calls = search(certain, 2, 12)
        case.equal(str(tokens), "[3]", what="the translation")
        case.true(len(calls) <= 2, f"no hypothesis is open after 2 rounds, but there are {len(calls)} calls: stop")
        enough = tree_of(V, L, {(): {END: 0.5, 3: 0.5}, (3,): {END: 0.5, 3: 0.3}})
        _, _, calls = search(enough, 2, 12)
        case.true(
            len(calls) <= 2, f"`width` hypotheses are finished after 2 rounds, but there are {len(calls)} calls: stop"
        )
    with case("the score is the sum divided by lengthᵅ", points=2, hint="the length counts END, and not START"):
        for alpha, width in ((1.0, 3), (0.0, 2), (0.7, 4)):
            levels = random_tree(case, V, L, end=0.5)
            tokens, score, _ = search(levels, width, L, alpha)
            whole = tokens + [END] * (len(tokens) < L)
            total, n = sum(path(levels, whole)), len(whole)
            mistakes = {
                "the score is not divided by the length": torch.tensor(total),
                "the length does not count END": torch.tensor(total / max(1, n - 1) ** alpha),
                "the length counts START": torch.tensor(total / (n + 1) ** alpha),
                "what is open counts although `width` are finished; it does so only after max_length": torch.tensor(
                    sum(path(levels, tokens)) / max(1, len(tokens)) ** alpha
                ),
                "alpha is not used": torch.tensor(total / n),
                "logits are added up, not log-probabilities: use log_softmax": torch.tensor(
                    sum(levels[i][k][t].item() for i, k, t in steps_of(whole, V)) / n**alpha
                ),
                "the score is that of the last token alone, not of the sum": torch.tensor(
                    path(levels, whole)[-1] / n**alpha
                ),
                "the score has the wrong sign: log-probabilities are negative": torch.tensor(-total / n**alpha),
                "the score is a probability; return the (normalised) sum of logarithms": torch.tensor(math.exp(total)),
                "probabilities are added up, not their logarithms: use log_softmax": torch.tensor(
                    sum(map(math.exp, path(levels, whole))) / n**alpha
                ),
                "the sum is multiplied by the length, not divided": torch.tensor(total * n**alpha),
                "alpha is used as a factor, not as an exponent": torch.tensor(total / (n * alpha if alpha else 1)),
            }
            mistakes = {k: v for k, v in mistakes.items() if abs(v.item() - total / n**alpha) > 1e-4}
            what = f"the score for alpha = {alpha}"
            case.close(
                torch.tensor(score), torch.tensor(total / n**alpha), what=what, mistakes=mistakes, tolerance=1e-4
            )
    with case("after max_length tokens it stops", points=1, hint="then what is open counts as it stands"):
        levels = random_tree(case, V, L, end=-20.0)
        tokens, _, calls = search(levels, 2, 3)
        case.true(len(calls) <= 3, f"with max_length = 3 there are {len(calls)} calls")
        case.true(len(tokens) == 3, f"with max_length = 3 and no END in sight there are {len(tokens)} tokens")
        still = tree_of(V, L, {(): {END: 0.1, 3: 0.9}, (3,): {3: 0.9, 4: 0.1}, (3, 3): {4: 0.98}, (3, 4): {4: 0.9}})
        tokens, _, _ = search(still, 2, 3)
        # two are finished after two rounds, and the one that is still open has the better score
        enough = tree_of(V, L, {(): {END: 0.3, 3: 0.7}, (3,): {END: 0.3, 3: 0.7}})
        best, _, _ = search(enough, 2, L, 1.0)
        forgotten = {"a hypothesis that is still open after max_length tokens is forgotten: it counts, too": "[]"}
        case.equal(str(tokens), "[3, 3, 4]", what="the translation", mistakes=forgotten)
        still_open = {"what is open counts although `width` are finished; it does so only after max_length": "[3, 3]"}
        case.equal(str(best), "[3]", what="the translation", mistakes=still_open)


# -- the cache --------------------------------------------------------------------------------------------


def step_through(model, source, inputs):
    """Feed the inputs one by one; return the logits of every step, (B, T, V)."""
    with torch.no_grad():
        cache, found = model.start(source), []
        for column in inputs.T:
            logits, cache = model.step(column, cache)
            found.append(logits)
    return torch.stack(found, dim=1)


def first_axes(model, source, tokens):
    """Return the sizes of the first axes of all tensors in the cache after one step."""

    def sizes(part):
        if isinstance(part, torch.Tensor):
            return [part.shape[0] if part.ndim else 1]
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ()
        return [size for one in parts for size in sizes(one)]

    with torch.no_grad():
        return sizes(model.step(tokens, model.start(source))[1])


def rewired(theirs, source):
    """Return a copy in which the cross-attention makes its keys and values as the attention source(layer) does."""
    changed = copy.deepcopy(theirs)
    for layer, before in zip(changed.decoder.layers, theirs.decoder.layers, strict=True):
        for name in ("in_proj_weight", "in_proj_bias"):
            getattr(layer.multihead_attn, name).data[WIDTH:] = getattr(source(before), name).data[WIDTH:]
    return changed


def chosen_rows(cache, rows):
    """Pick rows of every tensor in a nest."""
    if isinstance(cache, torch.Tensor):
        return cache[rows]
    if isinstance(cache, dict):
        return {name: chosen_rows(part, rows) for name, part in cache.items()}
    if isinstance(cache, (list, tuple)):
        return type(cache)(chosen_rows(part, rows) for part in cache)
    return cache


def branch(model, source, inputs, one, other, rows):
    """Continue the same cache with two tokens, and once more with its rows chosen anew."""
    with torch.no_grad():
        cache = model.start(source)
        for column in inputs.T:
            _, cache = model.step(column, cache)
        first, _ = model.step(one, cache)
        second, _ = model.step(other, cache)
        again, _ = model.step(one, cache)
        moved, _ = model.step(one[rows], chosen_rows(cache, rows))
    return first, second, again, moved


def sizes_of_cache(model, source, inputs):
    """Return how many numbers the cache holds at the start and after each step."""

    def size(part):
        if isinstance(part, torch.Tensor):
            return part.numel()
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ()
        return sum(size(one) for one in parts)

    with torch.no_grad():
        cache = model.start(source)
        found = [size(cache)]
        for column in inputs.T:
            _, cache = model.step(column, cache)
            found.append(size(cache))
    return found


def widest(model, source, inputs):
    """Return the most tokens of a row that any linear map of the decoder sees in one step."""
    seen = [0]

    def look(module, given, result):
        seen[0] = max(seen[0], given[0].shape[1] if given[0].ndim == 3 else 1)

    with torch.no_grad():
        cache = model.start(source)
        hooks = [m.register_forward_hook(look) for m in model.decoder.modules() if isinstance(m, nn.Linear)]
        for column in inputs.T:
            _, cache = model.step(column, cache)
    for hook in hooks:
        hook.remove()
    return seen[0]


@check("cached-seq2seq", points=14, from_scratch=LIBRARY_TRANSFORMER)
def cached_seq2seq(answer, case):
    """Against `nn.Transformer`, which has no cache, with the same weights."""

    def loaded():
        theirs, embedding, state = torch_model(case)
        built = answer(VOCAB, WIDTH, HEADS, INNER, LAYERS, 0.3)
        built.load_state_dict(state)
        return built.eval(), theirs, embedding

    def mistakes_of(theirs, embedding, source, inputs):
        def run(**odd):
            return lambda: torch_logits(theirs, embedding, source, inputs, **odd)

        return {
            "every token gets position 0: embed it at the number of tokens before it": run(still=True),
            "the positions are off by one: the first token stands at 0": run(first=1),
            "the newest token sees only itself: its keys and values must be joined to those that are kept": run(
                alone=True
            ),
            "the newest token does not see itself: append its key and value before it attends": run(past=True),
            "the newest token does not see itself: first append its key and value, then attend": run(
                past=True, layer={"nothing_first": True}
            ),
            "every token sees only the first one: in the cache there is no future, so there is no causal mask": run(
                first_only=True
            ),
            "all layers get the memory's keys and values from the first layer; each makes its own": lambda: (
                torch_logits(
                    rewired(theirs, lambda _: theirs.decoder.layers[0].multihead_attn), embedding, source, inputs
                )
            ),
            "the memory's keys and values are made by self_attn; cross_attn has its own maps": lambda: torch_logits(
                rewired(theirs, lambda layer: layer.self_attn), embedding, source, inputs
            ),
            "the tokens that are written are not scaled: use embed, with start": run(target_scale=1.0),
            "the tokens that are written go through embedding alone: use embed, with start": run(bare_target=True),
            "the residual around the self-attention is missing": run(layer={"alone": (0,)}),
            "the residual around the cross-attention is missing": run(layer={"alone": (1,)}),
            "norm1 is not used": run(layer={"bare": (0,)}),
            "norm2 is not used": run(layer={"bare": (1,)}),
            "the padding of the source is not hidden in the cross-attention": run(across="none"),
            "the cache keeps keys and values of x before norm1": run(layer={"raw_keys": True}),
            "the queries are made from x before norm1": run(layer={"raw_queries": True}),
            "the cross-attention's queries are made from x before norm2": run(layer={"raw_cross": True}),
            "the cross-attention is missing": run(layer={"order": (0, 2)}),
            "the feed-forward is missing": run(layer={"order": (0, 1)}),
            "decoder_norm is not used": run(norms=(1, 0)),
            "the embeddings are not scaled": run(scale=1.0),
            "the positions are missing: use embed, with start": run(no_positions=True),
            "in the cross-attention keys and values come from the target": run(layer={"source": "target"}),
            "there is no ReLU between linear1 and linear2": run(layer={"activation": lambda y: y}),
            "the residual around the feed-forward is missing": run(layer={"alone": (2,)}),
            "norm3 is not used": run(layer={"bare": (2,)}),
        }

    def expect(steps, theirs, embedding, source, inputs, what):
        right = torch_logits(theirs, embedding, source, inputs)
        found = built.probe(step_through, source, inputs)[:, steps]
        case.shape(found, right[:, steps].shape, what=what)
        wrong = mistakes_of(theirs, embedding, source, inputs)
        mistakes = {name: (lambda f=f: f()[:, steps]) for name, f in wrong.items()}
        sizes = built.probe(sizes_of_cache, source, inputs)
        growth = [later - earlier for earlier, later in itertools.pairwise(sizes)]
        mistakes |= {
            "the cache does not grow: key and value of the newest token must be kept": lambda: growth[-1] <= 0,
            "the cache grows by more and more: the same positions are appended again": lambda: (
                growth[-1] > growth[0] > 0
            ),
        }
        off = [t for t in range(found.shape[1]) if not alike(found[:, t], right[:, steps][:, t], 3e-5)]
        if off and off[0] > 0:
            mistakes |= always(
                f"the logits are right for the first {off[0]} tokens, and wrong from then on: look at what is kept for "
                "the tokens before (keys and values in the same order, in each layer its own) and at the position"
            )
        case.close(found, right[:, steps], what=what, mistakes=mistakes, tolerance=3e-5)

    with case("the first token", points=3, hint="as decode for START alone: position 0, an empty cache"):
        built, theirs, embedding = loaded()
        source, inputs = sentences(case, 6, 6), prefixes(case, 2, 1)
        expect(slice(0, 1), theirs, embedding, source, inputs, "the logits after START")
    with case("every further token", points=4, hint="its position; appended keys and values; in every layer its own"):
        built, theirs, embedding = loaded()
        source, inputs = sentences(case, 6, 6, 6), prefixes(case, 3, 7)
        expect(slice(0, None), theirs, embedding, source, inputs, "the logits of each step")
    with case("the padding of the source stays hidden", points=2, hint="keep the mask in the cache"):
        built, theirs, embedding = loaded()
        source, inputs = sentences(case, 7, 3, 5), prefixes(case, 3, 5)
        expect(slice(0, None), theirs, embedding, source, inputs, "the logits for sources of different lengths")
    with case(
        "a cache can be continued twice, and its rows can be chosen", points=3, hint="make new tensors, new lists"
    ):
        built, theirs, embedding = loaded()
        source, inputs = sentences(case, 7, 3, 5), prefixes(case, 3, 4)
        first = built.probe(first_axes, sentences(case, 6, 6, 4, 5), torch.full((4,), START))
        case.true(set(first) == {4}, "a tensor in the cache has another first axis than the rows of the batch")
        sizes = built.probe(sizes_of_cache, source, inputs)
        case.true(
            sizes[-1] > sizes[0],
            "the cache that step returns holds nothing of the tokens before: is it kept in the model (self)? Then two "
            "hypotheses cannot continue the same beginning",
        )
        one, other = torch.tensor([4, 6, 7]), torch.tensor([5, 8, 3])
        rows = torch.tensor([2, 0, 0, 1])
        found = built.probe(branch, source, inputs, one, other, rows, uses=(chosen_rows,))
        for what, tokens, logits in (("first", one, found[0]), ("second", other, found[1]), ("third", one, found[2])):
            whole = torch.cat([inputs, tokens[:, None]], dim=1)
            right = torch_logits(theirs, embedding, source, whole)[:, -1]
            changed = {} if what == "first" else always("step changes the cache that it is given: return a new one")
            what = f"the {what} continuation of one cache"
            case.close(logits, right, what=what, mistakes=changed, tolerance=3e-5)
        whole = torch.cat([inputs, one[:, None]], dim=1)[rows]
        right = torch_logits(theirs, embedding, source[rows], whole)[:, -1]
        case.close(
            found[3],
            right,
            what="the logits after rows of the cache were chosen",
            tolerance=3e-5,
            mistakes=always(
                "after rows of the cache were chosen the logits are wrong: every tensor in it must have the batch first"
            ),
        )
    with case("only the newest token goes through the decoder", points=2, hint="one token a step, in every layer"):
        built, _, _ = loaded()
        seen = built.probe(widest, sentences(case, 6, 6), prefixes(case, 2, 5))
        case.true(
            seen <= 1,
            f"in a step a linear map of the decoder sees {seen} tokens of a row: keys and values of earlier tokens and "
            "of the memory, must be kept, not computed again",
        )
