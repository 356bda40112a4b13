"""The typed result of a detector's forward pass, which distillation methods and figures read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from bevkd2.modeling.mono.grid import DenseGrid
    from bevkd2.modeling.mono.head import TowerFeatures


COSTLY = {"costly": True}
"""Metadata of a field that ``extract`` fills only where ``wants`` names it."""


@dataclasses.dataclass
class PreActivation:
    """Features before a stage's last ReLU, and what its last batch normalisation says of them."""

    features: Tensor
    """(R, C, H, W)."""
    mean: Tensor
    """(C,) the normalisation's bias: the mean of its output."""
    std: Tensor
    """(C,) the absolute value of the normalisation's weight: the standard deviation of its output."""


@dataclasses.dataclass
class Knowledge:
    """Fields that every detector can fill.

    B samples, N cameras (1 for monocular), Q queries or locations, K classes.

    A field is None where the detector has no such thing, or where it is costly (declared with :data:`COSTLY`)
    and was not named in ``wants``.
    """

    backbone: dict[str, Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """Features of the image backbone, name -> (B*N, C, H, W)."""
    pre_activation: dict[str, PreActivation] | None = dataclasses.field(default=None, metadata=COSTLY)
    """The same before their last ReLU; None where the backbone cannot tell."""
    fpn: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """Features of the neck, finest first, each (B*N, C, H, W)."""
    fpn_strides: list[int] | None = None
    """Stride of each level of ``fpn``, in pixels of the input image."""
    image_sizes: Tensor | None = None
    """(B*N, 2) float32: height and width in pixels before padding."""
    logits: Tensor | None = None
    """Class logits before the sigmoid, (B, Q, K): of the last layer's queries, or of all locations."""

    @classmethod
    def costly_fields(cls) -> frozenset[str]:
        """Returns the names of the fields that are filled only where ``wants`` names them."""
        return frozenset(field.name for field in dataclasses.fields(cls) if field.metadata.get("costly"))

    @classmethod
    def fields_to_fill(cls, wants: frozenset[str], partial: bool) -> frozenset[str]:
        """Returns the names of the fields that ``extract`` has to fill.

        Args:
            wants: names of fields.
            partial: only these; otherwise all that are not costly as well.

        Raises:
            ValueError: a name that is no field; it is named.
        """
        names = frozenset(field.name for field in dataclasses.fields(cls))
        if unknown := wants - names:
            raise ValueError(
                f"extract: {cls.__name__} has no field {sorted(unknown)}; expected names among "
                f"{sorted(names)}"
            )
        return wants if partial else wants | (names - cls.costly_fields())

    def filled(self, name: str) -> Any:
        """Returns the field ``name``, which must not be None.

        Raises:
            ValueError: it is None; the message says how it would be filled.
        """
        value = getattr(self, name)
        if value is None:
            remedy = (
                "name it in the wants of extract (a distillation method: in requires)"
                if name in self.costly_fields()
                else "this detector does not fill it"
            )
            raise ValueError(f"{type(self).__name__}.{name} is not filled: {remedy}")
        return value


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
    """The scene of each row."""
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
    bev_range: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 of the grid in metres, LIDAR_TOP frame."""
    bev_mask: Tensor | None = None
    """(B, N, H*W) bool: camera n sees at least one reference point of the pillar."""
    temporal_attention: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, M, 2, 1, P) float32 after softmax; dimension 3 is the queue:
    previous, current."""
    spatial_attention: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, M, L, P) float32 after softmax over L*P. It depends on the cell
    alone, so it is the same for every camera that sees the cell."""
    temporal_offsets: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, M, 2, 1, P, 2) x, y in BEV cells: where the temporal attention
    samples around the cell, in the previous and in the current BEV."""
    spatial_offsets: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, M, L, P, 2) x, y in cells of each level: where the spatial attention
    samples around the reference points; point p belongs to reference point p % Z."""
    temporal_outputs: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, C): the queries after the temporal attention, its residual and its
    normalisation."""
    spatial_outputs: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, C): the queries after the spatial attention, its residual and its
    normalisation."""
    layer_outputs: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every encoder layer, (B, H*W, C): the output of the layer; the last is ``bev_embed``."""
    reference_points: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, N, H*W, Z, 2) the Z points of every cell's pillar in every camera: x, y as fractions of the padded
    image; meaningless behind the camera."""
    class_logits: Tensor | None = None
    """(D, B, Q, K)."""
    box_codes: Tensor | None = None
    """(D, B, Q, 10): cx, cy (m), log w, log l, cz (m), log h, sin, cos of the published yaw, vx, vy (m/s)."""
    object_queries: Tensor | None = None
    """(Q, 2C) the decoder's queries: position first, then content."""
    decoder_states: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """For every decoder layer, (B, Q, C)."""
    decoder_reference_points: list[Tensor] | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, Q, 3) float32 x, y, z as fractions of the range: the initial ones, then after every layer."""
    bev_heatmap: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, K, H, W) logits of the auxiliary BEV head; always filled in training; None where there is none."""
    image_heatmap: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B*N, K, h, w) logits of the auxiliary image head on the finest FPN level; always filled in training;
    None where there is none."""
    bev_boxes: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, 6, H, W) of the auxiliary BEV box head (:mod:`bevkd2.modeling.bev.dense_boxes`); always filled in
    training; None where there is none."""
    image_boxes: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B*N, 6, h, w) of the auxiliary image box head on the finest FPN level; always filled in training; None
    where there is none."""
    state: TemporalState | None = None
    """For the next frame."""

    def seen_by_any_camera(self) -> Tensor:
        """Returns (B, H*W) bool: cells that at least one camera sees. Others do not count in distillation."""
        mask: Tensor = self.filled("bev_mask")
        return mask.any(dim=1)


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
    grid: DenseGrid | None = None
    """Shapes and strides of the levels, and the positions of the Q locations."""
    boxes: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, Q, 7) x, y, z of the gravity centre, length, height, width (m) and rotation_y, in the layout of
    CameraBoxes3D: the box of every location, of its most likely class where that decides."""
    boxes2d: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, Q, 4) x1, y1, x2, y2 in pixels, not beyond the image: the head's own, or else those around the
    projected ``boxes``, without gradient."""
    depth_uncertainty: Tensor | None = dataclasses.field(default=None, metadata=COSTLY)
    """(B, Q) logarithm of the predicted scale of the depth's error; None where the head has none."""
    towers: TowerFeatures | None = dataclasses.field(default=None, metadata=COSTLY)
    """Features of the head's towers, of every level and convolution."""
    outputs: Any = None
    """The head's own maps, of the head's own type, for its losses and its inference."""

    @property
    def locations(self) -> Tensor:
        """Returns (Q, 2) x, y of every location in pixels of the network's input."""
        grid: DenseGrid = self.filled("grid")
        return grid.locations

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """Returns rows and columns of every level; their products sum to Q."""
        grid: DenseGrid = self.filled("grid")
        return grid.shapes
