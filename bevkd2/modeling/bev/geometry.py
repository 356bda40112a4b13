"""The grid's geometry: which cameras see which cell, and how the previous grid lies in the present frame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bevkd2.modeling.bev.inputs import Frames
from bevkd2.structures import project_points
from bevkd2.structures.cameras import without_autocast

NUM_QUEUES = 2  # previous, current

Exists = Sequence[bool] | Tensor
"""Which samples have a past. In an exported graph it is a bool tensor (B,): a graph cannot branch on it."""


@dataclasses.dataclass
class History:
    """What the layers of one forward pass share about the past. B samples, Q = H*W cells."""

    queue: Tensor | None
    """(B, 2, Q, C): the previous BEV, turned into the present's frame, and the encoder's initial queries;
    rows without history are never read. None where no sample has any."""
    exists: Exists
    """Which samples have one."""
    reference_points: Tensor
    """(B, 2, Q, 2) float32: x, y as fractions of the grid; the previous frame's are shifted by the ego
    motion."""
    mask: Tensor = dataclasses.field(init=False)
    """(B, 1, 1, 1) bool: ``exists`` on the device, made once, so that no layer waits for its copy."""

    def __post_init__(self) -> None:
        device = self.reference_points.device
        self.mask = torch.as_tensor(self.exists, device=device)[:, None, None, None]

    def queue_for(self, query: Tensor) -> Tensor:
        """Returns (B, 2, Q, C) to attend to: without history, twice the running ``query`` (B, Q, C)."""
        running = query.unsqueeze(1).expand(-1, NUM_QUEUES, -1, -1)
        if self.queue is None:
            return running
        if not isinstance(self.exists, Tensor) and all(self.exists):
            return self.queue
        return torch.where(self.mask, self.queue.to(query.dtype), running)


@dataclasses.dataclass(frozen=True)
class LegacyOptions:
    """Faults of the published code that published weights were trained with; all are off by default."""

    aliased_shift: bool = False
    """The current frame's temporal reference points are shifted too."""
    rotate_center: tuple[float, float] | None = None
    """x, y in cells about which the previous grid is turned; None: the grid's centre."""
    padding_visible: bool = False
    """Points that project into the padding count as visible."""
    unwrapped_yaw: bool = False
    """A change of yaw across north is embedded as nearly 360 degrees."""


