"""The checks of the project `monitoring`.

The oracles are SciPy's tests, closed formulas, brute force, hand-worked sequences, and identities. m rows of the
reference, n rows of a window, F quantities, B draws.

The journal is tried by probes, which run beside the answer: they make a database in a folder of their own and read
it by Python's own `sqlite3`, through a connection that the answer knows nothing of.
"""

import contextlib
import itertools
import math

import numpy as np
import torch
from scipy import special, stats

from common.checks import always, check

# Library functions that would be the whole answer (see `check`).
LIBRARY_KS = ("ks_2samp", "kstest", "ecdf", "kstwo", "ksone", "kstwobign", "scipy.stats", "ks_1samp", "epps")
LIBRARY_CHI = ("chi2_contingency", "chisquare", "power_divergence", "scipy.stats")


def numbers(case, value, what="the result"):
    """Return a result, a number or an array of them, as a float64 tensor; fail in words when it is something else."""
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
        value = np.array(value, dtype=float)
    forgot = " (is a return statement missing?)" if value is None else ""
    kinds = (bool, int, float, np.ndarray, np.generic)
    case.true(isinstance(value, kinds), f"{what} is a {type(value).__name__}{forgot}, expected numbers")
    return torch.as_tensor(np.array(value, dtype=float))


def same(case, value, expected, what="the result", mistakes=None, tolerance=1e-9):
    """Demand that numbers equal what an oracle says."""
    found = numbers(case, value, what)
    known = {sentence: torch.as_tensor(np.array(wrong, dtype=float)) for sentence, wrong in (mistakes or {}).items()}
    case.close(found, torch.as_tensor(np.array(expected, dtype=float)), what=what, mistakes=known, tolerance=tolerance)


def small(case, value, expected, what, mistakes=None, tolerance=1e-6):
    """Demand a positive number up to a relative error; `mistakes` are other numbers, by what they mean."""
    found = float(numbers(case, value, what))
    case.true(math.isfinite(found), f"{what} is {found}")
    for sentence, wrong in (mistakes or {}).items():
        if abs(wrong - expected) > 1e-3 * abs(expected) and abs(found - wrong) <= 1e-6 * abs(wrong):
            case.true(False, sentence)
    lost = ": digits are lost" if abs(found - expected) < 1e-3 * abs(expected) else ""
    case.true(abs(found - expected) <= tolerance * abs(expected), f"{what} is {found:.8g}, which is not right{lost}")


def refusal(answer, *arguments):
    """Whether a call raises ValueError; other errors are left to the case."""
    try:
        answer(*arguments)
    except ValueError:
        return True
    return False


# -- Kolmogorov and Smirnov -------------------------------------------------------------------------------


def share_below(sample, places, strictly=False):
    """Return which share of a sample is at most (or below) each place, by counting."""
    below = sample[None, :] < places[:, None] if strictly else sample[None, :] <= places[:, None]
    return below.mean(axis=1)


def walk(first, second):
    """Return the largest distance on a walk through all values one at a time, those of `first` before equal ones."""
    steps = sorted([(x, 0) for x in first] + [(x, 1) for x in second])
    here, most = [0, 0], 0.0
    for _, which in steps:
        here[which] += 1
        most = max(most, abs(here[0] / len(first) - here[1] / len(second)))
    return most


def ks_mistakes(a, b):
    """Return the distances that common mistakes lead to, under the sentence that names each."""
    places, right = np.concatenate([a, b]), stats.ks_2samp(a, b).statistic
    gap = share_below(a, places) - share_below(b, places)
    ties = "equal values are stepped through one at a time: between them neither function has a value of its own"
    strictly = "of values equal to a place, one function counts them and the other does not; both must"
    found = {}
    if len(np.unique(places)) < len(places):
        found = {
            ties: walk(a, b),
            f"{ties} ": walk(b, a),
            strictly: np.abs(share_below(a, places, True) - share_below(b, places)).max(),
            f"{strictly} ": np.abs(share_below(a, places) - share_below(b, places, True)).max(),
            "values that occur more than once are counted once (np.unique?); each counts as often as it occurs": (
                stats.ks_2samp(np.unique(a), np.unique(b)).statistic
            ),
        }
    found |= {
        "this is one-sided, F(reference) - F(window) only; take the absolute difference": gap.max(),
        "this is one-sided, F(window) - F(reference) only; take the absolute difference": -gap.min(),
        "only the places of the reference are looked at; the largest distance may lie at a value of the window": (
            np.abs(gap[: len(a)]).max()
        ),
        "only the places of the window are looked at; the largest distance may lie at a value of the reference": (
            np.abs(gap[len(a) :]).max()
        ),
        "this is the mean of the distances; the largest is asked": np.abs(gap).mean(),
        "the distance is multiplied by √(mn/(m + n)); return D itself": right
        * math.sqrt(len(a) * len(b) / (len(a) + len(b))),
        "this is the difference of the means": abs(a.mean() - b.mean()),
        "this is the p-value; return the distance": stats.ks_2samp(a, b).pvalue,
    }
    for n, blanks in ((len(a), ""), (len(b), " ")):
        found[f"both samples are divided by the same size; each by its own{blanks}"] = np.abs(
            share_below(a, places) * len(a) / n - share_below(b, places) * len(b) / n
        ).max()
    if len(a) == len(b):
        found["the sorted values are compared with each other; compare the shares"] = np.abs(
            np.sort(a) - np.sort(b)
        ).max()
    return {sentence: wrong for sentence, wrong in found.items() if abs(wrong - right) > 1e-9}


@check("ks-statistic", points=10, from_scratch=LIBRARY_KS)
def ks_statistic(answer, case):
    """Against `scipy.stats.ks_2samp`."""

    def draw(count, shift=0.0, spread=1.0):
        return (shift + spread * case.randn(count, dtype=torch.float64)).numpy()

    def demand(a, b, what="the distance"):
        same(case, answer(a, b), stats.ks_2samp(a, b).statistic, what, ks_mistakes(a, b))

    with case(
        "agrees with SciPy", points=3, hint="both functions at all m + n values; the largest absolute difference"
    ):
        uneven = [np.exp(6 * np.sort(draw(40, shift))) for shift in (0.0, 0.8)]
        demand(*uneven, "for values of which most lie close together and some far away, the distance")
        for m, n, shift, spread in ((40, 25, 0.0, 1.0), (7, 31, 0.5, 1.0), (50, 50, 0.0, 2.5), (1, 1, 3.0, 1.0)):
            demand(np.sort(draw(m)), np.sort(draw(n, shift, spread)))
    with case("looks in both directions", points=2, hint="a window may lie above the reference or below it"):
        a = np.sort(draw(30))
        demand(a, np.sort(draw(20, 1.5)), "for a window with larger values, the distance")
        demand(a, np.sort(draw(20, -1.5)), "for a window with smaller values, the distance")
        demand(a, a[::3] + 100, "for a window above all of the reference, the distance")
    with case(
        "takes samples in any order, and leaves them so", points=2, hint="np.sort makes a copy; .sort() does not"
    ):
        a, b = draw(40), draw(30, 0.3)
        expected, found = stats.ks_2samp(a, b).statistic, answer(a, b)
        ordered = answer(np.sort(a), np.sort(b))
        if abs(float(numbers(case, ordered)) - expected) < 1e-9:
            same(case, found, expected, mistakes=None if abs(float(numbers(case, found)) - expected) < 1e-9 else {
                "for sorted samples it is right, for the same in another order it is not: sort both first": found
            })  # fmt: skip
        same(case, found, expected, mistakes=ks_mistakes(a, b))
        for name, before, after in zip(("reference", "window"), (a, b), answer.inputs_after(a, b), strict=True):
            case.true(np.array_equal(before, after), f"your code changes the {name} in place (.sort()?): use np.sort")
    with case("handles equal values", points=2, hint="F counts values that are less than or equal, in both samples"):
        for high, m, n in ((4, 50, 30), (3, 12, 40), (17, 60, 60)):
            a, b = (case.randint(0, high, (size,)).double().numpy() for size in (m, n))
            demand(a, np.minimum(b + case.randint(0, 2, (n,)).numpy(), high - 1), "with ties, the distance")
        demand(np.repeat(np.arange(3.0), 4), np.arange(3.0), "for two samples with the same shares, the distance")
        demand(np.zeros(5), np.zeros(8), "for constant samples, the distance")
    with case("refuses what has no distribution", points=1, hint="ValueError for an empty sample and for NaN"):
        a, spoiled = draw(5), np.array([1.0, math.nan, 2.0])
        for name, one, other in (("an empty reference", a[:0], a), ("an empty window", a, a[:0]),
                                 ("NaN in the reference", spoiled, a), ("NaN in the window", a, spoiled)):  # fmt: skip
            case.true(refusal(answer, one, other), f"{name} is accepted; raise a ValueError")


