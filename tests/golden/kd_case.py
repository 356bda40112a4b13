"""Recorded inputs of distillation losses as the knowledge and the targets that methods read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bevkd2.distill  # noqa: F401  (registers)
from bevkd2.config import get_cfg
from bevkd2.d2 import ShapeSpec
from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.modeling.detector import FeatureShapes

Case = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class RecordedObjects:
    """The part of targets that methods of features, and of dense class predictions, read."""

    boxes2d: list[Tensor]
    """(n, 4) of each image, in pixels."""
    assigned: Tensor | None = None
    """(B, Q) int64, -1 for background."""

    def image_boxes(self) -> list[Tensor]:
        """Returns (n, 4) of each image."""
        return self.boxes2d

    def assignment(self) -> Tensor:
        """Returns (B, Q) int64."""
        assert self.assigned is not None
        return self.assigned


def load(path: Path) -> dict[str, Tensor]:
    """The arrays of a recording by name; floating ones in double precision."""
    with np.load(path, allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
    return {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def cases_of(arrays: Case, ending: str) -> list[str]:
    """The prefixes of the cases: those of arrays named <prefix>/<ending>.

    Raises:
        LookupError: there is none.
    """
    found = sorted(key.removesuffix(f"/{ending}") for key in arrays if key.endswith(f"/{ending}"))
    if not found:
        raise LookupError(f"no array is named <case>/{ending}")
    return found


def listed(arrays: Case, name: str) -> list[Tensor]:
    """Arrays <name>/0, <name>/1, ...

    Raises:
        LookupError: there is none.
    """
    found = []
    while f"{name}/{len(found)}" in arrays:
        found.append(arrays[f"{name}/{len(found)}"])
    if not found:
        raise LookupError(f"no array is named {name}/0")
    return found


def shapes_of(
    neck: Sequence[tuple[int, int]], backbone: Mapping[str, tuple[int, int]] | None = None
) -> FeatureShapes:
    """Shapes of features; each is (channels, stride)."""
    return FeatureShapes(
        backbone={
            name: ShapeSpec(channels=channels, stride=stride)
            for name, (channels, stride) in (backbone or {}).items()
        },
        fpn=[ShapeSpec(channels=channels, stride=stride) for channels, stride in neck],
    )


def build(name: str, student: FeatureShapes, teacher: FeatureShapes, **settings: Any) -> Any:
    """A method of the registry in double precision, its defaults overridden."""
    cls = DISTILL_REGISTRY.get(name)
    node = get_cfg().DISTILL[cls.node]
    for key, value in settings.items():
        node[key] = value
    return cls(node, student, teacher).double()


def total(losses: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The sum of a method's losses."""
    return losses if isinstance(losses, Tensor) else torch.stack(list(losses.values())).sum()


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that collect a gradient."""
    return [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss; zeros where it does not depend on an input."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for gradient, tensor in zip(found, inputs, strict=True)
    ]