@dataclasses.dataclass(frozen=True)
class BEVGeometry:
    """Shape and range of the grid, and everything that follows from them without parameters."""

    bev_shape: tuple[int, int]
    """Rows (y) and columns (x)."""
    pc_range: Sequence[float]
    """x0, y0, z0, x1, y1, z1 in metres."""
    num_pillar_points: int
    use_shift: bool = True
    rotate_previous: bool = True
    bilinear: bool = False
    """The previous grid is turned and shifted at once by bilinear interpolation; else it is turned by nearest
    neighbour, and the reference points are shifted, as published."""
    legacy: LegacyOptions = LegacyOptions()

    @property
    def rotate_center(self) -> tuple[float, float]:
        """Returns x, y in cells about which the previous grid is turned."""
        height, width = self.bev_shape
        return self.legacy.rotate_center or (width / 2, height / 2)

    def project(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Projects the pillars of all cells, for every sample by its own calibration and image size.

        Returns:
            reference_points: (B, N, Q, Z, 2), see :func:`project_pillars`.
            visible: (B, N, Q, Z) bool.
        """
        points = pillar_points(self.bev_shape, self.pc_range, self.num_pillar_points, frames.lidar2img.device)
        sizes = frames.image_sizes
        if self.legacy.padding_visible:
            sizes = sizes.new_tensor(frames.padded_size).expand_as(sizes)
        return project_pillars(points, frames.lidar2img, sizes, frames.padded_size)

    def visible_pairs(self, frames: Frames) -> VisiblePairs:
        """Returns which camera sees which cell.

        Args:
            frames: calibrations and image sizes of the B samples.
        """
        return find_visible_pairs(*self.project(frames))

    def motion(self, can_bus: Tensor, previous: Tensor | None, exists: Exists) -> Tensor:
        """Computes the ego motion since the previous frame, by :func:`ego_motion`.

        Args:
            can_bus: (B, 18) float64, absolute.
            previous: (B, 18) float64 of the previous frame; None where no sample has a past.
            exists: which samples have a past.

        Returns:
            (B, 18) float64.
        """
        mask = torch.as_tensor(exists, device=can_bus.device)
        previous = can_bus if previous is None else previous
        return ego_motion(can_bus, previous, mask, wrap_yaw=not self.legacy.unwrapped_yaw)

    def history(
        self, queries: Tensor, motion: Tensor, previous_bev: Tensor | None, exists: Exists
    ) -> History:
        """Collects what the encoder's layers share about the past.

        Args:
            queries: (B, H*W, C), the encoder's input.
            motion: (B, 18) float64.
            previous_bev: (B, H*W, C) in the previous frame's pose; None where no sample has a past.
            exists: which samples have a past.
        """
        queue = None
        if previous_bev is not None and (isinstance(exists, Tensor) or any(exists)):
            queue = torch.stack([self.align(previous_bev, motion), queries], dim=1)
        return History(queue, exists, self.temporal_reference_points(motion, exists))

    def align(self, previous_bev: Tensor, motion: Tensor) -> Tensor:
        """Aligns the previous grid with the current pose.

        With ``bilinear`` it is turned and shifted; else it is only turned, by nearest neighbour,
        and the shift is that of :meth:`temporal_reference_points`. ``rotate_previous`` and
        ``use_shift`` turn either off.

        Args:
            previous_bev: (B, H*W, C) in the previous frame's pose.
            motion: (B, 18) float64 of :meth:`motion`.

        Returns:
            (B, H*W, C).
        """
        if self.bilinear:
            return sample_cells(previous_bev, self._source_points(motion), self.bev_shape)
        if not self.rotate_previous:
            return previous_bev
        return gather_cells(
            previous_bev, rotation_source_index(motion[:, 17], self.bev_shape, self.rotate_center)
        )

    def temporal_reference_points(self, motion: Tensor, exists: Exists) -> Tensor:
        """Returns where the cells look in the previous and in the current grid.

        Args:
            motion: (B, 18) float64 of :meth:`motion`.
            exists: which samples have a past; the others are not shifted.

        Returns:
            (B, 2, H*W, 2) float32 x, y in fractions of the grid: the previous and the current
            points.
        """
        shift = grid_shift(motion, self.pc_range).float() * float(self.use_shift and not self.bilinear)
        shift = shift * torch.as_tensor(exists, device=shift.device)[:, None]
        current = torch.ones_like(shift) if self.legacy.aliased_shift else torch.zeros_like(shift)
        by_queue = torch.stack([shift, shift * current], dim=1)
        return bev_reference_points(self.bev_shape, motion.device) + by_queue[:, :, None]

    def _source_points(self, motion: Tensor) -> Tensor:
        """Returns (B, H*W, 2) float64: where the cells' centres were in the previous grid, in cells."""
        size = motion.new_tensor([self.bev_shape[1], self.bev_shape[0]])
        center = motion.new_tensor(self.rotate_center)
        points = bev_reference_points(self.bev_shape, motion.device).double() * size - center
        if self.use_shift:
            points = points + (grid_shift(motion, self.pc_range) * size)[:, None]
        points = points.expand(motion.shape[0], -1, -1)
        if self.rotate_previous:
            angle = torch.deg2rad(motion[:, 17:18])
            x, y = points.unbind(-1)
            points = torch.stack(
                [angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1
            )
        return points + center


@dataclasses.dataclass
class VisiblePairs:
    """The (camera, cell) pairs to attend to, sorted by cell; made once per frame for all encoder layers.

    B samples, N cameras, Q cells, Z reference points in a pillar, R visible pairs.
    """

    reference_points: Tensor
    """(R, Z, 2) float32: x, y as fractions of the padded image. Points that the camera does not see are
    among them where another point of the same pillar is seen."""
    row_splits: Tensor
    """(B*Q + 1,) int64: pairs of cell b*Q + q are ``row_splits[b*Q + q] : row_splits[b*Q + q + 1]``."""
    row_value: Tensor
    """(R,) int64: b*N + n, the camera of every pair."""
    bev_mask: Tensor
    """(B, N, Q) bool: the camera sees at least one point of the pillar."""


def bev_reference_points(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the centres of the cells as fractions of the grid, row-major.

    Args:
        shape: (H, W) of the grid.
        device: of the result.

    Returns:
        (H*W, 2) float32 x, y in (0, 1).
    """
    height, width = shape
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def pillar_points(
    shape: tuple[int, int], pc_range: Sequence[float], num_points: int, device: torch.device
) -> Tensor:
    """Returns the reference points of every cell's pillar (BEVFormer, section 3.3).

    Heights are spread evenly from 0.5 m above the range's floor to 0.5 m below its ceiling.

    Args:
        shape: rows (y) and columns (x) of the grid.
        pc_range: x0, y0, z0, x1, y1, z1 in metres.
        num_points: Z.
        device: where to make them.

    Returns:
        (H*W, Z, 3) float32, metres in the LIDAR_TOP frame.
    """
    low = torch.tensor(pc_range[:3], device=device, dtype=torch.float32)
    extent = torch.tensor(pc_range[3:], device=device, dtype=torch.float32) - low
    depth = float(pc_range[5]) - float(pc_range[2])
    z = torch.linspace(0.5, depth - 0.5, num_points, device=device, dtype=torch.float32) / depth
    xy = bev_reference_points(shape, device)
    points = torch.cat(
        [xy[:, None].expand(-1, num_points, -1), z[None, :, None].expand(len(xy), -1, -1)], dim=-1
    )
    return points * extent + low


@torch.no_grad()
def project_pillars(
    points: Tensor, lidar2img: Tensor, visible_sizes: Tensor, padded_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Projects pillar points into every camera, in float32 whatever autocast does.

    Args:
        points: (Q, Z, 3) metres.
        lidar2img: (B, N, 4, 4) metres to pixels.
        visible_sizes: (B, N, 2) height and width in pixels of the area that counts as seen.
        padded_size: height and width in pixels of what the backbone read.

    Returns:
        (B, N, Q, Z, 2) x, y as fractions of the padded image, meaningless where the depth is not positive,
        and (B, N, Q, Z) bool: the point is in front of the camera and strictly inside the visible area.
    """
    num_cells, num_points = points.shape[:2]
    with without_autocast(points.device.type):
        uv, depth = project_points(points.reshape(1, 1, -1, 3).float(), lidar2img.float())
    uv = uv.unflatten(2, (num_cells, num_points))
    depth = depth.unflatten(2, (num_cells, num_points))
    limits = visible_sizes.flip(-1)[:, :, None, None]  # (width, height), as uv
    inside = ((uv > 0) & (uv < limits)).all(-1)
    scale = uv.new_tensor([padded_size[1], padded_size[0]])
    return uv / scale, inside & (depth > 1e-5)


def find_visible_pairs(reference_points: Tensor, visible: Tensor) -> VisiblePairs:
    """Lists the (camera, cell) pairs of a batch, each sample by its own calibration.

    Args:
        reference_points: (B, N, Q, Z, 2) of :func:`project_pillars`.
        visible: (B, N, Q, Z) bool of :func:`project_pillars`.
    """
    num_cameras = visible.shape[1]
    bev_mask = visible.any(-1)
    by_cell = bev_mask.transpose(1, 2)  # (B, Q, N): nonzero then sorts by sample, cell, camera
    sample, cell, camera = by_cell.nonzero(as_tuple=True)
    counts = by_cell.sum(-1).flatten()
    return VisiblePairs(
        reference_points=reference_points[sample, camera, cell].contiguous(),
        row_splits=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        row_value=sample * num_cameras + camera,
        bev_mask=bev_mask,
    )


def ego_motion(can_bus: Tensor, previous: Tensor, has_history: Tensor, *, wrap_yaw: bool = True) -> Tensor:
    """Replaces the absolute position and yaw angle in the 18-vector by the change since the previous frame.

    Args:
        can_bus: (B, 18) float64, absolute.
        previous: (B, 18) float64, absolute, of the previous frame; ignored where there is none.
        has_history: (B,) bool.
        wrap_yaw: bring the change of yaw into [-180, 180).

    Returns:
        (B, 18) float64: [0:3] metres in global axes, [17] degrees, both 0 without history; [16] stays the
        absolute yaw in radians.
    """
    delta = can_bus.clone()
    yaw = can_bus[:, 17] - previous[:, 17]
    if wrap_yaw:
        yaw = torch.remainder(yaw + 180, 360) - 180
    zero = torch.zeros_like(yaw)
    delta[:, :3] = torch.where(has_history[:, None], can_bus[:, :3] - previous[:, :3], zero[:, None])
    delta[:, 17] = torch.where(has_history, yaw, zero)
    return delta


def grid_shift(delta: Tensor, pc_range: Sequence[float]) -> Tensor:
    """Returns the ego translation as a fraction of the grid.

    A point that is at p now was at p + shift in the aligned previous grid.

    Args:
        delta: (B, 18) float64 of :func:`ego_motion`.
        pc_range: x0, y0, z0, x1, y1, z1 in metres.

    Returns:
        (B, 2) float64: rightward (x) and forward (y) displacement over the grid's extent.
    """
    x, y, yaw = delta[:, 0], delta[:, 1], delta[:, 16]
    shift_x = (yaw.sin() * x - yaw.cos() * y) / (pc_range[3] - pc_range[0])
    shift_y = (yaw.cos() * x + yaw.sin() * y) / (pc_range[4] - pc_range[1])
    return torch.stack([shift_x, shift_y], dim=-1)


def rotation_source_index(degrees: Tensor, shape: tuple[int, int], center: tuple[float, float]) -> Tensor:
    """Computes, for every cell, the cell that lands on it when the grid is turned; nearest neighbour.

    Args:
        degrees: (B,) float64: change of yaw.
        shape: rows (y) and columns (x) of the grid.
        center: x, y in cells of the fixed point.

    Returns:
        (B, H*W) int64, row-major; -1 where the source lies outside the grid.
    """
    height, width = shape
    angle = (degrees.double() * (math.pi / 180))[:, None]
    dx = torch.arange(width, device=degrees.device, dtype=torch.float64).repeat(height) + 0.5 - center[0]
    dy = (
        torch.arange(height, device=degrees.device, dtype=torch.float64).repeat_interleave(width)
        + 0.5
        - center[1]
    )
    column = (angle.cos() * dx - angle.sin() * dy + (center[0] - 0.5)).round().long()
    row = (angle.sin() * dx + angle.cos() * dy + (center[1] - 0.5)).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, -1)


def sample_cells(bev: Tensor, points: Tensor, shape: tuple[int, int]) -> Tensor:
    """Reads a grid between its cells by bilinear interpolation.

    Args:
        bev: (B, H*W, C).
        points: (B, P, 2) x, y in cells; the middle of the first cell is (0.5, 0.5).
        shape: (H, W).

    Returns:
        (B, P, C); the grid is 0 outside.
    """
    grid = bev.transpose(1, 2).unflatten(2, shape)
    where = 2 * points / points.new_tensor([shape[1], shape[0]]) - 1
    read = F.grid_sample(grid, where[:, None].to(grid.dtype), align_corners=False)
    return read[:, :, 0].transpose(1, 2)


def gather_cells(bev: Tensor, index: Tensor) -> Tensor:
    """Moves cells of a grid.

    Args:
        bev: (B, H*W, C).
        index: (B, H*W) int64: source cell, -1 for zeros.

    Returns:
        (B, H*W, C).
    """
    moved = bev.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, bev.shape[-1]))
    return moved * (index >= 0)[..., None].to(bev.dtype)
