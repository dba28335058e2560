"""A Transformer encoder that classifies texts, from scratch.

Complete the TODOs in this order; checkpoint_project.ipynb explains each of them and checks it. Only `nn.Linear`,
`nn.LayerNorm`, `nn.Embedding` and `nn.Dropout` are taken from torch: no finished attention, no finished layer.

B is the number of texts in a batch, T of tokens, H of heads; D = d_model, d = D / H. Masks are True where there is
something to see, False at padding. Token 0 is padding.
"""

import math  # noqa: F401 (for your answers)

import torch  # noqa: F401
import torch.nn.functional as F  # noqa: F401
from torch import nn

PAD = 0


# TODO attention  (5 points, ~15 min)
def attention(q, k, v, mask=None):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
        q: queries, (..., T, d).
        k: keys, (..., S, d).
        v: values, (..., S, d_v).
        mask: booleans that broadcast to (..., T, S), True where a query may attend to a key; None hides nothing.

    Returns:
        The output, (..., T, d_v). It is 0, not NaN, for a query from which every key is hidden.
    """
    raise NotImplementedError("attention")


# TODO multi-head-attention  (5 points, ~20 min)
class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own d features (Vaswani et al. 2017, section 3.2.2).

    Attributes:
        q, k, v, out: linear maps from d_model to d_model features, without bias. Head 0 works on the first d features
            of the queries, keys and values, head 1 on the next d, and so on.

    Args:
        d_model: D.
        heads: H.

    Raises:
        ValueError: when d_model is not a multiple of heads.
    """

    def __init__(self, d_model, heads):
        """Make four linear maps."""
        raise NotImplementedError("multi-head-attention")

    def forward(self, x, mask=None):
        """Let each token attend to all tokens of its text.

        Args:
            x: (B, T, D).
            mask: booleans that broadcast to (B, H, T, T), True where a query may attend to a key; or None.

        Returns:
            (B, T, D).
        """
        raise NotImplementedError("multi-head-attention")


# TODO positions  (3 points, ~15 min)
def positions(length, d_model):
    """Sinusoidal positional encoding (Vaswani et al. 2017, section 3.5).

    Args:
        length: T.
        d_model: D, even.

    Returns:
        (T, D), float32: sin(t / 10000^(2i/D)) in column 2i, cos of the same in column 2i + 1, for t = 0 ... T - 1.
    """
    raise NotImplementedError("positions")


# TODO encoder-layer  (5 points, ~20 min)
class EncoderLayer(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + feed-forward(norm(x)) (Xiong et al. 2020).

    Attributes:
        norm1, attention: of the first half, an nn.LayerNorm and a MultiHeadAttention.
        norm2, up, down: of the second half, an nn.LayerNorm and two linear maps with bias, D -> d_ff -> D, with a
            GELU between them.

    Args:
        d_model: D.
        heads: H.
        d_ff: features between `up` and `down`.
        dropout: the probability of dropout on what each half adds to x; inside the halves there is none.
    """

    def __init__(self, d_model, heads, d_ff, dropout=0.0):
        """Make the parts of both halves."""
        raise NotImplementedError("encoder-layer")

    def forward(self, x, mask=None):
        """Apply both halves.

        Args:
            x: (B, T, D).
            mask: as for MultiHeadAttention.

        Returns:
            (B, T, D).
        """
        raise NotImplementedError("encoder-layer")


# TODO masked-mean  (3 points, ~10 min)
def masked_mean(x, real):
    """Mean over the real tokens of each text.

    Args:
        x: (B, T, D). At padding it may hold anything, NaN and infinity excepted.
        real: booleans (B, T), True at real tokens.

    Returns:
        (B, D); zeros for a text without any real token.
    """
    raise NotImplementedError("masked-mean")


# TODO text-classifier  (7 points, ~30 min)
class TextClassifier(nn.Module):
    """Tokens -> embeddings + positions -> encoder layers -> norm -> masked mean -> logits.

    Attributes:
        embed: nn.Embedding(vocab, d_model); its weights are drawn from N(0, 0.05²).
        layers: nn.ModuleList of EncoderLayer.
        norm: nn.LayerNorm, after the last layer.
        head: nn.Linear(d_model, classes).

    Args:
        vocab: number of tokens, padding (token 0) included.
        d_model, heads, layers, d_ff: as for EncoderLayer; `layers` is their number.
        max_length: the largest T.
        dropout: the probability of dropout, in the layers, on what goes into the first one, and on what goes into
            `head`.
        classes: number of logits.
    """

    def __init__(self, vocab, d_model, heads, layers, d_ff, max_length, dropout=0.0, classes=2):
        """Make all parts."""
        raise NotImplementedError("text-classifier")

    def forward(self, tokens):
        """Classify texts.

        Args:
            tokens: integers (B, T), T ≤ max_length; 0 at padding, which stands after the text.

        Returns:
            Logits (B, classes), raw: cross_entropy has its own softmax. They do not depend on how much padding there
            is. The embeddings go in as embed(tokens) + 0.05 * positions: both equally large at the start.
        """
        raise NotImplementedError("text-classifier")
