"""The world around the model: real handwritten digits, who wrote them, and what can happen to them on a day.

The images are scikit-learn's 1,797 digits (E. Alpaydin, C. Kaynak, 1998). They lie in the order in which they were
collected: forms with about 130 digits each, one writer each, on which the digits were asked for in the same order.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

# Where a form begins: the labels 0, 1, ..., 9, three times over. (At 1545 some digits of this beginning are missing.)
FORMS = (0, 130, 256, 386, 516, 646, 776, 905, 1029, 1157, 1287, 1415, 1545, 1667)


@dataclass
class Digits:
    """Images (N, 8, 8) with ink from 0 to 1, their labels (N,) and the number of the form each is from (N,)."""

    images: np.ndarray
    labels: np.ndarray
    forms: np.ndarray

    def __getitem__(self, chosen):
        """Return some of them."""
        return Digits(self.images[chosen], self.labels[chosen], self.forms[chosen])

    def __len__(self):
        """Return how many there are."""
        return len(self.labels)


def joined(*parts):
    """Return several `Digits` as one."""
    return Digits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "forms")))


def digits():
    """Return all digits, in the order in which they were collected."""
    bundle = load_digits()
    forms = np.searchsorted(FORMS, np.arange(len(bundle.target)), side="right") - 1
    return Digits(bundle.images / 16, bundle.target, forms)


# -- what can happen ------------------------------------------------------------------------------------------


def brighter(images, strength, rng):
    """More light: all ink fades; at strength 1 to a third."""
    return images * (1 - 0.67 * strength)


def noisy(images, strength, rng):
    """A worse sensor: noise on each pixel, at strength 1 with a standard deviation of 0.4."""
    return np.clip(images + 0.4 * strength * rng.standard_normal(images.shape), 0, 1)


def rotated(images, strength, rng):
    """A camera that hangs crooked: turned to the right about the centre, at strength 1 by 45 degrees."""
    angle = np.deg2rad(45 * strength)
    down, right = np.indices(images.shape[1:]) - 3.5
    at_row = 3.5 + np.cos(angle) * down - np.sin(angle) * right
    at_column = 3.5 + np.sin(angle) * down + np.cos(angle) * right
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    r, c = np.floor(at_row).astype(int), np.floor(at_column).astype(int)
    y, x = at_row - r, at_column - c
    r, c = r + 3, c + 3
    return (
        (1 - y) * ((1 - x) * padded[:, r, c] + x * padded[:, r, c + 1])
        + y * ((1 - x) * padded[:, r + 1, c] + x * padded[:, r + 1, c + 1])
    )  # fmt: skip


def broken(images, strength, rng):
    """A dying sensor: columns that see nothing; at strength 1 four of eight."""
    images = images.copy()
    images[:, :, 2 : 2 + round(4 * strength)] = 0
    return images


CHANGES = {"brighter": brighter, "noisy": noisy, "rotated": rotated, "broken": broken}


# -- a day ----------------------------------------------------------------------------------------------------

# hour it begins, hour it ends, what happens, how strong
DAY = (
    (3, 5, "brighter", 0.35),
    (7, 9, "noisy", 0.4),
    (11, 13, "rotated", 0.4),
    (15, 17, "new writer", 1.0),
    (19, 21, "classes", 0.7),
    (22.5, 24, "broken", 0.5),
)


def happening(hour):
    """Return what happens at an hour from 0 to 24, and how strong it is; ("", 0) when all is calm."""
    return next(((what, strength) for begin, end, what, strength in DAY if begin <= hour < end), ("", 0.0))


def arrivals(pool, stranger, what, strength, count, rng):
    """Return what arrives: images that are drawn at random from the pool (none twice, if it has enough), and changed.

    Args:
        pool: digits of calm traffic.
        stranger: digits of a writer that the model has never seen.
        what: "" for calm traffic, a name of `CHANGES`, "new writer" or "classes".
        strength: how strong the change is; for "new writer" the share of the images that are the stranger's, for
            "classes" the share of ones and sevens that are added.
        count: how many images.
        rng: a `numpy.random.Generator`.
    """
    chosen = rng.permutation(len(pool))[:count] if count <= len(pool) else rng.integers(len(pool), size=count)
    found = pool[chosen]
    if what == "new writer":
        theirs = rng.random(count) < strength
        other = stranger[rng.integers(len(stranger), size=count)]
        found.images[theirs], found.labels[theirs] = other.images[theirs], other.labels[theirs]
    elif what == "classes":
        some = np.flatnonzero(np.isin(pool.labels, (1, 7)))
        swapped = rng.random(count) < strength
        found = pool[np.where(swapped, rng.choice(some, size=count), chosen)]
    elif what:
        found.images = CHANGES[what](found.images, strength, rng)
    return found