def enumerated(m, n):
    """Return the distances of all orders of m and n values, each as often as it occurs."""
    found = []
    for places in itertools.combinations(range(m + n), n):
        windows = np.isin(np.arange(m + n), places)
        found.append(np.abs(np.cumsum(~windows) / m - np.cumsum(windows) / n).max())
    return np.array(found)


def equal_sizes(h, n):
    """Return P(D >= h/n) for two samples of n values, by the formula of Gnedenko and Korolyuk (1951)."""
    terms = [(-1) ** (k - 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1)]
    return 2 * sum(terms) / math.comb(2 * n, n)


def p_mistakes(distance, m, n):
    """Return other p-values of a distance, by what they are; those near 1 say nothing, for much leads to 1."""
    scale = math.sqrt(m * n / (m + n))
    i, step = np.arange(m + 1), np.arange(1, m + n + 1)[:, None]
    outside = np.abs(i / m - (step - i) / n) >= distance - 1e-9
    visits = np.where(outside, stats.hypergeom.pmf(i, m + n, m, step), 0.0).sum(axis=1)
    found = {
        "walks that have left the band are counted again with every step outside; what leaves goes no further": (
            visits.sum()
        ),
        "this is the largest share of the walks that is outside at one time; count those that are at any time": (
            visits.max()
        ),
        "this is Kolmogorov's series, for large samples; the exact p-value is asked": special.kolmogorov(
            scale * distance
        ),
        "this is the first term of Kolmogorov's series": 2 * math.exp(-2 * (scale * distance) ** 2),
        "this is a p-value for one sample against a known distribution; here are two samples": (
            stats.kstwo.sf(distance, n)
        ),
        "this is a p-value for one sample of mn/(m + n) values; here are two samples": (
            stats.kstwo.sf(distance, round(m * n / (m + n)))
        ),
    }
    return {sentence: wrong for sentence, wrong in found.items() if wrong < 0.999}


@check("ks-exact", points=12, from_scratch=LIBRARY_KS)
def ks_exact(answer, case):
    """Against all orders of few values, SciPy's exact p-values, and a closed formula for equal sizes."""

    def by_scipy(m, n, shift):
        a, b = case.randn(m, dtype=torch.float64).numpy(), case.randn(n, dtype=torch.float64).numpy() + shift
        two, up = (stats.ks_2samp(a, b, method="exact", alternative=way) for way in ("two-sided", "greater"))
        down = stats.ks_2samp(a, b, method="exact", alternative="less")
        return two.statistic, two.pvalue, max((up, down), key=lambda one: one.statistic).pvalue

    with case("few values: every order counted", points=3, hint="how many of all orders lead to this distance or more"):
        for m, n in ((5, 4), (3, 6), (4, 4)):
            every = enumerated(m, n)
            for distance in np.unique(every.round(9)):
                low, high = ((every > distance + 1e-9).mean(), (every > distance - 1e-9).mean())
                what = f"for m = {m}, n = {n}, D = {distance:.3f} the p-value"
                one = {"this is the probability of a larger distance; an equal one counts, too (D >= d)": low}
                one |= {"this is the probability of a smaller distance: 1 - p": 1 - high}
                same(case, answer(float(distance), m, n), high, what, one | p_mistakes(distance, m, n))
    with case("agrees with SciPy's exact p-values", points=2, hint="a walk from (0, 0) to (m, n)"):
        for m, n, shift in ((40, 25, 0.3), (60, 60, 0.0), (90, 13, 0.5), (101, 40, 0.4)):
            distance, expected, one_sided = by_scipy(m, n, shift)
            mistakes = p_mistakes(distance, m, n) | {
                "this is one-sided: a distance counts in both directions": one_sided,
                "this is the probability of a smaller distance: 1 - p": 1 - expected,
                "this is twice the one-sided p-value, which counts walks that leave on both sides twice": 2 * one_sided,
            }
            mistakes = {key: value for key, value in mistakes.items() if abs(value - expected) > 1e-7}
            same(case, answer(distance, m, n), expected, f"for m = {m}, n = {n} the p-value", mistakes, 1e-8)
    with case("many values", points=1, hint="probabilities stay small; the number of all orders does not"):
        found = float(numbers(case, answer(0.1, 520, 520)))
        many = "there are more orders than the largest float: keep probabilities, or whole numbers of Python's"
        case.true(math.isfinite(found), f"for m = n = 520 the p-value is {found}: {many}")
        same(case, found, equal_sizes(52, 520), "for m = n = 520 the p-value", tolerance=1e-8)
    with case("it does not matter which sample is which", points=1, hint="D is symmetric, so p is"):
        distance, expected, _ = by_scipy(30, 17, 0.4)
        same(case, answer(distance, 17, 30), expected, "for exchanged sizes the p-value", tolerance=1e-8)
    with case("an equal distance counts", points=2, hint="compare with distance - 1e-9: 7/30 - 2/30 is not 5/30"):
        for h, n in ((5, 30), (9, 49), (12, 60)):
            distance, expected = h / n, equal_sizes(h, n)
            strict = equal_sizes(h + 1, n)
            larger = "this is the probability of a larger distance; an equal one counts, too (D >= d)"
            for off in (0.0, 3e-12, -3e-12):
                found = answer(distance + off, n, n)
                what = f"for D = {h}/{n} the p-value"
                same(case, found, expected, what, {larger: strict} | p_mistakes(distance, n, n))
    with case("the ends", points=1, hint="D = 0 always happens; D = 1 in two orders of all"):
        same(case, answer(0.0, 6, 9), 1.0, "for D = 0 the p-value")
        small(case, answer(1.0, 6, 9), 2 / math.comb(15, 6), "for D = 1 the p-value")
    with case("tiny p-values keep their digits", points=2, hint="add up what leaves the band, not what stays in it"):
        for h, n in ((45, 60), (60, 100), (30, 30)):
            expected = equal_sizes(h, n)
            lost = "it is what is left of 1, where rounding has eaten the digits: add up what leaves the band instead"
            found = float(numbers(case, answer(h / n, n, n)))
            near = abs(found - expected) < 1e-12 and abs(found - expected) > 1e-6 * expected and found * 2**53 % 1 == 0
            case.true(not near or expected > 1e-3, f"for D = {h}/{n} the p-value {found:.3g} is not right: {lost}")
            small(case, found, expected, f"for D = {h}/{n} the p-value", p_mistakes(h / n, n, n))


