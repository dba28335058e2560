"""The checks of the Phase 2 quiz.

No right answer is typed here: each is counted, simulated, or computed by torch or by the definition that the question
states. A wrong answer that is on the list of mistakes gets the sentence that says what was thought wrong; the numbers
of that list are computed too.

Three kinds of answers stand in the dictionaries: a number; one expression as the body of a lambda, which is run on
values; and a line of a program with its number, put into the program, which is run.
"""

import math
import warnings
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.checks import alike, always, check, kind_of

# -- the three kinds of answers ---------------------------------------------------------------------------


def entry(answer, case, key):
    """Return what stands under a key of the dictionary that the answer returns."""
    given = answer()
    case.true(isinstance(given, dict), "the answer must return a dictionary (is the return statement there?)")
    case.true(key in given, f"the key {key!r} is missing; there are {', '.join(map(repr, given))}")
    value = given[key]
    case.true(value is not None and kind_of(value) != "ellipsis", f"{key} has no answer yet: replace None")
    return value


def alone(value):
    """Return the number in a tensor or an array that holds just one."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else value
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.size == 1 else value
    if kind_of(value) in ("Fraction", "Decimal"):  # they reach a case as objects
        return value.call("__float__")
    return value


def same(given, right, digits=0):
    """Return whether two numbers are equal, or agree in so many digits (cut off or rounded)."""
    if not digits or right == 0:
        return math.isclose(given, right, rel_tol=1e-6, abs_tol=1e-9)
    return abs(given - right) <= 1.0001 * 10 ** (math.floor(math.log10(abs(right))) + 1 - digits)


def nearest(given, right, mistakes, digits):
    """Return the sentence of the mistake that a number is nearest to, if it is nearer than the right one, or ''.

    People round: a mistake is known by three digits, or rounded to two, also where the exact number is asked.
    """
    off = {}
    for sentence, wrong in mistakes.items():
        if same(given, float(wrong), digits or 3) or same(given, float(f"{float(wrong):.2g}")):
            off[sentence] = abs(given - float(wrong))
    best = min(off, key=off.__getitem__, default="")
    return best if best and off[best] < abs(given - right) else ""


def refuse(case, sentence):
    """Say which mistake was made; nothing else is said then."""
    case.equal(False, True, mistakes={sentence: False})


def number(answer, case, key, right, mistakes, *, digits=0, units=None, whole=False):
    """Demand a number.

    Args:
        answer: the answer.
        case: the case.
        key: what the number is called.
        right: the number.
        mistakes: the numbers that common mistakes lead to, under the sentence that names the mistake.
        digits: how many digits of the number are asked; 0 for the exact number.
        units: other units in which the right number may be given by mistake: how many of the asked unit each holds.
        whole: whether things are counted, so that only a whole number can be right.
    """
    right, given = float(right), alone(entry(answer, case, key))
    case.true(not isinstance(given, str), f"{key} is text: write a number, without quotation marks and without a unit")
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    case.true(is_number, f"{key} is a {kind_of(given)}; one number is asked, an int or a float")
    case.true(math.isfinite(given), f"{key} is {given}; a finite number is asked")
    mistake = nearest(given, right, mistakes, digits)
    shorter = [float(f"{right:.{kept}g}") for kept in range(1, digits + 1)]  # it, rounded to that many digits or fewer
    if same(given, right, digits) and (not mistake or any(same(given, one) for one in shorter)):
        return
    found = [mistake] if mistake else []
    for unit, size in (units or {}).items():
        if abs(given * size - right) < 0.02 * abs(right):
            found.append(f"the number is good in another unit, {unit}: look at the unit that the question asks for")
    if not found and same(-given, right, digits):
        found = [f"the size of {given:g} is good; what about the sign?"]
    if not found and whole and abs(given - round(given)) > 1e-6:
        found = [f"{given:g} is no whole number, and whole things are counted here"]
    if not found and any(same(given, one) for one in shorter):
        zeros = ", and zeros in front do not count" if abs(given) < 1 else ""
        found = [f"{given:g} is a near miss: {digits} digits are asked{zeros}"]
    if not found and abs(given - right) < 0.02 * abs(right):
        wanted = f"{digits} digits are asked; was something rounded on the way?" if digits else "the exact one is asked"
        found = [f"{given:g} is a near miss: {wanted}"]
    if found:
        refuse(case, found[0])
    case.equal(given, right, what=key)


def call(target, key, *values):
    """Call, beside the answer, the lambda under a key."""
    return target()[key](*values)


def left_behind(target, key, *values):
    """Call, beside the answer, the lambda under a key; return the values as the call leaves them."""
    target()[key](*values)
    return values


def line(answer, case, key, *values):
    """Return what the lambda under a key makes of values."""
    given = entry(answer, case, key)
    case.true(
        kind_of(given) in ("function", "builtin_function_or_method", "partial", "method"),
        f"{key} is a {kind_of(given)}: keep the lambda, and replace only what stands behind its colon",
    )
    result = answer.probe(call, key, *values)
    case.true(result is not None and kind_of(result) != "ellipsis", f"{key} has no answer yet: replace its None")
    return result


def numbered(program):
    """Return a program with the numbers of its lines."""
    return "\n".join(f"{number:2}  {text}" for number, text in enumerate(program.splitlines(), start=1))


def replaced(program, place, text):
    """Return a program with another text in line number `place`, indented as the line that was there."""
    lines = program.splitlines()
    old = lines[place - 1]
    lines[place - 1] = old[: len(old) - len(old.lstrip())] + text.strip()
    return "\n".join(lines) + "\n"


def mended(answer, case, program, run, inputs, right, mistakes, *, bad, rows=None):
    """Demand a pair, the number of a line and the line as it should be, with which a program returns `right`.

    Args:
        answer: the answer; its key is `mended`.
        case: the case.
        program: the text with one bad line.
        run: the probe that runs a program beside the answer: run(target, program, *inputs).
        inputs: for the probe.
        right: from an independent oracle.
        mistakes: what wrongly mended programs return, under the sentence that names the mistake.
        bad: the number of the bad line.
        rows: the places of the result that matter (B, T); None for all.
    """

    def mattering(result):
        if rows is None or not isinstance(result, torch.Tensor) or result.shape != right.shape:
            return result
        return torch.where(rows[:, :, None], result, 0.0)

    given, lines = entry(answer, case, "mended"), program.splitlines()
    pair = isinstance(given, tuple | list) and len(given) == 2
    case.true(pair, "mended: write a pair, the number of the line and, as text, the line as it should be")
    place, text = alone(given[0]), given[1]
    case.true(place is not None and text is not None, "mended has no answer yet: replace both None")
    case.true(isinstance(place, int), "mended: the first of the pair is the number of the line, an integer")
    case.true(1 <= place <= len(lines), f"mended: the program has the lines 1 to {len(lines)}")
    case.true(isinstance(text, str), "mended: the second of the pair is the line as text, in quotation marks")
    case.true("\n" not in text.strip(), "mended: one line is asked, in place of one line")
    changed = text.strip() != lines[place - 1].strip()
    case.true(changed, f"line {place} is as it was; write it as it should be")
    wanted = mattering(right)

    def made_with(number):
        return mattering(answer.probe(run, replaced(program, number, text), *inputs))

    def fits(number):
        try:
            result = made_with(number)
        except Exception:  # the line cannot stand there
            return False
        return isinstance(result, torch.Tensor) and alike(result, wanted)

    if not fits(place):
        elsewhere = any(fits(other) for other in range(1, len(lines) + 1) if other != place)
        case.true(not elsewhere, f"the line itself is good, but it does not belong in the place of line {place}")
    result = made_with(place)
    known = {sentence: mattering(wrong) for sentence, wrong in mistakes.items()}
    if place != bad:
        known |= always(f"line {place} was good before, and now values are off: another line is the bad one")
    case.close(result, wanted, what="what the mended program returns", mistakes=known)


# -- 1 attention ------------------------------------------------------------------------------------------


def rows_without_key(lengths, left):
    """Return the rows of weights that become NaN when a causal mask meets padding on one side."""
    longest = max(lengths)
    real = torch.stack([(torch.arange(longest) < length) for length in lengths])
    real = real.flip(1) if left else real
    mask = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None, :]
    weights = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).softmax(-1)
    return int(weights.isnan().any(-1).sum())


def multiplications(shape, columns):
    """Return how many multiplications a matrix product takes: a tensor of this shape times a matrix."""
    return math.prod(shape) * columns


def break_even(*, projections=4, hidden=4, products=2, width=512):
    """Return the length at which the two kinds of work in a layer are equal."""
    T = 1000  # any length will do: one kind grows with T, the other with T²
    along = projections * multiplications((T, width), width)
    along += multiplications((T, width), hidden * width) + multiplications((T, hidden * width), width)
    return T * Fraction(along, products * multiplications((T, width), T))


def band(T, w, *, shift=0, both=False):
    """Return a mask by counting, row by row: key s is allowed for query t when 0 ≤ t - s < w."""
    rows = []
    for t in range(T):
        rows.append([(abs(t - s) if both else t - s + shift) in range(w) for s in range(T)])
    return torch.tensor(rows)


@check("attention-quiz", points=8)
def attention_quiz(answer, case):
    """Scale, masks, cost."""
    with case("1: the scale taken out", points=2, hint="what happens to the *ratio* of two weights?"):
        weights, d = torch.tensor([0.8, 0.2], dtype=torch.float64), 16
        scores = weights.log()

        def second(factor):
            return (factor * scores).softmax(-1)[1]

        mistakes = {
            "that multiplies the scores by d: the division was by √d": second(d),
            "that is the wrong direction: without the division the scores are larger, not smaller": second(d**-0.5),
            "that multiplies the ratio of the weights by √d; it is the scores, the exponents, that grow": (
                1 / (1 + 4 * d**0.5)
            ),
            "that divides the weight by √d; the scores change, and the softmax is no straight line": 0.2 / d**0.5,
            "that takes the weight to a power, but the two weights must still sum to 1": 0.2 ** (d**0.5),
            "that is the ratio of the two weights; they must sum to 1": 0.25 ** (d**0.5),
            "that takes the weights for scores; the scores are their logarithms": (d**0.5 * weights).softmax(-1)[1],
            "that is the weight of the first key": 1 - second(d**0.5),
            "that is the weight before: the scores change, and so do the weights": 0.2,
        }
        number(answer, case, "unscaled", second(d**0.5), mistakes, digits=3, units={"percent": 0.01})
    with case("2: rows without a key", points=2, hint="which rows have no key that is allowed by both masks?"):
        lengths = (2, 4, 7)
        right = rows_without_key(lengths, left=True)
        mistakes = {
            "that is so with padding on the right, where every row may see the first token, a real one": (
                rows_without_key(lengths, left=False)
            ),
            "that looks at the shortest sentence alone": rows_without_key((lengths[0], max(lengths)), left=True),
            "that counts the sentences that have such rows; count the rows": sum(
                length < max(lengths) for length in lengths
            ),
            "those are the rows of the real tokens, and each of these may see itself": sum(lengths),
            "that is every row; a real token sees at least itself": len(lengths) * max(lengths),
            "that counts the first word of each sentence too; a word may see at least itself": right + len(lengths),
            "that counts the first word of the shorter sentences too; a word may see at least itself": (
                right + sum(length < max(lengths) for length in lengths)
            ),
            "that counts pairs of a query and a hidden key; rows are asked": int(
                sum(max(lengths) * (max(lengths) - length) for length in lengths)
            ),
        }
        number(answer, case, "nan_rows", right, mistakes, whole=True)
    with case("3: a window", points=2, hint="two conditions on the distance between query and key"):
        for T, w in ((6, 3), (5, 1), (4, 9), (int(case.randint(7, 12)), int(case.randint(2, 6)))):
            result = line(answer, case, "window", T, w)
            right = band(T, w)
            dense = torch.ones(T, T, dtype=torch.bool)
            mistakes = {
                "that is the causal mask: nothing keeps a token from seeing far back": dense.tril(),
                "off by one: a token sees w tokens before itself; with itself it should be w": band(T, w + 1),
                "off by one: a token sees fewer than w tokens, with itself": band(T, w - 1),
                "the window reaches into the future too": band(T, w, both=True),
                "the window looks into the future: it is transposed": right.T,
                "a token does not see itself": band(T, w, shift=-1),
                "a token does not see itself, and nothing else is missing": right & ~torch.eye(T, dtype=torch.bool),
                "every token sees every other: both conditions must hold": dense,
                "that cuts the text into blocks; the window of each token ends with itself": (
                    right & torch.tensor([[t // w == s // w for s in range(T)] for t in range(T)])
                ),
                "that has the wrong sense: True means that a query may see a key": ~right,
                "that is the causal mask without the window: what lies far back": dense.tril(-w),
                "the window is cut off, but the future is not": dense.triu(1 - w),
            }
            if isinstance(result, torch.Tensor) and result.dtype != torch.bool and alike(result.bool(), right):
                case.dtype(result, torch.bool, what="the mask")
            if isinstance(result, torch.Tensor) and result.is_floating_point() and alike(result == 0, right):
                refuse(case, "that is to be added to the scores; booleans are asked, True where a query may see a key")
            case.equal(result, right, what=f"the mask for T = {T}, w = {w}", mistakes=mistakes)
    with case("4: where the cost turns", points=2, hint="write both kinds of work for a text of length T"):
        mistakes = {
            "that leaves out the feed-forward network": break_even(hidden=0),
            "that leaves out half of the maps: the four of the attention, or a (four times as large) one of the "
            "feed-forward network": break_even(projections=0),
            "that counts the maps for queries, keys and values; the outputs go through one too": (
                break_even(projections=3)
            ),
            "that counts only one product with T × T numbers; the scores are made, and then used": (
                break_even(products=1)
            ),
            "that gives the feed-forward network maps D → D; its maps are four times as large": break_even(hidden=1),
            "that is the number of times D": break_even() / 512,
            "that compares one map with one product; count all the maps, and both products": break_even(
                projections=1, hidden=0, products=1
            ),
        }
        number(answer, case, "break_even", break_even(), mistakes)


# -- 2 encoder --------------------------------------------------------------------------------------------


def positions(length, width):
    """Return sinusoidal positional encodings (length, width): sin, cos, sin, cos, ..."""
    table = np.empty((length, width))
    for p in range(length):
        for pair in range(width // 2):
            angle = p / 10000 ** (2 * pair / width)
            table[p, 2 * pair], table[p, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


def drawn_column():
    """Return what the notebook draws: a column of an encoding with 8 columns, at the positions 0 to 130."""
    return np.sin(np.arange(131) / 10)


def parameters(module):
    """Return how many numbers a module has learnt."""
    return sum(parameter.numel() for parameter in module.parameters())


PRE_NORM = """\
def encoder_layer(x, padding):
    h = norm1(x)
    x = x + attention(h, h, h, key_padding_mask=padding)[0]
    x = x + feed_forward(norm2(h))
    return x
