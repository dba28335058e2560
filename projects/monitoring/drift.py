"""Drift: is what arrives today still what the model was trained for?

A window is what has arrived lately, the reference is what the model was accepted with. Letters: m rows of the
reference, n rows of a window, F quantities that are watched (columns), B draws. Only NumPy is used; SciPy is what
the checks compare with.

Test an answer in the notebook, by the cell below its hints.
"""

from math import exp, pi, sqrt  # noqa: F401 (for your answers)

import numpy as np  # noqa: F401


# TODO ks-statistic  (10 points, ~25 min)
def ks_statistic(reference, window):
    """Return the distance of Kolmogorov and Smirnov between two samples.

    It is the largest vertical distance between the two empirical distribution functions. F(x) is the share of a
    sample that is less than or equal to x.

    Args:
        reference: numbers (m,), in any order; they stay as they are.
        window: numbers (n,), in any order. Values may occur more than once, also in both samples.

    Returns:
        The distance, a number from 0 to 1.

    Raises:
        ValueError: a sample is empty, or holds NaN.
    """
    raise NotImplementedError("ks-statistic")


# TODO ks-exact  (12 points, ~35 min)
def ks_exact(distance, m, n):
    """Return the exact p-value of a distance: how often chance alone leads to one at least as large.

    Where nothing has changed and no value occurs twice, every order of the m + n pooled values is equally probable.

    Args:
        distance: of Kolmogorov and Smirnov, from 0 to 1. A distance that differs by less than 1e-9 counts as equal.
        m: size of one sample, up to a thousand.
        n: size of the other, up to a thousand.

    Returns:
        P(D >= distance), from 0 to 1, with all its digits also where it is tiny (a relative error of 1e-6 at most).
    """
    raise NotImplementedError("ks-exact")


# TODO ks-asymptotic  (5 points, ~15 min)
def ks_asymptotic(distance, m, n):
    """Return the p-value of a distance for large samples, by Kolmogorov's series.

    Args:
        distance: of Kolmogorov and Smirnov, from 0 to 1.
        m: size of one sample.
        n: size of the other.

    Returns:
        Q(distance * sqrt(m n / (m + n))), from 0 to 1; 1 where the distance is 0.

    Source: N. Smirnov, Table for estimating the goodness of fit of empirical distributions, 1948.
    """
    raise NotImplementedError("ks-asymptotic")


# TODO holm  (8 points, ~20 min)
def holm(p_values):
    """Return p-values that are corrected for how many there are, by Holm's method.

    A corrected p-value at most alpha is an alarm; the probability of any false alarm is then at most alpha.

    Args:
        p_values: numbers (F,), in any order.

    Returns:
        Corrected p-values (F,), in the same order, none above 1.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    raise NotImplementedError("holm")


# TODO class-drift  (8 points, ~20 min)
def class_drift(reference, window, classes):
    """Return Pearson's chi-squared distance between two samples of classes.

    It compares how often each class occurs with how often it would if both samples came from one distribution: that
    of the two together. It is the sum of (found - expected)^2 / expected over both samples and all classes. A class
    that is in neither sample adds nothing.

    Args:
        reference: classes (m,), integers from 0 to classes - 1.
        window: classes (n,).
        classes: how many classes there are.

    Returns:
        The distance, 0 or more.
    """
    raise NotImplementedError("class-drift")


# TODO null-distances  (10 points, ~30 min)
def null_distances(distances, reference, size, draws, rng):
    """Return distances between parts of the reference: what chance alone does to windows of this size.

    Each draw divides the rows of the reference at random into a window of `size` rows and the rest, and measures the
    distances between the rest and the window. No row is in both, and no row is in a window twice.

    Args:
        distances: a function of two arrays, (rows, F) of the reference and (rows, F) of a window, in this order, that
            returns F numbers.
        reference: rows (m, F); they stay as they are.
        size: rows of a window, fewer than m.
        draws: B, how often to draw.
        rng: a `numpy.random.Generator`; all chance comes from it.

    Returns:
        Distances (B, F).
    """
    raise NotImplementedError("null-distances")


# TODO family-limits  (10 points, ~35 min)
def family_limits(null, alpha=0.05):
    """Return a limit for each quantity, so that all of them together raise a false alarm with probability alpha.

    First every quantity gets a unit of its own: the (1 - alpha) quantile of its column. In these units the largest
    distance of each row is taken; with B rows in ascending order, the one with the number ceil((1 - alpha)(B + 1)),
    counted from 1 and at most B, is the common limit. A quantity's limit is the common one times its unit.
    (A quantile of 0 is the column's maximum instead, and where that is 0 as well, its limit is infinite.)

    Args:
        null: distances without drift (B, F), from `null_distances`.
        alpha: the probability of a false alarm in a window, whichever quantity raises it.

    Returns:
        Limits (F,). A distance above its limit is an alarm.

    Source: P. Westfall, S. Young, Resampling-Based Multiple Testing, 1993.
    """
    raise NotImplementedError("family-limits")


# TODO alarm  (9 points, ~25 min)
class Alarm:
    """Raises an alarm when drift persists, and says once when it begins and once when it ends.

    It begins with the window that makes `needed` of the last `last` windows drifted ones. It ends after `calm` windows
    in a row without drift; then the count begins anew, from nothing.

    Args:
        needed: how many of the last windows must have drifted.
        last: how many windows are looked at.
        calm: how many calm windows in a row end it.

    Raises:
        ValueError: unless 1 <= needed <= last and calm >= 1.
    """

    def __init__(self, needed=2, last=3, calm=3):
        """See the class."""
        raise NotImplementedError("alarm")

    def update(self, drifted):
        """Take one window into account.

        Args:
            drifted: whether it drifted.

        Returns:
            "begins" or "ends" with the window at which the alarm does so, otherwise None. The attribute `active` says
            whether there is an alarm now.
        """
        raise NotImplementedError("alarm")