@check("ks-asymptotic", points=5, from_scratch=LIBRARY_KS)
def ks_asymptotic(answer, case):
    """Against `scipy.special.kolmogorov`."""

    def demand(x, m, n):
        root = math.sqrt(m * n / (m + n))
        distance, right = x / root, float(special.kolmogorov(x))
        terms = np.arange(1, 101)
        corrected = root + 0.12 + 0.11 / root
        found = {
            "this is 1 - Q: the probability of a smaller distance": 1 - right,
            "the factor 2 before the sum is missing": right / 2,
            "this is the first term of the series only": 2 * math.exp(-2 * x * x),
            "the series begins with the term of k = 1, which is added": 0.0 if x == 0.5 else -right,
            "all terms are added; their signs alternate": 2 * np.exp(-2 * terms**2 * x * x).sum(),
            "k is not squared": 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * terms * x * x)).sum(),
            "the exponent is -k²x²; it is -2k²x²": 2 * ((-1.0) ** (terms - 1) * np.exp(-(terms**2) * x * x)).sum(),
            "√m is used; for two samples it is √(mn/(m + n))": special.kolmogorov(distance * math.sqrt(m)),
            "√n is used; for two samples it is √(mn/(m + n))": special.kolmogorov(distance * math.sqrt(n)),
            "√(m + n) is used; it is √(mn/(m + n))": special.kolmogorov(distance * math.sqrt(m + n)),
            "mn/(m + n) is used without its root": special.kolmogorov(distance * root * root),
            "√((m + n)/(mn)) is used; it is √(mn/(m + n))": special.kolmogorov(distance / root),
            "the distance itself is used, whatever the sizes": special.kolmogorov(distance),
            "Stephens's correction is added, which is made for one sample": special.kolmogorov(corrected * distance),
        }
        found |= {f"only {some} terms are added; for small x many are needed": partial(x, some) for some in (2, 3, 4)}
        plain = {s: w for s, w in found.items() if x == 0.5 or 1e-6 < abs(w) < 0.999}  # much leads to 0, or to 1
        plain = {s: w for s, w in plain.items() if abs(w - right) > 1e-8 and w < 0.999}
        same(case, answer(distance, m, n), right, f"for x = {x:.3g} the p-value", plain)

    def partial(x, some):
        return 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, some + 1))

    with case("agrees with Kolmogorov's function", points=2, hint="2 Σ (-1)^(k-1) exp(-2k²x²), x = D √(mn/(m + n))"):
        for x in (0.5, 0.8, 1.0, 1.36, 2.0):
            demand(x, int(case.randint(50, 90)), int(case.randint(20, 40)))
    with case("any sizes", points=1, hint="sizes count only through mn/(m + n)"):
        demand(0.9, 2, 3)
        demand(0.9, 100_000, 300)
        demand(1.2, 7, 9000)
    with case("small distances: nearly 1", points=1, hint="for small x the series hardly falls; below 0.2, Q is 1"):
        for x in (0.0, 1e-6, 0.01, 0.1, 0.19, 0.25, 0.4):
            found = float(numbers(case, answer(x / math.sqrt(20), 40, 40)))
            case.true(0 <= found <= 1, f"for x = {x} the p-value is {found:.4g}, outside of 0 to 1")
            right = float(special.kolmogorov(x))
            few = {f"only {k} terms are added; for small x many are needed": partial(x, k) for k in range(2, 21)}
            few = {s: w for s, w in few.items() if abs(w - right) > 1e-5 and 1e-3 < w < 0.999}
            if right < 0.999:
                few[
                    "this is 1, but Q is 1 only below 0.2: is x too small, or does the branch for small x go too far?"
                ] = 1
            same(case, found, right, f"for x = {x} the p-value", few, tolerance=1e-6)
    with case("large distances: nearly 0", points=1, hint="never below 0"):
        for x in (3.0, 6.0, 25.0):
            found = float(numbers(case, answer(min(1.0, x / math.sqrt(2000)), 4000, 4000)))
            case.true(found >= 0, f"for x = {x} the p-value is negative")
            expected = special.kolmogorov(min(1.0, x / math.sqrt(2000)) * math.sqrt(2000))
            case.true(
                abs(found - float(expected)) < 1e-12, f"for x = {x} the p-value is {found:.4g}, which is not right"
            )


# -- many tests -------------------------------------------------------------------------------------------


def closed_testing(p):
    """Return p-values corrected by the closed procedure with Bonferroni's test of every set: brute force."""
    corrected = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for group in itertools.combinations(range(len(p)), size):
            together = min(1.0, size * min(p[i] for i in group))
            for i in group:
                corrected[i] = max(corrected[i], together)
    return corrected


def holm_mistakes(p):
    """Return the corrections that are something else."""
    count, right = len(p), closed_testing(p)
    above, below = (np.array([(way(p, one)).sum() for one in p]) for way in (np.greater_equal, np.less_equal))
    up = np.array([min(min(1, q * (p >= q).sum()) for q in p if q >= one) for one in p])
    falling, order = count - np.arange(count), np.argsort(p)
    fdr = np.array([min(min(1, q * count / (p <= q).sum()) for q in p if q >= one) for one in p])
    found = {
        "nothing is corrected: these are the p-values as they came": p,
        "this is Bonferroni: every p-value times F; Holm's factor falls from F to 1": np.minimum(1, count * p),
        "this is Bonferroni, and values above 1 are left": count * p,
        "p-values are divided by F; the limit alpha/F belongs to p, so p itself is multiplied": p / count,
        "the smallest p-value gets factor 1 and the largest F; it is the other way round": np.minimum(1, below * p),
        "this is the method of Benjamini and Hochberg, which holds another rate (of false discoveries)": fdr,
        "this is the same as Benjamini and Hochberg without the running minimum": np.minimum(1, count / below * p),
        "this is Hochberg's step-up method: its running minimum needs independence; Holm takes a maximum": up,
        "a corrected p-value may not be smaller than that of a smaller p-value: take the running maximum": (
            np.minimum(1, above * p)
        ),
        "values above 1 are left": np.array([max(q * (p >= q).sum() for q in p if q <= one) for one in p]),
        "this is Šidák's correction, which needs independent tests": 1 - (1 - p) ** count,
        "the corrected values are sorted; give them in the order of the p-values": np.sort(right),
        "the corrected values come in descending order; give them in the order of the p-values": np.sort(right)[::-1],
        "values are off their places, put back the wrong way round: order[k] is the place of the k-th smallest": (
            np.sort(right)[order]
        ),
        "the factors fall in the order in which the p-values came; the smallest p-value gets F": (
            np.minimum(1, np.maximum.accumulate(p * falling))
        ),
        "the factors fall in the order in which the p-values came; the smallest p-value gets F ": (
            np.minimum(1, p * falling)
        ),
        "the running maximum is taken in the order in which the p-values came; take it over the sorted ones": (
            np.minimum(1, np.maximum.accumulate(above * p))
        ),
    }
    return {sentence: wrong for sentence, wrong in found.items() if np.abs(wrong - right).max() > 1e-9}


@check("holm", points=8, from_scratch=("multipletests", "false_discovery", "scipy.stats"))
def holm(answer, case):
    """Against the closed procedure over all sets of tests, by brute force."""

    def demand(p, what="the corrected p-values"):
        p = np.array(p, dtype=float)
        same(case, answer(p), closed_testing(p), what, holm_mistakes(p))

    def draw(count, power=3):
        return case.randn(count, dtype=torch.float64).sigmoid().numpy() ** power

    with case(
        "agrees with the definition", points=3, hint="the smallest times F, the next times F - 1, ..., the last times 1"
    ):
        demand([0.01, 0.02, 0.03, 0.04])
        demand(np.sort(draw(6)))
        demand([0.001, 0.2, 0.4])
    with case("keeps the order of the quantities", points=2, hint="sort, correct, and put each back in its place"):
        demand([0.03, 0.01, 0.04, 0.02])
        for _ in range(3):
            demand(draw(7))
    with case("never falls where p rises", points=1, hint="running maximum over the sorted ones"):
        demand([0.01, 0.0101, 0.0102, 0.3])
        demand([0.02, 0.021, 0.02, 0.9, 0.0205])
    with case("never above 1", points=1, hint="np.minimum(..., 1)"):
        demand([0.5, 0.6, 0.9, 0.7])
        demand([1.0, 0.001])
    with case("one test needs no correction; inputs stay", points=1, hint="no in-place sort"):
        demand([0.037])
        p = draw(5)
        (after,) = answer.inputs_after(p)
        case.true(np.array_equal(p, after), "your code changes the p-values that it was given; work on a copy")


def table_of(a, b, classes):
    """Return how often each class that occurs is in each sample, (2, classes that occur)."""
    table = np.array([[(sample == c).sum() for c in range(classes)] for sample in (a, b)], dtype=float)
    return table[:, table.sum(axis=0) > 0]