"""


def run_encoder_layer(target, program, state, x, padding):
    """Run a program that defines `encoder_layer`, with the weights of a layer of torch's."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    layer.load_state_dict(state)
    parts = {"torch": torch, "norm1": layer.norm1, "norm2": layer.norm2, "attention": layer.self_attn}
    parts["feed_forward"] = lambda h: layer.linear2(F.relu(layer.linear1(h)))
    exec(program, parts)
    return parts["encoder_layer"](x, padding)


def encoder_layer_mistakes(layer, x, padding):
    """Return what a layer returns whose second half is wrong."""

    def feed_forward(h):
        return layer.linear2(F.relu(layer.linear1(h)))

    def attended(h):
        return layer.self_attn(h, h, h, key_padding_mask=padding)[0]

    h = layer.norm1(x)
    y = x + attended(h)
    wrong_start = h + attended(h)
    return {
        "the program still returns what it returned before": y + feed_forward(layer.norm2(h)),
        "the sum is lost: the second half must add to what has come so far": feed_forward(layer.norm2(y)),
        "the second half is not normalised any more": y + feed_forward(y),
        "each half has a norm of its own": y + feed_forward(layer.norm1(y)),
        "that is post-norm: the norm stands behind the sum": layer.norm2(y + feed_forward(y)),
        "that normalises what the feed-forward network returns; pre-norm means what it is given": (
            y + layer.norm2(feed_forward(y))
        ),
        "now the second half adds to the normalised input, and what attention found is lost": (
            h + feed_forward(layer.norm2(y))
        ),
        "the sum starts from the norm: each half adds to the stream itself, as it came": (
            layer.norm2(y) + feed_forward(layer.norm2(y))
        ),
        "in line 3 the right x was added to; what line 4 reads is wrong": (wrong_start + feed_forward(layer.norm2(h))),
    }


