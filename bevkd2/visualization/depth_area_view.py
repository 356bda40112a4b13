"""Number and mean pixel area of objects by depth (depth-guided distillation, Fig. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bevkd2.visualization.ap_view import DPI, figure_image
from bevkd2.visualization.objects import Image, class_palette


def draw_depth_area(statistics: Mapping[str, Any], title: str) -> Image:
    """Draws the number of objects in each bin of depth as stacked bars, and their mean area as a line.

    Args:
        statistics: as ``bevkd2.data.mono.object_statistics.by_depth`` returns them.
        title: written above.

    Returns:
        (H, W, 3) RGB; the scale of areas, on the right, is logarithmic.
    """
    bins = statistics["bins"]
    figure = Figure(figsize=(8.0, 4.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    middles = np.array([(entry["low"] + entry["high"]) / 2 for entry in bins])
    width = 0.86 * (bins[0]["high"] - bins[0]["low"])
    below = np.zeros(len(bins))
    names = list(bins[0]["per_class"])
    for name, color in zip(names, np.resize(class_palette(len(names)), (len(names), 3)), strict=True):
        heights = np.array([entry["per_class"][name] for entry in bins])
        axes.bar(middles, heights, width, bottom=below, color=tuple(color / 255), alpha=0.75, label=name)
        below += heights
    axes.set(title=title, xlabel="depth (m)", ylabel="number of objects")
    axes.set_xlim(0, bins[-1]["high"])
    axes.spines["top"].set_visible(False)
    areas = axes.twinx()
    filled = [(x, entry["area"]) for x, entry in zip(middles, bins, strict=True) if entry["area"] is not None]
    areas.plot(
        *zip(*filled, strict=True), color=(0.15, 0.15, 0.15), marker="o", markersize=3, label="mean area"
    )
    areas.set_yscale("log")
    areas.set_ylabel("mean area of an object (pixels, logarithmic)")
    areas.spines["top"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(names) + 1, frameon=False)
    return figure_image(figure)
