"""Bar charts of average precision by distance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevkd2.visualization.objects import CLASS_COLORS, Image

if TYPE_CHECKING:  # at run time it would import the compiled evaluation, which drawing does not need
    from bevkd2.kitti.ap import DistanceBin

DPI = 100
"""Of figures with axes."""
_COLORS = [tuple(color / 255) for color in CLASS_COLORS[[6, 1, 3, 8, 4]]]


def scores_by_distance(bins: Sequence[DistanceBin], key: str = "car/3d/moderate") -> dict[str, float]:
    """Returns what ``draw_ap_by_distance`` reads, from what ``ap_by_distance`` returns.

    Args:
        bins: of one model.
        key: "class/metric/difficulty".

    Returns:
        "0-20 m" -> AP|R40 in percent; NaN if there is no object to detect, or no detection.
    """
    scores = {}
    for entry in bins:
        curve = entry.scores.curves.get(key)
        found = curve is not None and curve.n_gt > 0
        label = f">= {entry.low:g} m" if math.isinf(entry.high) else f"{entry.low:g}-{entry.high:g} m"
        scores[label] = curve.ap_r40 if curve is not None and found else math.nan
    return scores


def draw_ap_by_distance(
    scores: Mapping[str, Mapping[str, float]], title: str, ylabel: str = "AP|R40 (%)"
) -> Image:
    """Draws grouped bars: one group per distance, one bar per model with its value on top.

    Args:
        scores: name of the model -> distance ("0-20 m") -> AP in percent; NaN is written as "n/a".
        title: written above.
        ylabel: label of the vertical axis.

    Returns:
        (H, W, 3) RGB.

    Raises:
        ValueError: there is no model, there are more models than colours, or their distances differ.
    """
    labels = list(next(iter(scores.values()), {}))
    if not labels or any(list(bins) != labels for bins in scores.values()) or len(scores) > len(_COLORS):
        shown = {name: list(bins) for name, bins in scores.items()}
        raise ValueError(
            f"draw_ap_by_distance: distances by model are {shown}; expected 1 to {len(_COLORS)} models with "
            "the same distances in the same order"
        )
    figure = Figure(figsize=(max(5.0, 1.2 + 1.7 * len(labels)), 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(scores)
    for m, (name, bins) in enumerate(scores.items()):
        heights = np.array([bins[label] for label in labels], dtype=float)
        places = np.arange(len(labels)) + (m - (len(scores) - 1) / 2) * width
        axes.bar(places, np.nan_to_num(heights), 0.92 * width, color=_COLORS[m], label=name)
        for x, height in zip(places, heights, strict=True):
            text = "n/a" if np.isnan(height) else f"{height:.1f}"
            axes.annotate(text, (x, np.nan_to_num(height)), (0, 2), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title=title, xlabel="distance", ylabel=ylabel)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(scores), frameon=False)
    return figure_image(figure)


def figure_image(figure: Figure) -> Image:
    """Draws a figure into an image.

    Args:
        figure: of matplotlib, in its own size and resolution.

    Returns:
        (H, W, 3) RGB.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
