"""Your statistics, put together: a reference, a limit for each quantity, and windows held against them."""

from math import sqrt
from pathlib import Path

import drift
import numpy as np
from features import CLASSES


def distances(reference, window):
    """Return the distances of all that is watched, each in a unit that does not depend on the sizes.

    Args:
        reference: rows (m, F): numbers, and in the last column classes from 0 to 9.
        window: rows (n, F).

    Returns:
        (F,): D sqrt(m n / (m + n)) for each number, chi-squared for the class, which few classes leave as it is.
    """
    m, n = len(reference), len(window)
    scale = sqrt(m * n / (m + n))
    found = [scale * drift.ks_statistic(reference[:, i], window[:, i]) for i in range(reference.shape[1] - 1)]
    classes = (rows[:, -1].astype(int) for rows in (reference, window))
    return np.array([*found, drift.class_drift(*classes, CLASSES)])


class Detector:
    """Measures windows of one size against one reference."""

    def __init__(self, reference, size, limits):
        """Take the rows (m, F) of the reference, the rows of a window, and the limits (F,)."""
        self.reference, self.size, self.limits = np.asarray(reference), int(size), np.asarray(limits)

    @classmethod
    def fit(cls, reference, size, alpha=0.05, draws=1000, seed=0):
        """Work out the limits: the probability of a false alarm in a window is to be alpha."""
        null = drift.null_distances(distances, reference, size, draws, np.random.default_rng(seed))
        return cls(reference, size, drift.family_limits(null, alpha))

    def ratios(self, window):
        """Return (F,) distances of a window, each divided by its limit: above 1 is drift."""
        return distances(self.reference, window) / self.limits

    def save(self, path):
        """Write everything into a file."""
        np.savez(path, reference=self.reference, size=self.size, limits=self.limits)

    @classmethod
    def load(cls, path):
        """Read what `save` has written."""
        if not Path(path).is_file():
            raise SystemExit(f"{path} is missing: run the notebook down to the service, or `python prepare.py`")
        with np.load(path) as arrays:
            return cls(arrays["reference"], arrays["size"], arrays["limits"])