@check("encoder-quiz", points=8)
def encoder_quiz(answer, case):
    """Positions, layer norm, parameters, pre-norm."""
    with case("1: a column of the encoding", points=2, hint="how many positions until the curve repeats?"):
        table = positions(131, 8)
        off = np.abs(table - drawn_column()[:, None]).max(axis=0)
        right = int(off.argmin())
        mistakes = {
            "that is the number of the pair, or the cosine of the fastest pair; count columns, from 0": right - 1,
            "that column has the right frequency, but look at position 0: sine or cosine?": right + 1,
            "that column repeats every 6 positions": right - 2,
            "that is a wave's length in positions; its column is asked": 63,
        }
        for slower in range(right + 2, 8):
            slow = f"column {slower} is not right: it is slower, and has not done half a turn on the whole drawing"
            mistakes[slow] = slower
        number(answer, case, "column", right, mistakes, whole=True)
    with case("2: a large outlier", points=2, hint="mean and variance first; does the size of the outlier matter?"):
        x = torch.zeros(17, dtype=torch.float64)
        x[-1] = 1000
        right = F.layer_norm(x, (17,), eps=0.0)[-1]
        centred = x - x.mean()
        mistakes = {
            "that divides by the square root of the *unbiased* variance; layer norm divides the sum by d, not d - 1": (
                centred / x.std()
            )[-1],
            "that leaves out the mean: it is the root mean square norm": (x / x.square().mean().sqrt())[-1],
            "that divides by the variance, not by its square root": (centred / x.var(correction=0))[-1],
            "that subtracts the mean, and does not divide": centred[-1],
            "that is not normalised at all": x[-1],
            "that divides by the largest value; it should be the standard deviation": 1,
            "that removes the mean, and divides by the largest value; it should be the standard deviation": (
                centred[-1] / x.max()
            ),
            "that is what becomes of a zero": right * centred[0] / centred[-1],
            "that forgets the root at the end: it is the square of the right number": right**2,
        }
        number(answer, case, "outlier", right, mistakes)
    with case("3: layers against the embedding", points=2, hint="count one layer: attention, feed-forward, norms"):
        embedding = parameters(nn.Embedding(8000, 128, device="meta"))
        layer = nn.TransformerEncoderLayer(128, 4, 512, device="meta")
        right = embedding // parameters(layer) + 1
        attention = parameters(layer.self_attn)
        hidden = parameters(layer.linear1) + parameters(layer.linear2)
        mistakes = {
            "nearly: with so many layers the embedding is still the larger one": right - 1,
            "that counts the attention of a layer alone; it has a feed-forward network too": embedding // attention + 1,
            "that counts the feed-forward network of a layer alone, or one of its two maps beside the attention": (
                embedding // hidden + 1
            ),
            "that counts three maps D → D alone: the outputs have one too, and then comes the feed-forward network": (
                embedding // (3 * 128 * 128) + 1
            ),
            "that compares with the number of tokens; the embedding has 128 numbers for each": (
                8000 // parameters(layer) + 1
            ),
            "that counts each of the 4 heads as an attention of full size; they share the 128 features": (
                embedding // (4 * attention + hidden) + 1
            ),
        }
        number(answer, case, "layers", right, mistakes, whole=True)
    with case("4: a program mended", points=2, hint="follow x through both halves: what does each read, and add to?"):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        state = {name: case.randn(*value.shape) / 2 for name, value in layer.state_dict().items()}
        layer.load_state_dict(state)
        x, padding = case.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        with torch.no_grad():
            right, mistakes = layer(x, src_key_padding_mask=padding), encoder_layer_mistakes(layer, x, padding)
        mended(answer, case, PRE_NORM, run_encoder_layer, (state, x, padding), right, mistakes, bad=4)


