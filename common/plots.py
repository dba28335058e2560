"""The plots that more than one unit draws. Every function draws on axes that the caller may pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from torch import Tensor

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito: safe for the colour-blind


def style() -> None:
    """Set the look of all plots: white ground in light and dark themes, colours that everyone can tell apart."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.cmap": "Blues",
            "lines.linewidth": 2,
            "legend.frameon": False,
        }
    )


def attention_map(
    weights: Tensor | np.ndarray,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> None:
    """Draw one attention map: a row for each query, a column for each key, darker for more weight.

    Args:
        weights: (T, S), or a mask of booleans.
        queries: T labels for the rows.
        keys: S labels for the columns.
        ax: where to draw; a new figure when it is left out.
        title: what the map shows.
    """
    values = np.asarray(weights, dtype=float)
    if ax is None:
        height, width = values.shape
        _, ax = plt.subplots(figsize=(1.6 + 0.32 * width, 1.0 + 0.32 * height))
    ax.imshow(values, vmin=0, vmax=1, aspect="auto" if max(values.shape) > 60 else "equal")
    ax.set(title=title, xlabel="key", ylabel="query")
    ax.grid(False)
    if keys is not None:
        ax.set_xticks(range(len(keys)), keys, fontsize=9)
    if queries is not None:
        ax.set_yticks(range(len(queries)), queries, fontsize=9)
    if keys is not None and max(map(len, keys)) > 2:
        plt.setp(ax.get_xticklabels(), rotation=90)


def head_maps(
    weights: Tensor | np.ndarray,
    labels: Sequence[str] | None = None,
    *,
    columns: int = 4,
    titles: Sequence[str] | None = None,
    size: float = 3.2,
) -> None:
    """Draw the maps of several heads side by side.

    Args:
        weights: (H, T, T).
        labels: T labels for rows and columns.
        columns: maps in a row.
        titles: one for each head; "head 0" and so on when left out.
        size: width and height of one map in inches.
    """
    values = np.asarray(weights, dtype=float)
    rows = -(-len(values) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows), squeeze=False)
    for index, ax in enumerate(axes.flat):
        if index >= len(values):
            ax.axis("off")
            continue
        attention_map(values[index], labels, labels, ax=ax, title=titles[index] if titles else f"head {index}")
        if index % columns:
            ax.set_ylabel("")
            ax.set_yticks([])
        if index // columns < rows - 1:
            ax.set_xlabel("")
            ax.set_xticks([])


def curves(
    series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str, smooth: int = 1, ax: Axes | None = None
) -> None:
    """Draw curves over their index, each a moving mean over `smooth` points with the raw values behind it."""
    if ax is None:
        _, ax = plt.subplots(figsize=(6.5, 3.2))
    for index, (label, values) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        if smooth > 1:
            ax.plot(values, color=colour, alpha=0.25, linewidth=1)
        mean = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
        ax.plot(np.arange(len(mean)) + smooth - 1, mean, color=colour, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        ax.legend()


def bars(values: Mapping[str, float], *, xlabel: str, ax: Axes | None = None, digits: int = 2) -> None:
    """Draw one labelled horizontal bar for each value, the first on top."""
    if ax is None:
        _, ax = plt.subplots(figsize=(6.5, 0.8 + 0.4 * len(values)))
    drawn: Any = ax.barh(list(values), list(values.values()), color=COLOURS[0])
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=4)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlabel(xlabel)