def class_mistakes(a, b, classes):
    """Return other distances between two samples of classes."""
    table, m, n = table_of(a, b, classes), len(a), len(b)
    right = stats.chi2_contingency(table, correction=False).statistic if table.shape[1] > 1 else 0.0
    p, q = table[0] / m, table[1] / n
    both = stats.contingency.expected_freq(table)
    more = np.array([[(sample == c).sum() + 1.0 for c in range(classes)] for sample in (a, b)])
    found = {
        "the logarithms of the G-test are used; Pearson's is asked": (
            stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
            if table.shape[1] > 1
            else 0.0
        ),
        "only the window's counts are added; those of the reference belong to it, too": (
            ((table - both) ** 2 / both)[1].sum()
        ),
        "only the reference's counts are added; those of the window belong to it, too": (
            ((table - both) ** 2 / both)[0].sum()
        ),
        "the shares of the reference are taken for exact: expected are those of both samples together": (
            ((table[1] - n * p) ** 2 / np.where(p > 0, n * p, np.nan)).sum()
        ),
        "shares are compared instead of counts": (((p - q) ** 2) / (p + q)).sum(),
        "this is the largest difference between shares": np.abs(p - q).max(),
        "this is the sum of the differences between shares": np.abs(p - q).sum(),
        "this is half the sum of the differences between shares": np.abs(p - q).sum() / 2,
        "it is divided by what was found; divide by what was expected": (
            ((table - both) ** 2 / np.where(table > 0, table, np.nan)).sum()
        ),
        "the differences are not squared": (np.abs(table - both) / both).sum(),
        "it is not divided by the expected counts": ((table - both) ** 2).sum(),
        "this is the root of the distance": math.sqrt(right),
        "expected counts below 1 are raised to 1; only classes that are in neither sample are left out": (
            ((table - both) ** 2 / np.maximum(both, 1)).sum()
        ),
        "1 is added to every count; only classes that are in neither sample are left out": (
            ((more - stats.contingency.expected_freq(more)) ** 2 / stats.contingency.expected_freq(more)).sum()
        ),
        "half a count is taken off every difference (Yates's correction); take the differences as they are": (
            (np.maximum(np.abs(table - both) - 0.5, 0) ** 2 / both).sum()
        ),
        "this is the p-value; return the distance": stats.chi2.sf(right, max(table.shape[1] - 1, 1)),
        "expected are equal counts for all classes; expected are the shares of both samples together": (
            sum(((row - row.sum() / classes) ** 2 / (row.sum() / classes)).sum() for row in table)
        ),
    }
    return {sentence: w for sentence, w in found.items() if math.isfinite(w) and abs(w - right) > 1e-8}, right


@check("class-drift", points=8, from_scratch=LIBRARY_CHI)
def class_drift(answer, case):
    """Against `scipy.stats.chi2_contingency`."""

    def demand(a, b, classes, what="the distance"):
        mistakes, right = class_mistakes(a, b, classes)
        found = answer(a, b, classes)
        case.true(
            not torch.isnan(numbers(case, found, what)).any(),
            "the result is NaN: a class that is in neither sample is 0/0; leave it out",
        )
        same(case, found, right, what, mistakes)

    def draw(count, classes, tilt=0.0):
        weights = torch.exp(-tilt * torch.arange(classes).double()).cumsum(0)
        uniform = torch.special.ndtr(case.randn(count, dtype=torch.float64)) * weights[-1]
        return torch.searchsorted(weights, uniform).clamp(max=classes - 1).numpy()

    with case("agrees with SciPy", points=3, hint="(found - expected)² / expected, over both samples and all classes"):
        demand(draw(200, 5), draw(60, 5, 0.3), 5)
        demand(draw(90, 3, 0.2), draw(150, 3), 3)
        demand(draw(50, 2), draw(50, 2, 0.8), 2)
    with case(
        "samples of any sizes", points=1, hint="expected: the size of the sample times the share in both together"
    ):
        a = np.repeat(np.arange(4), (40, 30, 20, 10))
        demand(a, a[::2], 4, "for two samples with the same shares, the distance")
        demand(a, np.repeat(np.arange(4), (1, 2, 3, 4)), 4)
    with case(
        "a class that is in neither sample", points=2, hint="its expected count is 0: leave it out before dividing"
    ):
        a, b = 2 * draw(80, 3), 2 * draw(40, 3, 0.4)
        demand(a, b, 6, "with classes that never occur, the distance")
        demand(np.full(20, 1), np.full(10, 1), 4, "when only one class occurs, the distance")
    with case("a class that only one of them has", points=1, hint="np.bincount(..., minlength=classes)"):
        demand(draw(60, 3), draw(30, 5), 5, "with a class that is new in the window, the distance")
        demand(draw(60, 5), draw(30, 3), 5, "with classes that are gone in the window, the distance")
        demand(np.repeat([0, 2], (60, 1)), np.repeat([0, 2], (15, 5)), 3, "with a rare class, the distance")
        demand(np.repeat([0, 1], (60, 1)), np.zeros(20, dtype=int), 2, "with an expected count below 1, the distance")
    with case("it does not matter which is which", points=1, hint="both samples are treated alike"):
        a, b = draw(120, 4), draw(40, 4, 0.5)
        first, second = (float(numbers(case, answer(*pair, 4))) for pair in ((a, b), (b, a)))
        case.true(abs(first - second) < 1e-8 * max(1, abs(first)), "exchanging the samples changes the distance")
        demand(b, a, 4)


# -- limits from the reference ----------------------------------------------------------------------------


def drawn(null_distances, m, size, draws, seed):
    """Call the answer with rows that can be told apart, and note what the distances were asked for.

    Row i of the reference is (i, 1000 i, -i). Returns the result and, for each call, the rows of both arguments; what
    NumPy's global generator was before and after; and whether the reference has stayed.
    """
    ids = np.arange(m, dtype=float)
    reference = np.stack([ids, 1000 * ids, -ids], axis=1)
    before, calls = reference.copy(), []

    def distances(first, second):
        calls.append((np.array(first, dtype=float), np.array(second, dtype=float)))
        number = len(calls)
        return np.array([number, number + 0.25, -number], dtype=float)

    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    result = null_distances(distances, reference, size, draws, np.random.default_rng(seed))
    touched = not np.array_equal(state, np.random.get_state()[1])
    result = np.array(result, dtype=float) if result is not None else None
    return result, [one for one, _ in calls], [other for _, other in calls], touched, np.array_equal(before, reference)


def whole_rows(rows):
    """Whether each row is one of the reference's, with all its columns."""
    return bool(np.array_equal(rows[:, 1], 1000 * rows[:, 0]) and np.array_equal(rows[:, 2], -rows[:, 0]))


@check("null-distances", points=10)
def null_distances(answer, case):
    """By watching which rows it measures."""
    m, size, draws = int(case.randint(30, 40)), int(case.randint(8, 12)), 60

    def ask(seed=3, m=m, size=size, draws=draws):
        found = answer.probe(drawn, m, size, draws, seed)
        case.true(found[0] is not None, "the result is None (is a return statement missing?)")
        case.true(found[1], "the distances were never measured: call `distances(rest, window)` for each draw")
        return found

    with case("one row of distances for each draw", points=1, hint="an array (B, F): what `distances` returned"):
        result, rest, *_ = ask()
        found = numbers(case, result)
        case.equal(len(rest), draws, what="how often the distances were measured")
        case.shape(found, (draws, 3), mistakes={"rows and columns are exchanged": (3, draws)})
        number = np.arange(1, draws + 1, dtype=float)
        expected = np.stack([number, number + 0.25, -number], axis=1)
        same(
            case,
            result,
            expected,
            what="the distances",
            mistakes={"the distances of each draw are sorted": np.sort(expected, 1)},
        )
    with case(
        "a window of `size` rows, and all the others", points=2, hint="permute the numbers of the rows, then cut"
    ):
        _, rest, window, *_ = ask()
        swapped = "the window is handed over first; `distances` takes the reference first"
        exchanged = all(len(one) == size for one in rest) and all(len(one) == m - size for one in window)
        case.true(not exchanged or m == 2 * size, swapped)
        case.true(all(len(one) == size for one in window), f"windows have {len(window[0])} rows, expected {size}")
        whole = "the window is measured against the whole reference, of which it is a part: that is too near"
        case.true(not all(len(one) == m for one in rest), whole)
        case.true(all(len(one) == m - size for one in rest), f"the rest has {len(rest[0])} rows, expected {m - size}")
    with case("no row is in both", points=2, hint="the rest is what is not in the window"):
        _, rest, window, *_ = ask()
        common = [np.intersect1d(a[:, 0], b[:, 0]) for a, b in zip(rest, window, strict=True)]
        case.true(
            all(not len(one) for one in common), "rows of the window are in the rest, too; real windows are new rows"
        )
    with case("no row is in a window twice", points=1, hint="draw without replacement"):
        _, rest, window, *_ = ask()
        twice = any(len(np.unique(one[:, 0])) < len(one) for one in window)
        case.true(not twice, "a row is in the same window twice: this draws with replacement")
        case.true(not any(len(np.unique(one[:, 0])) < len(one) for one in rest), "a row is in the rest twice")
    with case(
        "rows stay whole", points=1, hint="permute rows, not each column: quantities of one image belong together"
    ):
        _, rest, window, _, stayed = ask()
        apart = "the columns are shuffled each for itself, so that the quantities lose their correlation"
        case.true(all(whole_rows(one) for one in (*rest, *window)), apart)
        case.true(stayed, "your code changes the reference in place (rng.shuffle?): work on a copy or on row numbers")
    with case("every draw is another, and every row has its turn", points=2, hint="a new permutation for each draw"):
        _, _, window, *_ = ask(draws=240)
        gaps = np.mean([np.mean(np.diff(np.sort(one[:, 0])) == 1) for one in window])
        case.true(gaps < 0.7, "the windows are rows that stand side by side; draw rows at random")
        sets = {tuple(sorted(one[:, 0])) for one in window}
        case.true(len(sets) > 200, f"240 draws gave {len(sets)} different windows: permute anew for each draw")
        counts = np.bincount(np.concatenate([one[:, 0] for one in window]).astype(int), minlength=m)
        case.true(counts.min() > 0.4 * counts.mean(), "some rows are hardly ever in a window: draw from all of them")
    with case("all chance comes from rng", points=1, hint="rng.permutation, never np.random"):
        _, _, first, touched, _ = ask(seed=7)
        _, _, again, *_ = ask(seed=7)
        _, _, other, *_ = ask(seed=8)
        case.true(not touched, "NumPy's global generator is used; use the rng that is handed in")
        same_again = all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        case.true(same_again, "two calls with the same seed draw different windows: some chance does not come from rng")
        differs = any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
        case.true(differs, "two seeds draw the same windows: use the rng that is handed in, and make no own one")