# -- 3 translation ----------------------------------------------------------------------------------------

PAD, BOS, EOS = 0, 1, 2


def sentences(*lengths, length):
    """Return token ids (B, length): BOS, so many words from 3 on, EOS, then PAD."""
    rows = []
    for first, words in enumerate(lengths):
        row = [BOS, *(3 + (7 * first + 5 * place) % 20 for place in range(words)), EOS]
        rows.append(row + [PAD] * (length - len(row)))
    return torch.tensor(rows)


CROSS = """\
def decoder_layer(y, memory, source, target):
    causal = torch.ones(len(y[0]), len(y[0])).tril().bool()
    words = (target != PAD)[:, None, :]
    y = y + attend(y, y, words & causal)
    y = y + attend(y, memory, words)
    return y + feed_forward(y)
"""


def run_decoder_layer(target, program, y, memory, source, tokens):
    """Run a program that defines `decoder_layer`."""

    def attend(queries, others, mask):
        if queries.ndim != 3 or others.ndim != 3:
            raise ValueError("attend wants features (B, T, D) for queries and others, not token ids or masks")
        mask = torch.ones((), dtype=torch.bool) if mask is None else mask
        scores = (queries @ others.transpose(1, 2)).masked_fill(~mask, -1e9)  # no NaN where all is hidden
        return scores.softmax(-1) @ others

    parts = {"torch": torch, "PAD": 0, "attend": attend, "feed_forward": torch.tanh}
    exec(program, parts)
    return parts["decoder_layer"](y, memory, source, tokens)


def attended(queries, others, mask):
    """Return what queries find in others; by torch's attention."""
    bias = torch.where(mask, 0.0, -1e9).expand(len(queries), queries.shape[1], -1)
    return F.scaled_dot_product_attention(queries, others, others, attn_mask=bias, scale=1.0)


def decoder_layer_of(y, memory, own, other):
    """Return what the layer makes of y with two masks."""
    y = y + attended(y, y, own)
    y = y + attended(y, memory, other)
    return y + y.tanh()


def decoder_layer_mistakes(y, memory, source, target):
    """Return what a decoder layer with other masks returns."""
    causal = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).tril()
    theirs, ours = (source != PAD)[:, None, :], (target != PAD)[:, None, :]
    everything = torch.ones_like(theirs)

    def made(own, other):
        return decoder_layer_of(y, memory, own, other)

    def ended(y):
        return y + y.tanh()

    z = y + attended(y, y, ours & causal)
    return {
        "the program still returns what it returned before": made(ours & causal, ours),
        "the causal mask belongs to the words of the target; the source is known from the start": (
            made(ours & causal, theirs & causal)
        ),
        "with only the causal mask there, queries attend to padding, and miss words that they may see": (
            made(ours & causal, causal)
        ),
        "now the padding on the other side is seen: some keys must stay hidden": made(ours & causal, everything),
        "that has the wrong sense: True means that a query may attend to a key": made(ours & causal, ~theirs),
        "both kinds of padding are asked for at once; the keys of line 5 come from one side only": (
            made(ours & causal, theirs & ours)
        ),
        "now the self-attention hides the wrong tokens: its keys are the target's": made(theirs & causal, theirs),
        "without the causal mask each word of the target sees those that it has to predict": made(ours, ours),
        "it is the queries that are hidden there, not the keys: the mask needs an axis for the queries": (
            made(ours & causal, theirs.transpose(1, 2))
        ),
        "that is turned round, and the values are off: y asks, and memory is asked": (
            ended(z + attended(memory, z, ours))
        ),
        "that is turned round, and the values are off: y asks, and memory is asked (with whose mask?)": (
            ended(z + attended(memory, z, theirs))
        ),
        "the sum is lost: what attention finds is added to y": ended(attended(z, memory, theirs)),
        "the sum is lost: what attention finds is added to y (and whose padding is hidden?)": (
            ended(attended(z, memory, ours))
        ),
        "that is a second self-attention: nothing comes from memory any more": ended(z + attended(z, z, theirs)),
    }


def longer_wins():
    """Return the exponent from which on the longer of two hypotheses wins, by halving an interval."""

    def longer_is_better(alpha):
        return math.log(1 / 64) / 6**alpha > math.log(1 / 16) / 3**alpha

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if longer_is_better(middle) else (middle, high)
    return high


def cache_bytes(*, kinds=2, layers=6, heads=2, hypotheses=3, dtype=torch.float32):
    """Return the bytes of a cache of keys and values."""
    shape = (kinds, layers, hypotheses, heads, 1000, 64)
    return torch.empty(shape, dtype=dtype, device="meta").nbytes


