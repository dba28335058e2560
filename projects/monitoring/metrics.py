"""Reading metrics as Prometheus does: what a counter and a histogram of a running service say.

A service exposes numbers that only grow; whoever reads them from time to time works out rates and percentiles.
"""

import math  # noqa: F401 (for your answers)


# TODO counter-increase  (5 points, ~15 min)
def increase(samples):
    """Return by how much a counter has grown over its samples.

    A counter only grows, except that it begins anew at 0 when its process starts anew. A sample that is lower than
    the one before is such a new start: all that it shows has happened since.

    Args:
        samples: values of one counter, in the order of time.

    Returns:
        The growth since the first sample; 0 for fewer than two samples.
    """
    raise NotImplementedError("counter-increase")


# TODO histogram-quantile  (7 points, ~25 min)
def histogram_quantile(q, bounds, counts):
    """Return a quantile of what a histogram has counted, as Prometheus's `histogram_quantile` does.

    The values in a bucket are taken to be spread evenly over it. The first bucket begins at 0.

    Args:
        q: which quantile, from 0 to 1; 0.5 is the median.
        bounds: upper bounds of the buckets, ascending and above 0; the last is `inf`.
        counts: how many values lie at or below each bound: every bucket counts those before it, too.

    Returns:
        The value below which a share q lies. NaN for a histogram without values; when it lies in the bucket that has
        no upper bound, the highest bound that is finite.
    """
    raise NotImplementedError("histogram-quantile")