def false_alarms(null, limits):
    """Return in which share of the draws at least one distance is above its limit."""
    return float((null > limits).any(axis=1).mean())


@check("family-limits", points=10)
def family_limits(answer, case):
    """By what the limits are for: how often they are exceeded, all together, and each in its share."""

    def draw(B, F, common=0.0):
        shared, own = case.randn(B, 1, dtype=torch.float64), case.randn(B, F, dtype=torch.float64)
        return (math.sqrt(common) * shared + math.sqrt(1 - common) * own).exp().numpy()

    def limits(null, alpha=0.05):
        found = numbers(case, answer(null, alpha), "the limits")
        case.shape(found, (null.shape[1],), what="the limits", mistakes={"there is one limit for all": ()})
        return found.numpy()

    def unit(null, alpha=0.05):
        return np.quantile(null, 1 - alpha, axis=0)

    def mistakes(null, alpha=0.05):
        F, u = null.shape[1], unit(null, alpha)
        number = min(math.ceil((1 - alpha) * (len(null) + 1) - 1e-9), len(null))
        names = {
            "these are the limits of each quantity alone; together they raise too many false alarms": u,
            "these are Bonferroni's limits, the (1 - alpha/F) quantiles, which ignore how quantities correlate": (
                np.quantile(null, 1 - alpha / F, axis=0)
            ),
            "one limit for all, in different units: a quantity with small distances is never heard": (
                np.full(F, np.sort(null.max(1))[number - 1])
            ),
            "the alpha quantile is taken; a false alarm has probability alpha beyond the (1 - alpha) quantile": (
                u * np.quantile((null / u).max(1), alpha)
            ),
            "the mean over the quantities is taken; one of them is enough for an alarm, so take the largest": (
                u * np.sort((null / u).mean(1))[number - 1]
            ),
            "the sum over the quantities is taken; one of them is enough for an alarm, so take the largest": (
                u * np.sort((null / u).sum(1))[number - 1]
            ),
            "these are the largest distances of all draws": null.max(0),
            "the limits are left in units: multiply by the unit of each quantity": (
                np.full(F, np.sort((null / u).max(1))[number - 1])
            ),
        }
        return {s: torch.as_tensor(np.array(w)) for s, w in names.items()}

    def known(null, found, alpha=0.05):
        for sentence, wrong in mistakes(null, alpha).items():
            case.true(not np.allclose(found, wrong.numpy(), rtol=2e-3), sentence)

    with case(
        "one quantity: one of its own distances", points=2, hint="number ceil((1 - alpha)(B + 1)) in ascending order"
    ):
        for B, alpha in ((99, 0.05), (400, 0.05), (199, 0.1), (15, 0.05)):
            null = draw(B, 1)
            ordered = np.sort(null[:, 0])
            number = min(math.ceil((1 - alpha) * (B + 1) - 1e-9), B)
            other_end = max(math.ceil(alpha * (B + 1)) - 1, 0)
            near = {
                "this is the distance before the right one: the number is counted from 1": ordered[[number - 2]],
                "this is the distance after the right one: the number is counted from 1": ordered[[min(number, B - 1)]],
                "this is the alpha quantile: take the other end": ordered[[other_end]],
                "the draws are not in ascending order: sort the largest distances": null[number - 1],
                "it lies between two of the distances; take the one with this number, without interpolation": (
                    np.quantile(ordered, [1 - alpha])
                ),
            }
            near = {s: w for s, w in near.items() if abs(w[0] - ordered[number - 1]) > 1e-12}
            same(case, limits(null, alpha), ordered[[number - 1]], f"for B = {B}, alpha = {alpha} the limit", near)
    with case("all together: alpha", points=3, hint="the largest of each row, in units; then one quantile"):
        for F, common, alpha in ((8, 0.0, 0.05), (8, 0.8, 0.05), (5, 0.4, 0.2)):
            null = draw(999, F, common) * np.arange(1, F + 1)
            found = limits(null, alpha)
            share = false_alarms(null, found)
            off = abs(share - alpha) > 0.0021
            if off:
                known(null, found, alpha)
            case.true(
                not off, f"these limits raise an alarm in {share:.1%} of the draws without drift; alpha is {alpha:.0%}"
            )
    with case("every quantity has its share", points=2, hint="limits are proportional to the (1 - alpha) quantiles"):
        null = draw(999, 6, 0.5) ** np.linspace(0.5, 1.5, 6) * 10.0 ** np.arange(-2, 4)
        found = limits(null)
        ways = ("linear", "lower", "higher")  # the text leaves open which quantile it is
        ratios = [found / np.quantile(null, 0.95, axis=0, method=way) for way in ways]
        ratio = min(ratios, key=lambda one: np.ptp(one) / abs(one[0]))
        if not np.allclose(ratio, ratio[0], rtol=1e-6):
            known(null, found)
        case.close(
            torch.as_tensor(ratio),
            torch.as_tensor(ratio[0]).expand(6),
            what="the limits by the quantiles of the columns",
            tolerance=1e-6,
        )
    with case("copies of a quantity change nothing", points=1, hint="correlation is in the rows: keep them whole"):
        null = draw(499, 3, 0.2)
        plain, copied = limits(null), limits(np.repeat(null, 4, axis=1))
        case.true(
            np.allclose(np.repeat(plain, 4), copied),
            "the same three quantities, each four times, get other limits: as if there were twelve (Bonferroni)",
        )
    with case(
        "quantities that hardly move",
        points=2,
        hint="unit 0: take the column's maximum; if that is 0 too, the limit is inf",
    ):
        null = draw(400, 3, 0.3)
        null[:, 1] = 0.0
        found = limits(null)
        case.true(not np.isnan(found).any(), "a limit is NaN (0/0): a column without any distance gets the limit inf")
        case.true(np.isinf(found[1]) and found[1] > 0, f"a column of zeros gets the limit {found[1]:.3g}, expected inf")
        without = limits(null[:, [0, 2]])
        case.true(np.allclose(found[[0, 2]], without), "a column of zeros changes the limits of the others")
        null[:7, 1] = 0.5
        found = limits(null)
        case.true(
            np.isfinite(found).all() and found[1] >= 0.5,
            "a column with few distances above 0 needs a finite limit, at least its maximum times the common one",
        )
        case.true(abs(false_alarms(null, found) - 0.05) < 0.01, "with such a column the limits together miss alpha")
        none = limits(np.zeros((30, 2)))
        case.true(not np.isfinite(none).any(), "where all distances of all quantities are 0, no limit is finite")


# -- alarms -----------------------------------------------------------------------------------------------


def events(alarm, options, sequences, by_numpy=False):
    """Return, for each sequence of 0 and 1, what an alarm of its own says ("b", "e", ".") and whether it is active."""
    made = [alarm(**options) for _ in sequences]
    said = []
    for one, sequence in zip(made, sequences, strict=True):
        letters, active = "", ""
        for drifted in sequence:
            word = one.update(np.bool_(drifted == "1") if by_numpy else drifted == "1")
            letters += {"begins": "b", "ends": "e", None: "."}.get(word, "?")
            active += "1" if one.active else "0"
        said.append((letters, active))
    return said