@check("translation-quiz", points=10)
def translation_quiz(answer, case):
    """Shifted targets, cross-attention, cache, beam search, BLEU."""
    with case("1: what is read, what is to be said", points=2, hint="what should be said after the first token?"):
        tokens = sentences(4, 2, int(case.randint(1, 4)), length=7)
        result = line(answer, case, "shifted", tokens)
        case.same_inputs([tokens], answer.probe(left_behind, "shifted", tokens))
        open_yet = isinstance(result, tuple | list) and any(part is None for part in result)
        case.true(not open_yet, "shifted has no answer yet: replace each None")
        inputs, targets = case.parts(result, "inputs", "targets")
        early, late = tokens[:, :-1].clone(), tokens[:, 1:].clone()
        hidden = late.clone()
        hidden[late == PAD] = -100

        if alike(targets, early) and (alike(inputs, hidden) or alike(inputs, late)):
            refuse(case, "the two are exchanged: the pair is (inputs, targets)")
        case.equal(
            inputs,
            early,
            what="the inputs",
            mistakes={
                "the decoder would read from the second token on; then the first word is its input, not its task": late,
                "the decoder would read one token too many: nothing is left to say after the last": tokens,
                "the padding of the *inputs* was replaced; only the targets are ignored by the loss": (
                    early.masked_fill(early == PAD, -100)
                ),
            },
        )
        shorter = tokens[:, :-1]
        case.equal(
            targets,
            hidden,
            what="the targets",
            mistakes={
                "the targets are not shifted: the decoder would learn to repeat what it has just read": (
                    shorter.masked_fill(shorter == PAD, -100)
                ),
                "the targets are not shifted, and their padding is not replaced": shorter,
                "the padding of the targets is not replaced: the loss would count it": late,
                "the padding was looked for in the unshifted tokens: its first place is missed": (
                    late.masked_fill(shorter == PAD, -100)
                ),
                "the words were replaced and the padding kept": late.masked_fill(late != PAD, -100),
                "EOS is replaced too; then the decoder never learns to stop": (
                    late.masked_fill((late == PAD) | (late == EOS), -100)
                ),
                "the padding is kept, and EOS replaced": late.masked_fill(late == EOS, -100),
                "the padding is replaced by another number than the one that the loss leaves out": (
                    lambda: alike(targets.masked_fill(late == PAD, -100), hidden)
                ),
                "the targets are shifted by two": F.pad(tokens[:, 2:], (0, 1)).masked_fill(
                    F.pad(tokens[:, 2:], (0, 1)) == PAD, -100
                ),
            },
        )
        case.dtype(targets, torch.int64, what="the targets")
    with case("2: a program mended", points=2, hint="for each of the two attentions: whose tokens are the keys?"):
        source, target = sentences(3, 1, 2, length=6), sentences(1, 3, 4, length=6)
        y, memory = case.randn(3, 6, 4), case.randn(3, 6, 4)
        causal = torch.ones(6, 6, dtype=torch.bool).tril()
        right = decoder_layer_of(y, memory, (target != PAD)[:, None, :] & causal, (source != PAD)[:, None, :])
        mistakes = decoder_layer_mistakes(y, memory, source, target)
        inputs, words = (y, memory, source, target), target != PAD
        mended(answer, case, CROSS, run_decoder_layer, inputs, right, mistakes, bad=5, rows=words)
    with case("3: memory of the cache", points=2, hint="what shape have the keys that one layer keeps?"):
        right = cache_bytes()
        mistakes = {
            "that keeps the keys, or the values; both are needed": cache_bytes(kinds=1),
            "that keeps queries too; a query is used once and never again": cache_bytes(kinds=3),
            "that keeps the queries of all 8 heads too; a query is used once and never again": (
                cache_bytes(kinds=1, heads=2 + 2 + 8)
            ),
            "that gives each of the 8 query heads keys and values of its own": cache_bytes(heads=8),
            "that is one layer; every layer has keys and values of its own": cache_bytes(layers=1),
            "that is one hypothesis; beam search keeps three at a time": cache_bytes(hypotheses=1),
            "that counts numbers; a number in float32 has more than one byte": right // 4,
            "that counts bits; a byte has 8": 8 * right,
            "that is one token of 1,000, or the number is good in another unit, kB": right / 1000,
        }
        units = {"kB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30}
        number(answer, case, "cache", right, mistakes, units=units)
    with case("4: the longer hypothesis", points=2, hint="where are the two scores equal? Then solve for α"):
        right = longer_wins()
        mistakes = {
            "that is the ratio of the log probabilities, not yet an exponent": math.log(64) / math.log(16),
            "that is a logarithm to the base e; the lengths have another ratio": math.log(1.5),
            "with the mean log probability the longer one does win, but not only from there on": 1,
            "that is turned over: which of the two logarithms is divided by which?": 1 / right,
            "the sign: a negative exponent would punish length": -right,
            "with the root of the length the shorter one still wins": 0.5,
            "that compares with the probabilities themselves; the scores are logarithms, and the sign is wrong": -2,
            "without any normalisation the shorter one wins": 0,
            "that is the ratio of the mean log probabilities": (math.log(64) / 6) / (math.log(16) / 3),
            "that compares the lengths with the probabilities themselves; the scores are logarithms": 2,
        }
        number(answer, case, "alpha", right, mistakes, digits=3)
    with case("5: a fifth left out", points=2, hint="the brevity penalty is no share: there is an e in it"):
        right = 40 * math.exp(1 - 1 / 0.8)
        mistakes = {
            "that is as if the penalty were the share of the words that is left": 40 * 0.8,
            "that has no penalty: precision alone does not see that words are missing": 40,
            "that is turned over: the reference's length is divided by the translation's": 40 * math.exp(0.8 - 1),
            "that is turned over, and makes a short translation gain": 40 * math.exp(1 - 0.8),
            "that takes the penalty into the mean of the four precisions; it stands outside": 40 * math.exp(-0.25 / 4),
            "that lowers the precisions too; they stay as they were": 40 * 0.8 * math.exp(1 - 1 / 0.8),
            "a short translation must lose, not gain": 40 * math.exp(1 / 0.8 - 1),
            "that is the penalty alone; what is left of the 40?": math.exp(1 - 1 / 0.8),
            "that forgets the 1 in the exponent": 40 * math.exp(-1 / 0.8),
            "that is what is lost; what is left?": 40 - right,
            "that is as if only a fifth of the words were left": 40 * math.exp(1 - 1 / 0.2),
        }
        number(answer, case, "bleu", right, mistakes, digits=3, units={"shares of 1": 100})


# -- 4 losses ---------------------------------------------------------------------------------------------

ANCHOR, POSITIVE = (0.0, 0.0), (1.2, 1.6)
NEGATIVES = (
    *((-1.0, 0.4), (1.3, -0.8)),
    *((2.0, -1.6), (0.2, 2.7), (-2.3, -1.2)),
    *((3.2, 1.5), (-2.9, 2.4), (-1.4, -3.3), (2.6, -3.4)),
)


def triplet_losses(margin=1.0):
    """Return the triplet loss of each of the drawn negatives."""
    negatives = torch.tensor(NEGATIVES, dtype=torch.float64)
    anchor = torch.tensor(ANCHOR, dtype=torch.float64).expand_as(negatives)
    positive = torch.tensor(POSITIVE, dtype=torch.float64).expand_as(negatives)
    return F.triplet_margin_loss(anchor, positive, negatives, margin=margin, eps=0.0, reduction="none")


def smallest_loss(target):
    """Return the smallest cross-entropy with a distribution as target."""
    return F.cross_entropy(target.log(), target)


def perfect_loss(size, temperature=1.0):
    """Return the contrastive loss of a batch in which every partner has cosine 1 and all others have -1."""
    similarities = 2 * torch.eye(size, dtype=torch.float64) - 1
    return F.cross_entropy(similarities / temperature, torch.arange(size)).item()


@check("losses-quiz", points=8)
def losses_quiz(answer, case):
    """Label smoothing, focal, triplet and contrastive loss."""
    with case("1: how low it can get", points=2, hint="which prediction is best, and what does it still cost?"):
        classes, smoothing = 10, 0.1
        smooth = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        smooth[0] += 1 - smoothing
        right = F.cross_entropy(smooth.log()[None], torch.tensor([0]), label_smoothing=smoothing)
        others = torch.full((classes,), smoothing / (classes - 1), dtype=torch.float64)
        others[0] = 1 - smoothing
        mistakes = {
            "a loss of 0 would need a target with a single 1; the smoothed target has none": 0,
            "that gives the whole 0.1 to the nine wrong classes; all ten get their part of it": smallest_loss(others),
            "that is the term of the right class; the nine others ask for their part too": -smooth[0].log(),
            "that is the weighted term of the right class; the nine others have terms too": (
                -smooth[0] * smooth[0].log()
            ),
            "that has two outcomes, of 0.9 and 0.1; the 0.1 is spread over ten classes": (
                smallest_loss(torch.tensor([0.9, 0.1], dtype=torch.float64))
            ),
            "that sums eleven terms: 0.9, and ten times 0.01; the right class has one of 0.91": (
                -0.9 * math.log(0.9) - 0.1 * math.log(0.01)
            ),
            "that has ten other classes beside the right one; they are nine": right - 0.01 * math.log(0.01),
            "that is the mean over the classes; a cross-entropy is a sum over them": right / classes,
            "that is what is spread, not what it costs": smoothing,
            "that is -log 0.9: the right class gets a bit more than 0.9, and the others cost something": -math.log(0.9),
            "that is in bits; cross_entropy uses the natural logarithm": right / math.log(2),
            "that is the loss of a model that knows nothing": math.log(classes),
            "that has one of the nine wrong classes only": (-smooth[0] * smooth[0].log() - smooth[1] * smooth[1].log()),
        }
        number(answer, case, "smallest", right, mistakes, digits=3)
    with case("2: easy against hard", points=2, hint="the loss of one easy and of one hard example, then divide"):

        def focal(p, gamma=2.0):
            return -((1 - p) ** gamma) * math.log(p)

        right = focal(0.5) / focal(0.9)
        mistakes = {
            "that is so for plain cross-entropy": focal(0.5, 0) / focal(0.9, 0),
            "that compares the factors (1 - p)² alone; there is a logarithm too": 0.5**2 / 0.1**2,
            "that takes p² for the factor; it is (1 - p)² that makes easy examples small": (
                (0.5**2 * math.log(0.5)) / (0.9**2 * math.log(0.9))
            ),
            "that is turned over: how many easy ones weigh as much as one hard one?": 1 / right,
            "that has γ = 1, the exponent of (1 - p); here (1 - p) is squared": focal(0.5, 1) / focal(0.9, 1),
            "that is the loss of the hard example; how many easy ones have as much?": focal(0.5),
            "that is a difference; how many times does the small loss go into the large one?": focal(0.5) - focal(0.9),
            "that takes the logarithm of 1 - p": (0.5**2 * math.log(0.5)) / (0.1**2 * math.log(0.1)),
        }
        number(answer, case, "easy", right, mistakes, digits=3)
    with case("3: who still pulls", points=2, hint="up to which distance from the anchor has a negative a gradient?"):
        losses = triplet_losses()
        distance = torch.tensor(NEGATIVES).norm(dim=-1)
        right = int((losses > 0).sum())
        mistakes = {
            "those are the negatives nearer than the positive; the margin asks for more": int((distance < 2).sum()),
            "those are the ones with a loss of 0": int((losses == 0).sum()),
            "those are the ones between the positive and the margin; what about the ones that are nearer still?": int(
                ((distance > 2) & (losses > 0)).sum()
            ),
            "that is all of them; a negative that is far enough away has a loss of 0": len(NEGATIVES),
            "that has none: a negative that is too near has a loss, and the margin lies beyond the positive": 0,
            "that is the nearest alone; each negative has a loss of its own": 1,
        }
        number(answer, case, "pulling", right, mistakes, whole=True)
    with case("4: no temperature", points=2, hint="one row of similarities: 1 for the pair, -1 for all others"):
        size = 128
        labels = torch.arange(size)
        right = perfect_loss(size)
        mistakes = {
            "a loss of 0 would need similarities that differ by more than 2": 0,
            "that is a model that gives every pair the same similarity": math.log(size),
            "that gives the others a similarity of 0; it can be as low as -1": (
                F.cross_entropy(torch.eye(size, dtype=torch.float64), labels)
            ),
            "that leaves the pair itself out of the sum below the fraction": math.log((size - 1) * math.exp(-2)),
            "that counts the pair itself among the others; a row has 127 of them": math.log(1 + size * math.exp(-2)),
            "that is the sum over the rows; the mean is asked": size * right,
            "that is the log of the sum below the fraction; from this the pair's own logit is subtracted": right + 1,
            "that is the pair's own logit with a minus; the softmax has a sum below the fraction, too": -1,
            "that is in bits; cross_entropy uses the natural logarithm": right / math.log(2),
            "that is a probability, not yet its negative logarithm": math.exp(-right),
            "that has one other only; a row has 127": math.log(1 + math.exp(-2)),
        }
        number(answer, case, "coldest", right, mistakes, digits=3)


# -- 5 training -------------------------------------------------------------------------------------------


def after_one_step(kind, weight=2.0, gradient=0.003, **options):
    """Return a weight after one step of an optimizer of torch's."""
    parameter = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    optimizer = kind([parameter], lr=0.1, **options)
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    return parameter.item()


def clipped_norms(limit, *norms):
    """Return the norms of several gradients after torch has clipped them together."""
    parameters = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in norms]
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.grad = torch.tensor([float(norm)], dtype=torch.float64)
    nn.utils.clip_grad_norm_(parameters, limit)
    return [parameter.grad.item() for parameter in parameters]


