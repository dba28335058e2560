"""What is watched: six numbers about each image, how sure the model is, and the class that it gives."""

import numpy as np

CLASSES = 10
STATISTICS = ("ink", "contrast", "height", "slant", "edges", "blank")
QUANTITIES = (*STATISTICS, "confidence")  # numbers, watched by Kolmogorov-Smirnov distances
WATCHED = (*QUANTITIES, "class")  # and the class, by the chi-squared distance


def input_statistics(images):
    """Return six numbers about each image.

    Args:
        images: ink (N, 8, 8), from 0 (paper) to 1.

    Returns:
        Numbers (N, 6): the mean (ink); the standard deviation (contrast); the mean height of the ink, in rows from
        the top; its slant (columns to the right for a row down); the mean step between neighbours (edges); the share
        of rows and columns without ink, all below 0.1 (blank).
    """
    images = np.asarray(images, dtype=float)
    rows, columns = np.indices(images.shape[1:])
    ink = images + 1e-6  # an empty image has its ink everywhere
    total = ink.sum((1, 2))
    row, column = ((ink * place).sum((1, 2)) / total for place in (rows, columns))
    down, right = rows - row[:, None, None], columns - column[:, None, None]
    slant = (ink * down * right).sum((1, 2)) / (ink * down**2).sum((1, 2))
    steps = [np.abs(np.diff(images, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    empty = np.concatenate([images.max(1) < 0.1, images.max(2) < 0.1], axis=1).mean(1)
    return np.stack([images.mean((1, 2)), images.std((1, 2)), row, slant, sum(steps) / 2, empty], axis=1)
