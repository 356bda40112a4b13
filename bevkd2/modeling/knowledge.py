"""What a detector knows after its forward pass: the typed fields that distillation methods may read."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor


@dataclasses.dataclass
class Knowledge:
    """Fields that every detector can fill.

    B samples, N cameras (1 for monocular), Q queries or locations, K classes.

    A field is None unless it is cheap or was named in ``wants``.
    """

    backbone: dict[str, Tensor] | None = None
    """Features of the image backbone, name -> (B*N, C, H, W). Wanted by "backbone"."""
    fpn: list[Tensor] | None = None
    """Features of the neck, finest first, each (B*N, C, H, W). Wanted by "fpn"."""
    fpn_strides: list[int] | None = None
    """Pixels of the input image to a cell of each level of ``fpn``."""
    image_sizes: Tensor | None = None
    """(B*N, 2) float32: height and width in pixels before padding."""
    logits: Tensor | None = None
    """Class logits before the sigmoid, (B, Q, K): of the last layer's queries, or of all locations."""


@dataclasses.dataclass
class TemporalState:
    """What a temporal detector carries from one key frame to the next.

    Rows are samples; a row whose scene differs from the next frame's counts as no history.
    """

    bev_embed: Tensor
    """(B, H*W, C), detached."""
    can_bus: Tensor
    """(B, 18) float64, absolute, of the frame that made ``bev_embed``."""
    scene_tokens: list[str]
    timestamps: list[int]
    """Microseconds."""


@dataclasses.dataclass
class BEVKnowledge(Knowledge):
    """Fields of a bird's-eye-view detector.

    H x W cells, row-major; M heads, L levels, P points, D decoder layers.
    """

    bev_embed: Tensor | None = None
    """(B, H*W, C): the encoder's output."""
    bev_shape: tuple[int, int] | None = None
    """(H, W)."""
    bev_mask: Tensor | None = None
    """(B, N, H*W) bool: camera n sees at least one reference point of the pillar."""
    temporal_attention: list[Tensor] | None = None
    """For every encoder layer, (B, H*W, M, 2, 1, P) float32 after softmax; dimension 3 is the queue:
    previous, current. Wanted by "temporal_attention"."""
    spatial_attention: list[Tensor] | None = None
    """For every encoder layer, (B, H*W, M, L, P) float32 after softmax over L*P. It depends on the cell
    alone, so it is the same for every camera that sees the cell. Wanted by "spatial_attention"."""
    class_logits: Tensor | None = None
    """(D, B, Q, K)."""
    box_codes: Tensor | None = None
    """(D, B, Q, 10): cx, cy (m), log w, log l, cz (m), log h, sin, cos of the published yaw, vx, vy (m/s)."""
    bev_heatmap: Tensor | None = None
    """(B, K, H, W) logits of the auxiliary BEV head; None where the model has none."""
    image_heatmap: Tensor | None = None
    """(B*N, K, h, w) logits of the auxiliary image head on the finest FPN level; None where the model has
    none."""
    state: TemporalState | None = None
    """For the next frame."""

    def seen_by_any_camera(self) -> Tensor:
        """Returns (B, H*W) bool: cells that at least one camera sees. Others do not count in distillation."""
        assert self.bev_mask is not None
        return self.bev_mask.any(dim=1)


@dataclasses.dataclass
class MonoKnowledge(Knowledge):
    """Fields of a dense monocular detector.

    Q locations: all cells of all levels, finest level first, row-major within a level.
    """

    depth: Tensor | None = None
    """(B, Q) metres along the optical axis: the depth that decoding uses."""
    direct_depth: Tensor | None = None
    """(B, Q) metres: the regressed depth alone; equals ``depth`` where the head has nothing to fuse."""
    probabilistic_depth: Tensor | None = None
    """(B, Q) metres: the expectation over the depth bins; None where the head has none."""
    locations: Tensor | None = None
    """(Q, 2) x, y in pixels of the network's input: where each location stands."""
    level_shapes: list[tuple[int, int]] | None = None
    """Rows and columns of every level; their products sum to Q."""
    outputs: Any = None
    """The head's own maps, typed by the head, for its losses and its inference."""


WANTS = frozenset({"backbone", "fpn", "temporal_attention", "spatial_attention"})
"""Names of the costly fields that ``extract`` fills on request."""