@check("training-quiz", points=6)
def training_quiz(answer, case):
    """AdamW, warmup, clipping."""
    with case("1: one step of AdamW", points=2, hint="after one step, what are m and v when their bias is corrected?"):
        optim = torch.optim
        right = after_one_step(optim.AdamW, weight_decay=0.1)
        decay = 2.0 - after_one_step(optim.AdamW, gradient=0.0, weight_decay=0.1)
        mistakes = {
            "that leaves out the weight decay (or adds it to the gradient, where Adam's division takes it away)": (
                after_one_step(optim.Adam)
            ),
            "that is a step of plain SGD: Adam divides the gradient by its own size": after_one_step(optim.SGD),
            "that is a step of SGD with decay: Adam divides the gradient by its own size": (
                after_one_step(optim.SGD) - decay
            ),
            "that is the decay alone": 2.0 - decay,
            "that is the change; the weight afterwards is asked": right - 2.0,
            "the decay has to make the weight smaller, too; it grows": right + 2 * decay,
            "the step has to be multiplied by the learning rate, too": 2.0 - decay - 1,
            "the decay is a share of the weight before the step, not of the one after it": (
                after_one_step(optim.Adam) * (1 - decay / 2.0)
            ),
            "that divides by v, not by its root": 2.0 - decay - 0.1 / 0.003,
            "m and v both start at 0; you have corrected v and not m": 2.0 - decay - 0.1 * 0.1,
            "that goes uphill: the gradient is positive": 2 * (2.0 - decay) - right,
            "the decay has to be multiplied by the learning rate too": right + decay - 0.1 * 2.0,
            "m and v start at 0, and Adam corrects for that; you have left the correction out": (
                2.0 - decay - 0.1 * (0.1 / math.sqrt(0.001))
            ),
            "the decay is a share of the weight, and the weight is 2": after_one_step(optim.Adam) - 0.1 * 0.1,
        }
        number(answer, case, "adamw", right, mistakes)
    with case("2: half the peak", points=2, hint="behind the peak the rate is proportional to 1/√step"):
        warmup, step = 4000, torch.arange(1, 100_001, dtype=torch.float64)
        rate = torch.minimum(step**-0.5, step * warmup**-1.5)
        half = rate.max() / 2
        peak = int(rate.argmax()) + 1
        right = int(((rate <= half * (1 + 1e-12)) & (step > peak)).nonzero()[0]) + 1
        mistakes = {
            "that would be so if the rate fell with 1/step; it falls with its root": 2 * warmup,
            "that would be so if the rate fell with 1/step²: the root belongs to the step": warmup * math.sqrt(2),
            "that takes the exponent 3/2 of the way up; behind the peak it is the root": warmup * 2 ** (2 / 3),
            "that is on the way up; the second time is asked": (
                int(((rate >= half * (1 - 1e-12)) & (step < peak)).nonzero()[0]) + 1
            ),
            "that counts from the peak on; count from the start": right - peak,
            "that is the peak itself": peak,
            "that would be so if the rate fell in a straight line as fast as it rose": warmup + warmup // 2,
            "that is a quarter of the peak: the root has been taken twice": 16 * warmup,
        }
        number(answer, case, "half_peak", right, mistakes, whole=True)
    with case("3: clipped together", points=2, hint="which norm is compared with the limit?"):
        norms, limit = (3, 4, 12), 6.5
        right = round(clipped_norms(limit, *norms)[0], 5)  # torch adds 1e-6 to the norm
        mistakes = {
            "each tensor was clipped on its own; clip_grad_norm_ looks at all of them as one vector": 3,
            "norms of parts do not add up: their squares do": limit * 3 / sum(norms),
            "that divides by the square of the norm": limit * 3 / math.hypot(*norms) ** 2,
            "that is the factor by which all are multiplied": right / 3,
            "that compares with the mean of the three norms; it is the norm of all together that counts": (
                limit * 3 / (sum(norms) / 3)
            ),
            "that compares with the largest of the three": limit * 3 / max(norms),
            "that makes the whole gradient as long as 1": 3 / math.hypot(*norms),
            "that is the norm of the whole gradient after clipping; the first tensor is asked": limit,
            "that gives each tensor a third of what is allowed": limit / 3,
            "that shrinks the squares: the norm itself is multiplied by the factor": 3 * (limit / 13) ** 2,
            "that multiplies by the norm instead of dividing: clipping never makes a gradient longer": 3 * 13 / limit,
        }
        number(answer, case, "clipped", right, mistakes)


