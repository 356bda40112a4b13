"""Pictures of temporal self-attention: where a BEV cell samples the previous and the current BEV (Eq. 5)."""

from __future__ import annotations

import dataclasses

import numpy as np

from bevkd2.visualization.attention import draw_samples
from bevkd2.visualization.bev_view import BEVFrame, draw_bev, draw_outlines
from bevkd2.visualization.canvas import stack, with_title
from bevkd2.visualization.objects import Array, DrawnObjects, Image


@dataclasses.dataclass(frozen=True, eq=False)
class TemporalAttentionView:
    """Temporal attention of the last encoder layer; Q cells, M heads, P points.

    Attributes:
        offsets: (Q, M, 2, P, 2) x, y in cells, for the previous BEV and for the current one; relative to the
            place on the ground where the cell is now.
        weights: (Q, M, 2, P) attention weights; they sum to 1 over the points.
        has_history: whether there was a previous BEV; else the running queries are sampled in its place.
    """

    offsets: Array
    weights: Array
    has_history: bool

    def points(
        self, cell: int, shape: tuple[int, int], extent: tuple[float, float, float, float]
    ) -> tuple[Array, Array]:
        """Returns what a cell samples.

        Args:
            cell: its index, row by row.
            shape: rows and columns of the grid.
            extent: x0, y0, x1, y1 of the grid in metres.

        Returns:
            (2, M * P, 2) x, y in metres in the previous and in the current BEV, and (2, M * P) weights.
        """
        x0, y0, x1, y1 = extent
        size = np.array([(x1 - x0) / shape[1], (y1 - y0) / shape[0]])
        row, column = divmod(cell, shape[1])
        cells = np.array([column + 0.5, row + 0.5]) + self.offsets[cell]
        by_queue: Array = np.moveaxis(np.array([x0, y0]) + cells * size, 1, 0).reshape(2, -1, 2)
        return by_queue, np.moveaxis(self.weights[cell], 1, 0).reshape(2, -1)

    def draw(
        self, cell: int, shape: tuple[int, int], frame: BEVFrame, truth: DrawnObjects, chosen: DrawnObjects
    ) -> Image:
        """Draws the points that a cell samples in both grids.

        Args:
            cell: its index.
            shape: rows and columns of the grid.
            frame: its extent, and the height of the picture.
            truth: objects, outlined in their colours.
            chosen: that of the cell, outlined in white.

        Returns:
            The previous and the current BEV beside each other; the larger a point, the larger its weight.
        """
        places, weights = self.points(cell, shape, frame.extent)
        before = "previous BEV" if self.has_history else "no previous BEV: the running queries"
        panels = []
        for name, where, weight in zip((before, "current BEV"), places, weights, strict=True):
            panel = draw_samples(draw_bev(frame, predictions=truth), frame.to_pixels(where), weight)
            draw_outlines(panel, frame, chosen, (255, 255, 255))
            panels.append(with_title(panel, name, height=11))
        return stack(panels, axis=1)
