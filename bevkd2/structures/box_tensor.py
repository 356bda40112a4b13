"""What every batch of oriented boxes shares, whatever its frame and the order of its columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

BoxesT = TypeVar("BoxesT", bound="BoxTensor")


class BoxTensor:
    """N boxes of seven columns (centre, size, heading), or nine with a velocity.

    Attributes:
        tensor: (N, 7) or (N, 9) floating point: gravity centre (3), length, width, height, heading[, velocity
            (2)]. The frame and the axes are the subclass's.
        COLUMNS: the subclass's names of the columns, for messages.
    """

    COLUMNS: ClassVar[str]

    def __init__(self, tensor: Tensor) -> None:
        """Wraps a tensor of boxes; it is not copied.

        Args:
            tensor: (N, 7) or (N, 9), see the class.

        Raises:
            ValueError: for another shape, or a tensor that is not of a floating point type.
        """
        name = type(self).__name__
        if tensor.ndim != 2 or tensor.shape[1] not in (7, 9):
            raise ValueError(
                f"{name}: the tensor is {tuple(tensor.shape)}, expected (N, 7) or (N, 9): {self.COLUMNS}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: the tensor is {tensor.dtype}, expected a floating point type")
        self.tensor = tensor

    @classmethod
    def empty(cls: type[BoxesT], box_dim: int = 9, dtype: torch.dtype = torch.float32) -> BoxesT:
        """Makes zero boxes on the CPU.

        Args:
            box_dim: 7 columns, or 9 with a velocity.
            dtype: of the coordinates.
        """
        return cls(torch.zeros((0, box_dim), dtype=dtype))

    @classmethod
    def cat(cls: type[BoxesT], boxes: Sequence[BoxesT]) -> BoxesT:
        """Concatenates boxes of the same layout.

        Args:
            boxes: one or more of this class with the same number of columns.

        Returns:
            All boxes, in order.

        Raises:
            ValueError: for an empty sequence or mixed layouts.
        """
        columns = sorted({b.tensor.shape[1] for b in boxes})
        if len(columns) != 1:
            raise ValueError(
                f"{cls.__name__}.cat: boxes with {columns or 'no'} columns, expected one layout, 7 or 9"
            )
        return cls(torch.cat([b.tensor for b in boxes]))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self: BoxesT, index: int | slice | Tensor) -> BoxesT:
        """Selects boxes by an integer (kept batched), a slice, an index tensor or a boolean mask."""
        if isinstance(index, int):
            return type(self)(self.tensor[index].unsqueeze(0))
        return type(self)(self.tensor[index])

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor)

    def __repr__(self) -> str:
        name, columns = type(self).__name__, self.tensor.shape[1]
        return f"{name}(num_boxes={len(self)}, columns={columns}, device={self.tensor.device})"

    def to(self: BoxesT, *args: torch.device | torch.dtype | str, **kwargs: bool) -> BoxesT:
        """Moves or casts the boxes; nothing is copied where neither changes.

        Args:
            args: those of ``Tensor.to``: a device, a dtype, or both.
            kwargs: the same by name, and ``non_blocking`` or ``copy``.

        Returns:
            New boxes; these are not changed.
        """
        return type(self)(self.tensor.to(*args, **kwargs))  # type: ignore[call-overload]

    def clone(self: BoxesT) -> BoxesT:
        """Returns a copy with its own memory."""
        return type(self)(self.tensor.clone())

    @property
    def device(self) -> torch.device:
        """Device of the boxes."""
        return self.tensor.device

    @property
    def has_velocity(self) -> bool:
        """Whether there are nine columns."""
        return self.tensor.shape[1] == 9

    @property
    def center(self) -> Tensor:
        """(N, 3) gravity centres in metres."""
        return self.tensor[:, :3]

    @property
    def size(self) -> Tensor:
        """(N, 3) length, width, height in metres."""
        return self.tensor[:, 3:6]

    @property
    def velocity(self) -> Tensor:
        """(N, 2) velocity on the ground plane in m/s.

        Raises:
            ValueError: where the boxes have seven columns.
        """
        if not self.has_velocity:
            name = type(self).__name__
            raise ValueError(f"{name}.velocity: these boxes have 7 columns, no velocity; build them with 9")
        return self.tensor[:, 7:9]