def interleaved(alarm, options, first, second):
    """Return what two alarms say that are fed in turn."""
    one, other, said = alarm(**options), alarm(**options), ["", ""]
    for a, b in zip(first, second, strict=True):
        for number, (each, drifted) in enumerate(((one, a), (other, b))):
            said[number] += {"begins": "b", "ends": "e", None: "."}.get(each.update(drifted == "1"), "?")
    return said


@check("alarm", points=9)
def alarm(answer, case):
    """By sequences that were worked out by hand."""

    def demand(needed, last, calm, sequence, expected, what, *, active=None):
        options = {"needed": needed, "last": last, "calm": calm}
        ((letters, on),) = answer.probe(events, options, [sequence])
        case.true("?" not in letters, 'update returns something else than "begins", "ends" or None')
        about = f"needed={needed}, last={last}, calm={calm}; windows {sequence}: "
        for index, (found, right) in enumerate(zip(letters, expected, strict=True), start=1):
            name = {"b": "begins", "e": "ends", ".": "says nothing"}
            case.true(found == right, f"{about}at number {index} it {name[found]}. {what}")
        if active is not None:
            case.true(on == active, f"{about}`active` is {on}, expected {active}")

    with case("begins when enough of the last windows drifted", points=2, hint="k of the last n, not k in a row"):
        demand(2, 3, 3, "0000100101", ".........b", "It begins when 2 of the last 3 drifted, in a row or not")
        demand(
            3, 5, 3, "1010001101", ".........b", "It begins when 3 of the last 5 drifted; older windows do not count"
        )
        demand(1, 1, 2, "001", "..b", "With needed = 1 the first drifted window begins it")
        ((letters, _),) = answer.probe(events, {}, ["0101000"], True)
        case.true(
            letters == "...b..e",
            "with NumPy's True and False, which comparisons of arrays give, it says something else than with Python's: "
            "ask whether `drifted` is true, not whether it is the object True",
        )
    with case("need not wait for a full row", points=1, hint="the first windows of all count, too"):
        demand(2, 5, 3, "11", ".b", "Two drifted windows are enough, though there have not been five yet")
    with case("says once that it begins", points=1, hint="while it is active, nothing begins"):
        demand(2, 3, 3, "0111111", "..b....", "While it is active it says nothing more", active="0011111")
    with case("ends after calm windows in a row", points=2, hint="a drifted window in between starts the count anew"):
        demand(2, 3, 3, "110100000", ".b....e..", "It ends after 3 calm windows in a row", active="011111000")
        demand(2, 2, 2, "1101010010", ".b.....e..", "Calm windows that are not in a row do not count together")
        demand(1, 2, 1, "10", "be", "With calm = 1 the first calm window ends it")
    with case("begins anew, from nothing", points=2, hint="forget the windows from before the end"):
        demand(
            2, 5, 1, "1101011", ".be..b.", "After its end it needs 2 drifted windows again: older ones are forgotten"
        )
        demand(2, 3, 2, "11001100", ".b.e.b.e", "It begins and ends as often as drift does")
    with case(
        "every alarm for itself, with sensible numbers", points=1, hint="state belongs into __init__; ValueError"
    ):
        first, second = answer.probe(interleaved, {"needed": 2, "last": 3, "calm": 2}, "1100", "0000")
        case.true(
            second == "....", "an alarm hears the windows of another one: keep its state in self, not in the class"
        )
        case.true(first == ".b.e", "an alarm that is fed in turn with another says something else than alone")
        for options in ({"needed": 4, "last": 3}, {"needed": 0, "last": 3}, {"needed": 1, "last": 1, "calm": 0}):
            try:
                answer(**options)
            except ValueError:
                continue
            case.true(False, f"{options} is accepted; raise a ValueError")


# -- the journal ------------------------------------------------------------------------------------------


def with_journal(target, work, *arguments):
    """Make a database as journal.py does, in a folder of its own, and return what `work(target, ...)` finds."""
    import sqlite3
    import tempfile

    import sqlalchemy

    table = target.__globals__["TABLE"]
    fetched = []

    class Cursor(sqlite3.Cursor):
        def fetchone(self):
            row = super().fetchone()
            fetched.extend([row] * (row is not None))
            return row

        def fetchmany(self, *size):
            rows = super().fetchmany(*size)
            fetched.extend(rows)
            return rows

        def fetchall(self):
            rows = super().fetchall()
            fetched.extend(rows)
            return rows

    class Connection(sqlite3.Connection):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.execute("PRAGMA synchronous = OFF")  # nobody pulls the plug here

        def cursor(self, *kind):
            return super().cursor(Cursor)

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/journal.db"
        options = {"factory": Connection, "timeout": 0.05}
        engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args=options, pool_timeout=1)
        table.metadata.create_all(engine)
        fetched.clear()
        try:
            return work(target, engine, path, fetched, *arguments)
        finally:
            engine.dispose()


def rows_in(path):
    """Return all rows of the journal, read by another connection."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(path, timeout=2)) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(predictions)")]
        rows = [list(row) for row in connection.execute("SELECT * FROM predictions ORDER BY id")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def attempt(call, *arguments):
    """Return the name of what a call raises, or ''."""
    try:
        call(*arguments)
    except NotImplementedError:  # nothing is written yet: this is not a mistake
        raise
    except Exception as error:
        return type(error).__name__
    return ""


def record_some(record, engine, path, fetched, requests):
    """Record requests; return what lies in the database after each, and how many connections were kept."""
    found = []
    for request, time_of, watched in requests:
        trouble = attempt(record, engine, request, time_of, watched)
        found.append((trouble, rows_in(path), engine.pool.checkedout()))
    return found


def record_trouble(record, engine, path, fetched, watched, kind):
    """Record while the database is locked, or refuses the third row; then once more, when all is well."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        if kind == "locked":
            other.execute("BEGIN EXCLUSIVE")
        else:
            other.execute(
                "CREATE TRIGGER refusing BEFORE INSERT ON predictions WHEN NEW.class = 77 "
                "BEGIN SELECT RAISE(ABORT, 'no space left'); END"
            )
        trouble = attempt(record, engine, "first", 1.0, watched)
        if kind == "locked":
            other.execute("ROLLBACK")
    left = len(rows_in(path))
    fine = np.array(watched)
    fine[:, -1] = 1
    again = attempt(record, engine, "second", 2.0, fine)
    return trouble, left, again, len(rows_in(path)), engine.pool.checkedout()


def run_record(target, requests):
    """See `record_some`."""
    return with_journal(target, record_some, requests)


def run_trouble(target, watched, kind):
    """See `record_trouble`."""
    return with_journal(target, record_trouble, watched, kind)


RECORD = (with_journal, rows_in, attempt, record_some, record_trouble)
NAMES = ("ink", "contrast", "height", "slant", "edges", "blank", "confidence", "class")


def watched_rows(case, count):
    """Return rows (N, F) as the service hands them over."""
    rows = case.randn(count, len(NAMES), dtype=torch.float64).numpy()
    rows[:, -1] = case.randint(0, 10, (count,)).numpy()
    return rows