# -- 6 several processes ----------------------------------------------------------------------------------


def ring(processes, gradient):
    """Send the parts of a gradient around a ring until each process has the sum of all; return what one sends."""
    knows = [[{rank} for _ in range(processes)] for rank in range(processes)]  # whose part is in: rank, part
    sent = [Fraction(0)] * processes
    for phase in (0, 1):
        for turn in range(processes - 1):
            parts = [(rank + phase - turn) % processes for rank in range(processes)]
            moving = [set(knows[rank][part]) for rank, part in enumerate(parts)]
            for rank, part in enumerate(parts):
                knows[(rank + 1) % processes][part] |= moving[rank]
                sent[rank] += Fraction(gradient) / processes
    assert all(len(who) == processes for mine in knows for who in mine)  # each has heard of all
    return sent[0]


def held(*, split=("moments",), processes=8, moments=2):
    """Return the gigabytes that one process holds of 250 million weights in float32, and what belongs to them."""
    size = Fraction(250_000_000 * torch.empty((), dtype=torch.float32).element_size(), 10**9)
    parts = {"weights": size, "gradients": size, "moments": moments * size}
    return sum(part / processes if name in split else part for name, part in parts.items())


@check("processes-quiz", points=6)
def processes_quiz(answer, case):
    """DDP, FSDP, all-reduce."""
    with case("1: a last batch that is too small", points=2, hint="what does DDP do with the gradients of processes?"):
        first, second = torch.full((24,), 0.5), torch.full((8,), 2.5)
        right = torch.stack([first.mean(), second.mean()]).mean()
        mistakes = {
            "that is the mean over all 32 reviews, as one process would have it; DDP does not know how many a process "
            "has": (torch.cat([first, second]).mean()),
            "that is the sum; DDP divides by the number of processes": first.mean() + second.mean(),
            "that is what the first process has found alone": first.mean(),
            "that is what the second process has found alone": second.mean(),
            "that weights the processes the wrong way round: it gives the few reviews the large weight": (
                (8 * first.mean() + 24 * second.mean()) / 32
            ),
            "that divides by the number of reviews; DDP divides by the number of processes": (
                (first.mean() + second.mean()) / 32
            ),
            "that sums over reviews; both losses are means": first.sum() + second.sum(),
        }
        number(answer, case, "averaged", right, mistakes)
    with case("2: moments in parts", points=2, hint="count what is kept whole and what is split, in multiples of 1 GB"):
        right = held()
        mistakes = {
            "that is DDP: nothing is split": held(split=()),
            "that splits the weights and the gradients too, as FSDP can": held(
                split=("weights", "gradients", "moments")
            ),
            "that splits the gradients too": held(split=("gradients", "moments")),
            "AdamW keeps two numbers for each weight, not one": held(moments=1),
            "that forgets the gradients, or the weights": held() - 1,
            "AdamW keeps two moments; one of them is not split here": held() + Fraction(7, 8),
            "that counts numbers; a number in float32 has more than one byte": held() / 4,
            "that has two bytes for a number; float32 has more": held() / 2,
            "that leaves the moments out, or splits them among endlessly many": held(moments=0),
            "that is all 8 processes together": 8 * held(),
            "that is what the moments alone take": Fraction(2, 8),
        }
        units = {"bytes": 1e-9, "MB": 1e-3, "MiB": 2**20 / 1e9, "GiB": 2**30 / 1e9}
        number(answer, case, "moments", right, mistakes, units=units)
    with case("3: around the ring", points=2, hint="in how many turns does a process send how large a part?"):
        size, processes = 1, 8
        right = ring(processes, size)
        mistakes = {
            "that stops when each process has one finished part; the others need it too": right / 2,
            "that sends the whole gradient once; it takes parts, and more turns": size,
            "that sends everything to everybody; on a ring only the neighbour is sent to, and parts": (
                size * (processes - 1)
            ),
            "that takes a turn too many in each round; it would be so with endlessly many processes": 2 * size,
            "that sends a part in every turn, but there are fewer turns than processes in each round": (
                Fraction(2 * processes + 1, processes)
            ),
            "that sends the whole gradient in each turn, or counts what all processes send together": (
                2 * size * (processes - 1)
            ),
            "that sends a whole gradient for each process; parts are sent": size * processes,
            "that counts what is received, too": 2 * right,
            "that is two of the parts; there are more turns": Fraction(2, processes),
            "that is one part, sent in one turn": Fraction(1, processes),
        }
        units = {"bytes": 1e-9, "MB": 1e-3, "MiB": 2**20 / 1e9, "GiB": 2**30 / 1e9}
        number(answer, case, "ring", right, mistakes, units=units)


