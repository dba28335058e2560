"""Pictures with labels."""

from __future__ import annotations

import torch
from torch import Tensor


def digits(held_out: int = 500, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1,797 real handwritten digits, shuffled and divided in two.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998; it comes with
    scikit-learn, so nothing is downloaded.

    Args:
        held_out: how many pictures go into the second part.
        seed: of the shuffle.

    Returns:
        Pictures (N, 64) in [0, 1] and labels (N,) to learn from, then both of the held-out part.
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    order = torch.randperm(len(bundle.target), generator=torch.Generator().manual_seed(seed))
    pictures = torch.tensor(bundle.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(bundle.target)[order]
    return pictures[held_out:], labels[held_out:], pictures[:held_out], labels[:held_out]