@check("journal-record", points=10, allows=("files",))
def journal_record(answer, case):
    """By reading the file through another connection, at once."""

    def ask(*requests):
        return answer.probe(run_record, list(requests), uses=RECORD)

    def well(found):
        for trouble, *_ in found:
            case.true(not trouble, f"it raises {trouble} though nothing is wrong")
        return found

    with case("every image has its row", points=2, hint="insert(TABLE), with a list of dictionaries"):
        watched = watched_rows(case, 5)
        ((_, rows, _), (_, after, _)) = well(ask(("r1", 12.5, watched), ("r2", 13.5, watched[:0])))
        lost = "nothing is in the database" if not rows else f"{len(rows)} rows for 5 images"
        hint = "; is the transaction committed?" if not rows else ""
        case.true(len(rows) == 5, lost + hint)
        inks = [row["ink"] for row in rows]
        case.true(
            inks == watched[:, 0].tolist() or None in inks or sorted(inks) != sorted(watched[:, 0].tolist()),
            "the rows are in another order than the images",
        )
        for row, right in zip(rows, watched, strict=True):
            for name, value in zip(NAMES, right, strict=True):
                found = row[name] if row[name] is not None else math.nan
                case.true(
                    abs(found - value) < 1e-12, f"{name} is {row[name]!r} in the journal, which is another number"
                )
            case.true(row["request"] == "r1" and row["time"] == 12.5, "request or time are not what was handed in")
        case.true(len(after) == 5, "a request without images changes the journal")
    with case("it is there when the call returns", points=2, hint="commit before you return; engine.begin() does it"):
        requests = [(f"r{number}", float(number), watched_rows(case, 2)) for number in range(1, 4)]
        for number, (_, rows, _) in enumerate(well(ask(*requests)), start=1):
            case.true(
                len(rows) == 2 * number,
                f"after call {number}, another connection sees {len(rows)} rows instead of {2 * number}: not committed "
                "yet, or kept in memory. What dies with the process was never written down",
            )
    with case(
        "what cannot be written is no success", points=1, hint="let the database's error out; no thread, no except"
    ):
        trouble, left, *_ = answer.probe(run_trouble, watched_rows(case, 3), "locked", uses=RECORD)
        case.true(
            bool(trouble),
            "the database was locked, nothing could be written, and still the call returned as if all were well: the "
            "error is swallowed, or the writing left to later",
        )
        case.true(left == 0, "rows appeared while the database was locked")
    with case("all of a request, or nothing", points=2, hint="one transaction for all rows"):
        watched = watched_rows(case, 4)
        watched[2, -1] = 77
        trouble, left, *_ = answer.probe(run_trouble, watched, "refused", uses=RECORD)
        case.true(
            bool(trouble), "the database refused a row, and the call returned as if all were well: let the error out"
        )
        case.true(
            left == 0, f"the third of four rows was refused, and {left} of them are in the journal: use one transaction"
        )
    with case(
        "after an error it works on", points=1, hint="with engine.begin(): rolls back and gives the connection back"
    ):
        watched = watched_rows(case, 4)
        watched[3, -1] = 77
        *_, again, rows, kept = answer.probe(run_trouble, watched, "refused", uses=RECORD)
        case.true(kept == 0, "a connection is not given back to the pool: use `with`")
        case.true(not again, f"after an error, a request without fault raises {again}")
        case.true(rows == 4, f"after an error, a request of 4 images leaves {rows} rows")
        many = well(ask(*((f"r{k}", 1.0, watched_rows(case, 1)) for k in range(3))))
        case.true(many[-1][2] == 0, "a connection is not given back to the pool: use `with`")
    with case(
        "numbers that are not finite are refused", points=1, hint="np.isfinite(...).all(), before anything is written"
    ):
        for bad in (math.nan, math.inf, -math.inf):
            watched = watched_rows(case, 3)
            watched[1, 2] = bad
            ((trouble, rows, _),) = ask(("r", 1.0, watched))
            case.true(
                trouble == "ValueError",
                f"{bad} among the numbers: {trouble or 'nothing'} is raised, expected ValueError",
            )
            case.true(not rows, f"a request with {bad} leaves {len(rows)} rows in the journal")
    with case("texts are values, never SQL", points=1, hint="let SQLAlchemy pass the values; put no text together"):
        name = "O'Neill'); DROP TABLE predictions; --"
        trouble, rows, _ = ask((name, 1.0, watched_rows(case, 1)))[0]
        case.true(
            not trouble and len(rows) == 1, "a request id with a quote in it breaks the statement: an SQL injection"
        )
        case.true(rows[0]["request"] == name, "a request id with a quote in it is stored as something else")


def read_recent(recent, engine, path, fetched, rows, removed, count):
    """Fill the journal, remove some rows, and return what `recent` gives and how many rows the database sent."""
    import sqlite3

    names = ("ink", "contrast", "height", "slant", "edges", "blank", "confidence", "class")
    with contextlib.closing(sqlite3.connect(path)) as other:
        for number, row in enumerate(rows):
            marks = ", ".join("?" * (len(names) + 2))
            columns = ", ".join(("request", "time", *names))
            other.execute(
                f"INSERT INTO predictions ({columns}) VALUES ({marks})",
                (f"r{number}", 1000.0 - number, *map(float, row)),
            )
        for number in removed:
            other.execute("DELETE FROM predictions WHERE id = ?", (int(number),))
        other.commit()
    fetched.clear()
    found = recent(engine, count)
    if isinstance(found, (list, tuple)):
        found = [[value if isinstance(value, str) else float(value) for value in row] for row in found]
    return found, len(fetched), engine.pool.checkedout()


def run_recent(target, rows, removed, count):
    """See `read_recent`."""
    return with_journal(target, read_recent, rows, removed, count)


@check("journal-recent", points=6, allows=("files",))
def journal_recent(answer, case):
    """On a journal whose clock ran backwards and whose ids have gaps."""

    def ask(rows, count, removed=()):
        found, sent, kept = answer.probe(run_recent, rows, list(removed), count, uses=(with_journal, read_recent))
        case.true(isinstance(found, list), f"the result is a {type(found).__name__}, expected a list of lists")
        return found, sent, kept

    def demand(found, right, rows, what):
        count = len(right)
        mistakes = {
            "the newest row comes first; the oldest is to come first": right[::-1],
            "these are the first rows of the journal; the latest are asked": rows[:count],
            "these are the first rows, in reverse": rows[:count][::-1],
            "these are all rows; only `count` of them are asked": rows,
        }
        for row in found:
            only = f"a row has {len(row)} values instead of {len(NAMES)}: only the columns of WATCHED are asked"
            case.true(len(row) <= len(NAMES), only)
        case.true(len({len(row) for row in found}) < 2, "the rows have different lengths, or are no lists")
        arrays = np.array(found, dtype=float) if found else np.zeros((0, len(NAMES)))
        known = {s: torch.as_tensor(np.array(w)) for s, w in mistakes.items() if not np.array_equal(w, right)}
        case.close(torch.as_tensor(arrays), torch.as_tensor(right), what=what, mistakes=known)

    with case("the latest rows, the oldest of them first", points=2, hint="order by id, descending; limit; turn round"):
        rows = watched_rows(case, 12)
        found, *_ = ask(rows, 5)
        demand(found, rows[-5:], rows, "the last five rows")
    with case("columns in the order of WATCHED", points=1, hint="select(*(TABLE.c[name] for name in WATCHED))"):
        rows = watched_rows(case, 4)
        found, *_ = ask(rows, 2)
        case.true(
            bool(found) and len(found[0]) == len(NAMES),
            f"a row has {len(found[0]) if found else 0} numbers, expected {len(NAMES)}",
        )
        shuffled = always("the numbers are right, in another order of the columns") if np.allclose(
            np.sort(np.array(found), 1), np.sort(rows[-2:], 1)) else None  # fmt: skip
        case.close(torch.as_tensor(np.array(found)), torch.as_tensor(rows[-2:]), what="two rows", mistakes=shuffled)
    with case("fewer rows than asked for", points=1, hint="then all there are; of an empty journal none"):
        rows = watched_rows(case, 3)
        demand(ask(rows, 10)[0], rows, rows, "three rows when ten are asked for")
        alike = np.repeat(rows[:1], 3, axis=0)
        case.true(len(ask(alike, 3)[0]) == 3, "of rows with the same numbers not all come: each is a prediction")
        case.true(ask(rows[:0], 4)[0] == [], "an empty journal gives something else than an empty list")
        case.true(ask(rows, 0)[0] == [], "when no rows are asked for, some come")
    with case("later means a higher id", points=1, hint="clocks are set back, and ids may have gaps"):
        rows = watched_rows(case, 12)
        found, *_ = ask(rows, 4, removed=(10, 11))
        kept = np.delete(rows, [9, 10], axis=0)
        case.true(
            len(found) == 4, f"{len(found)} rows come when 4 are asked for and ids have gaps; count rows, not ids"
        )
        by_clock = {"the rows are ordered by time; the clock may have been set back: order by id": kept[:4][::-1]}
        same(case, np.array(found), kept[-4:], "the last four rows", by_clock)
    with case("the database sends these rows alone", points=1, hint=".limit(count), in the statement"):
        rows = watched_rows(case, 60)
        found, sent, kept = ask(rows, 5)
        case.true(len(found) == 5, f"{len(found)} rows come instead of 5")
        case.true(sent <= 10, f"the database sent {sent} rows for 5; after a year that is the whole table: use a limit")
        case.true(kept == 0, "a connection is not given back to the pool: use `with`")


# -- reading metrics --------------------------------------------------------------------------------------