# -- 7 shipping -------------------------------------------------------------------------------------------

TRACED = """\
def total(x):
    result = torch.zeros(())
    for t in range(len(x)):
        if x[t] > 0:
            result = result + x[t]
        else:
            result = result - x[t]
    return result
"""


def traced_total(example, x):
    """Return what the traced program makes of x."""
    parts = {"torch": torch, "__name__": "traced"}
    exec(TRACED, parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of what the question is about, and of its age
        return torch.jit.trace(parts["total"], (example,), check_trace=False)(x)


def zero_point(low, high, levels=256, lowest=0):
    """Return the integer that stands for 0 when low and high become the first and the last integer."""
    scale = (high - low) / (levels - 1)
    return round(lowest - low / scale)


def served(batch, *, gap=2, seconds=20, requests=320):
    """Return how long each request waits, in milliseconds, at a server that collects batches."""
    waits, free = [], 0
    for first in range(0, requests, batch):
        arrivals = [gap * request for request in range(first, first + batch)]
        free = max(free, arrivals[-1]) + seconds
        waits += [free - arrival for arrival in arrivals]
    return waits


@check("shipping-quiz", points=10)
def shipping_quiz(answer, case):
    """Tracing, quantization, latency."""
    with case("1: what the trace has kept", points=2, hint="write down what was added and subtracted for the example"):
        example, x = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([-2.0, -4.0, -5.0, -1.0])
        right = traced_total(example, x)
        mistakes = {
            "that is what the program returns; its trace has other branches": x.abs().sum(),
            "that has the length of the example, but decides anew for each number": x[:3].abs().sum(),
            "that is the result for the example; a trace keeps operations, not results": example.abs().sum(),
            "that goes on to the fourth number, by subtraction; the trace ends with the example": right + 1,
            "that goes on to the fourth number, by addition; the trace ends with the example": right - 1,
            "that adds everything up; one of the three was negative in the example": x[:3].sum(),
            "that adds everything up, and one number too many": x.sum(),
            "the branches are exchanged: in the example, which numbers were added?": -right,
        }
        number(answer, case, "traced", right, mistakes)
    with case("2: a zero point", points=2, hint="scale first: how much is one step of the integers?"):
        low, high, outlier = -1.0, 4.0, 24.5
        right = zero_point(low, outlier)
        mistakes = {
            "that leaves out the outlier, which is the largest value": zero_point(low, high),
            "that is for int8, whose integers start at -128": zero_point(low, outlier, lowest=-128),
            "0 would be right if no value were negative": 0,
            "that is counted from the upper end: 255 stands for the largest value": 255 - right,
            "that is the middle; a range that is symmetric would have it there": 128,
            "the sign: the integers of uint8 start at 0": -right,
            "that is the scale": (outlier - low) / 255,
            "that is the distance to 0 itself; count it in steps": -low,
        }
        number(answer, case, "zero_point", right, mistakes, whole=True)
    with case("3: dynamic quantization", points=2, hint="which of the two parts is touched?"):

        def megabytes(embedding, linear):
            tables = torch.empty(2_000_000, dtype=embedding, device="meta")
            return (tables.nbytes + torch.empty(600_000, dtype=linear, device="meta").nbytes) / 1e6

        right = megabytes(torch.float32, torch.int8)
        mistakes = {
            "that quantizes the embedding too; only the linear maps are touched": megabytes(torch.int8, torch.int8),
            "that quantizes the embedding instead of the linear maps": megabytes(torch.int8, torch.float32),
            "that is the size before": megabytes(torch.float32, torch.float32),
            "that leaves out the embedding, which is still in the file": megabytes(torch.float32, torch.int8) - 8,
            "that leaves out the linear maps": 8,
            "that has the linear maps in 16 bits; int8 has 8": megabytes(torch.float32, torch.float16),
            "that counts in bits; a byte has 8 of them": 8 * right,
            "that is the number of times it gets smaller": megabytes(torch.float32, torch.float32) / right,
            "that is what is saved": megabytes(torch.float32, torch.float32) - right,
        }
        units = {"bytes": 1e-6, "kB": 1e-3, "KiB": 2**10 / 1e6, "MiB": 2**20 / 1e6, "GB": 1e3}
        number(answer, case, "megabytes", right, mistakes, units=units)
    with case("4: waiting for the batch", points=2, hint="who waits longest, and for how many others?"):
        right = max(served(16))
        mistakes = {
            "that is the computation alone; the request has waited before": served(16)[15],
            "that is the wait for the others; then comes the computation": right - 20,
            "that has one gap too many: between 16 requests lie fewer than 16": right + 2,
            "that is the mean over a batch; the first of it waits longest": sum(served(16)) / len(served(16)),
            "that is the time for which a batch is collected; computing comes on top": 32,
            "that is a request that is served alone": 8,
            "that adds the time of a request alone; in the batch all 16 are computed at once": right - 20 + 8,
            "that computes 16 requests, each alone, one after another; a batch takes 20 ms as a whole": 16 * 8,
            "that waits for a batch before; the server has long finished that": right + 20,
            "that computes the 16 one after another; the batch takes 20 ms as a whole": right - 20 + 16 * 8,
        }
        number(answer, case, "longest", right, mistakes, units={"seconds": 1e3, "microseconds": 1e-3})
    with case("5: fifty at once", points=2, hint="when is the page *not* slow?"):
        right = 1 - Fraction(99, 100) ** 50
        mistakes = {
            "shares of events that may happen together do not add up": Fraction(50, 100),
            "that is the share of pages that are fast": 1 - right,
            "that is the share of requests; a page makes 50 of them": Fraction(1, 100),
            "that is the share with exactly one slow request; there may be more": (
                50 * Fraction(1, 100) * Fraction(99, 100) ** 49
            ),
            "that is the share in which all 50 are slow": Fraction(1, 100) ** 50,
            "that is the share of *requests* that are fast": Fraction(99, 100),
        }
        number(answer, case, "slow_pages", right, mistakes, digits=3, units={"percent": 0.01})