@check("counter-increase", points=5)
def counter_increase(answer, case):
    """By counting the events themselves."""

    def counted(lives):
        """Return the samples of a counter that lives several times, and how many events there were after the first."""
        samples, events = [], 0
        for steps in lives:
            value = 0
            for step in steps:
                value, events = value + step, events + step
                samples.append(float(value))
        return samples, events - lives[0][0]

    def demand(lives):
        samples, right = counted(lives)
        steps = np.diff(samples)
        found = {
            "this is the last sample minus the first, as if the process had never started anew": samples[-1]
            - samples[0],
            "after a new start only the growth between samples is added; what the first sample after it shows "
            "has happened, too": steps[steps > 0].sum(),
            "falls are added as if they were growth": np.abs(steps).sum(),
            "the first sample is added; what it shows happened before": right + samples[0],
            "this is the largest sample minus the smallest": max(samples) - min(samples),
            "this is the last sample; what was counted before the new start has happened, too": samples[-1],
            "a counter that stays as it was is taken for a new start; only a fall is one": sum(
                b - a if b > a else b for a, b in itertools.pairwise(samples)
            ),
            "samples are compared with the highest so far; compare each with the one before it": sum(
                b - max(samples[:i]) if b >= max(samples[:i]) else b for i, b in enumerate(samples) if i
            ),
            "the growth over one new start only is seen; look at each pair of neighbours": samples[-1]
            + (samples[int(np.argmax(steps < 0))] - samples[0]),
            "these are all samples added up": sum(samples),
            "this is the growth since the last start only": counted(lives[-1:])[1],
            "this is a rate for each step; return the whole growth": right / max(len(steps), 1),
        }
        found = {s: w for s, w in found.items() if abs(w - right) > 1e-9}
        same(case, answer(samples), right, f"for the samples {[int(s) for s in samples]} the growth", found)

    def steps(count):
        return [int(step) for step in case.randint(0, 20, (count,))]

    with case("without a new start: last minus first", points=1, hint="the sum of all differences"):
        demand([[5, 3, 0, 7]])
        demand([[1, *steps(6)]])
    with case("one new start", points=2, hint="a fall: the counter began at 0, all that it shows is new"):
        demand([[40, 10, 5], [3, 4, 6]])
        demand([[90, *steps(4)], [2, *steps(3)]])
    with case("several new starts", points=1, hint="look at each pair of neighbours"):
        demand([[50, 2], [30, 1], [20, 0, 9]])
        demand([[9], [4], [1], [0, 5]])
    with case("too few samples", points=1, hint="one sample says nothing of growth"):
        same(case, answer([7.0]), 0.0, "for one sample the growth", {"what one sample shows may be old": 7.0})
        same(case, answer([]), 0.0, "without samples the growth")


def spread_out(bounds, counts, points=40_000):
    """Return many values, spread evenly over each bucket in proportion to what it holds."""
    values, low = [], 0.0
    for high, each in zip(bounds, np.diff([0, *counts]), strict=True):
        share = round(points * each / counts[-1])
        values.append(low + (high - low) * (np.arange(share) + 0.5) / max(share, 1))
        low = high
    return np.concatenate(values)


@check("histogram-quantile", points=7, from_scratch=("np.interp", "numpy.interp", "interp1d"))
def histogram_quantile(answer, case):
    """Against values that are spread evenly over the buckets."""

    def demand(q, bounds, counts, what=None):
        right = float(np.quantile(spread_out(bounds[:-1], counts[:-1]), min(1, q * counts[-1] / counts[-2])))
        edges, each = [0.0, *bounds], np.diff([0, *counts])
        at = next(i for i, count in enumerate(counts) if count >= q * counts[-1] and count > 0)
        low, high, inside = edges[at], edges[at + 1], each[at]
        wrong = {
            "this is the upper bound of the bucket; take the share of the way through it": high,
            "this is the lower bound of the bucket; take the share of the way through it": low,
            "this is the middle of the bucket; take the share of the way through it": (low + high) / 2,
            "the counts are cumulative: each bucket holds those before it, too": self_cumulative(q, bounds, counts),
            "within the bucket it counts from 0; take away what lies before the bucket": low + (high - low) * min(
                q * counts[-1] / inside if inside else 0, 9e9),
            "it divides by the cumulative count; divide by what is in this bucket": low + (high - low) * (
                q * counts[-1] - (counts[at] - inside)) / counts[at],
            "within the bucket it counts from 0; take away what lies before the bucket ": low + (high - low) * (
                q * counts[-1] / counts[at]),
            "it divides by all values; divide by what is in this bucket": low + (high - low) * (
                q * counts[-1] - (counts[at] - inside)) / counts[-1],
            "the way through the bucket is counted from its upper bound; begin at the lower one": low + (high - low) * (
                counts[at] - q * counts[-1]) / inside if inside else 0.0,
            "the rank is rounded up to a whole number; leave it as it is": low + (high - low) * (
                math.ceil(q * counts[-1]) - (counts[at] - inside)) / inside if inside else 0.0,
            "values are spread evenly over the bucket, not over its logarithm": low * (high / max(low, 1e-9)) ** (
                (q * counts[-1] - (counts[at] - inside)) / max(inside, 1)),
            "the way through the bucket begins at 0, not at its lower bound": high * (
                q * counts[-1] - (counts[at] - inside)) / inside if inside else 0.0,
            "this is q times the bound of the last bucket": q * bounds[-2],
            "this is the quantile of 1 - q": float(np.quantile(spread_out(bounds[:-1], counts[:-1]), 1 - q)),
        }  # fmt: skip
        scale = bounds[-2]
        close = {s: w for s, w in wrong.items() if math.isfinite(w) and abs(w - right) > 5e-3 * scale}
        what = what or f"for q = {q}, bounds {bounds}, counts {counts} the quantile"
        same(case, answer(q, bounds, counts), right, what, close, 1e-3 * min(1.0, scale))

    def self_cumulative(q, bounds, counts):
        """Return the bound that one finds when the counts are taken for those of single buckets."""
        total = np.cumsum(counts)
        at = int(np.argmax(total >= q * total[-1]))
        before = total[at - 1] if at else 0
        low = bounds[at - 1] if at else 0.0
        return low + (min(bounds[at], bounds[-2]) - low) * (q * total[-1] - before) / max(counts[at], 1)

    bounds = [0.01, 0.05, 0.1, 0.5, 1.0, math.inf]
    with case("within a bucket", points=2, hint="low + (high - low) · (rank - before) / inside"):
        demand(0.5, bounds, [10, 20, 60, 90, 100, 100])
        demand(0.95, bounds, [5, 30, 40, 80, 100, 100])
        demand(0.75, [1.0, 2.0, 4.0, 8.0, math.inf], [10, 40, 60, 100, 100])
    with case("the first bucket begins at 0", points=1, hint="its lower bound is 0"):
        demand(0.3, [2.0, 4.0, math.inf], [60, 100, 100])
        demand(0.5, [1.0, 3.0, math.inf], [80, 100, 100])
        demand(0.5, [2.0, 4.0, math.inf], [1, 1, 1])
    with case("empty buckets", points=1, hint="the first bucket whose count reaches the rank"):
        demand(0.6, bounds, [40, 40, 40, 80, 100, 100])
        demand(0.2, bounds, [0, 0, 50, 50, 100, 100])
        late = {"the buckets after the one that reaches the rank are empty; take the first that reaches it": bounds[2]}
        counts = [40, 40, 40, 80, 100, 100]
        same(case, answer(0.4, bounds, counts), bounds[0], f"for q = 0.4 and the counts {counts} the quantile", late)
    with case("any bounds and counts", points=1, hint="nothing may be fixed to one histogram"):
        inside = np.cumsum(1 + case.randint(1, 30, (6,)).numpy())
        edges = [*np.cumsum(0.1 + case.randn(6, dtype=torch.float64).abs().numpy()).tolist(), math.inf]
        counts = [int(count) for count in (*inside, inside[-1])]
        for q in (0.1, 0.5, 0.9):
            demand(q, edges, counts)
    with case("beyond the last bound", points=1, hint="the last finite bound: more cannot be said"):
        found = numbers(case, answer(0.99, bounds, [10, 20, 30, 40, 50, 100]), "the quantile")
        case.true(torch.isfinite(found).all(), f"the quantile is {float(found)}; return the last bound that is finite")
        same(case, found, 1.0, "for a quantile beyond the last finite bound, 1.0, the result")
        demand(0.5, bounds, [10, 20, 60, 90, 95, 100])
    with case("no values: NaN", points=1, hint="counts[-1] == 0"):
        found = numbers(case, answer(0.5, bounds, [0] * 6), "without values the quantile")
        case.true(
            torch.isnan(found).all(), f"without values the quantile is {float(found)}; there is none: return math.nan"
        )
