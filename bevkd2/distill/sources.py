"""Feature maps that methods compare, by the names that ``SOURCES`` lists.

- ``backbone.<name>``: one stage of the image backbone, such as ``backbone.res4``.
- ``fpn``, ``fpn.<i>``: all levels of the neck, or one, 0 the finest.
- ``bev``: the bird's-eye view as it leaves the encoder.
- ``bev.layers``, ``bev.temporal``, ``bev.spatial``: the outputs of every encoder layer, of its temporal or
  its spatial attention; with ``.<i>``, the student's layer i alone. Teacher's layers are found by
  :func:`bevkd2.distill.layers.map_layers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from bevkd2.distill.layers import Check, map_layers
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge

_LAYERS = {"layers": "layer_outputs", "temporal": "temporal_outputs", "spatial": "spatial_outputs"}


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """One feature map that both models have."""

    name: str
    """As in ``SOURCES``, with the index of the level or layer: ``fpn.0``."""
    field: str
    """Of the knowledge."""
    student_key: str | int | None
    """Name or index within the field; None where the field is one tensor."""
    teacher_key: str | int | None
    student_channels: int
    teacher_channels: int
    stride: int | None
    """Of both models' maps, in pixels of each model's own images; None on the BEV grid."""
    grid: tuple[int, int] | None
    """Rows and columns of both models' BEV grids; None in images."""

    @property
    def plane(self) -> Literal["image", "bev"]:
        """Returns what the rows and columns of the map are."""
        return "image" if self.grid is None else "bev"

    @property
    def requires(self) -> frozenset[str]:
        """Returns the fields of the knowledge that reading and masking the map takes."""
        return frozenset({self.field, "image_sizes"} if self.grid is None else {self.field, "bev_range"})

    def read(self, student: Knowledge, teacher: Knowledge, resize: bool = True) -> FeaturePair:
        """Returns the map of both models.

        Args:
            student: the student's knowledge.
            teacher: the teacher's.
            resize: where the teacher saw the images at another scale than the student, its map is resized
                (bilinear) to the student's.
        """
        ours, theirs = self._map(student, self.student_key), self._map(teacher, self.teacher_key)
        if resize:
            theirs = resized_to(theirs, ours)
        return FeaturePair(self, ours, theirs.detach())

    def _map(self, knowledge: Knowledge, key: str | int | None) -> Tensor:
        value: Any = knowledge.filled(self.field)
        found: Tensor = value if key is None else value[key]
        return found if self.grid is None else found.transpose(1, 2).unflatten(2, self.grid)


@dataclasses.dataclass(frozen=True)
class FeaturePair:
    """The same map of student and teacher."""

    source: FeatureSource
    student: Tensor
    """(R, C, h, w), with gradient; R are images, or samples where the map is a BEV grid."""
    teacher: Tensor
    """(R, C', h, w)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Returns rows and columns of the map."""
        return self.student.shape[-2], self.student.shape[-1]


def resized_to(teacher: Tensor, student: Tensor) -> Tensor:
    """Resizes the teacher's map to the rows and columns of the student's, bilinearly.

    Args:
        teacher: (R, C', h', w').
        student: (R, C, h, w), of which only the shape is read.

    Returns:
        (R, C', h, w); the teacher's map itself where the shapes are equal.
    """
    if teacher.shape[-2:] == student.shape[-2:]:
        return teacher
    return F.interpolate(teacher, size=student.shape[-2:], mode="bilinear", align_corners=False)


def resolve_sources(
    names: Sequence[str],
    student: FeatureShapes,
    teacher: FeatureShapes,
    check: Check,
    layer_map: Sequence[Sequence[int]] = (),
) -> list[FeatureSource]:
    """Finds the feature maps that ``SOURCES`` names.

    Args:
        names: see the module's description.
        student: shapes of the student's features.
        teacher: of the teacher's.
        check: the method's own check, which names its node in errors.
        layer_map: pairs of student's and teacher's encoder layers; empty: spread evenly.

    Raises:
        ValueError: an unknown name, a map that one of the two lacks, or maps of different strides or grids.
    """
    check(len(names) > 0, "SOURCES", "empty; expected names such as fpn, fpn.0, backbone.res4 or bev")
    found: list[FeatureSource] = []
    for name in names:
        root, _, rest = name.partition(".")
        if root == "backbone":
            found.append(_of_backbone(name, rest, student, teacher, check))
        elif root == "fpn":
            found += _of_neck(name, rest, student, teacher, check)
        elif root == "bev":
            found += _of_bev(name, rest, student, teacher, check, layer_map)
        else:
            expected = "expected backbone.<name>, fpn, fpn.<i>, bev, bev.layers, bev.temporal or bev.spatial"
            check(False, "SOURCES", f"{name!r}; {expected}")
    twice = sorted({source.name for source in found if [s.name for s in found].count(source.name) > 1})
    check(not twice, "SOURCES", f"{', '.join(twice)} named twice")
    return found


def _of_backbone(
    name: str, stage: str, student: FeatureShapes, teacher: FeatureShapes, check: Check
) -> FeatureSource:
    for role, shapes in (("student", student), ("teacher", teacher)):
        stages = ", ".join(shapes.backbone) or "none"
        check(stage in shapes.backbone, "SOURCES", f"{name!r}; the {role}'s backbone gives {stages}")
    ours, theirs = student.backbone[stage], teacher.backbone[stage]
    return _in_images(name, "backbone", stage, ours, theirs, check)


def _of_neck(
    name: str, index: str, student: FeatureShapes, teacher: FeatureShapes, check: Check
) -> list[FeatureSource]:
    count = min(len(student.fpn), len(teacher.fpn))
    if index:
        legal = index.isdecimal() and int(index) < count
        check(
            legal, "SOURCES", f"{name!r}; expected fpn.0 to fpn.{count - 1}, the levels that both necks have"
        )
        levels = [int(index)]
    else:
        check(
            len(student.fpn) == len(teacher.fpn),
            "SOURCES",
            f"{name!r}; the student's neck has {len(student.fpn)} levels, the teacher's {len(teacher.fpn)}; "
            "name levels that both have, such as fpn.0",
        )
        levels = list(range(count))
    return [
        _in_images(f"fpn.{level}", "fpn", level, student.fpn[level], teacher.fpn[level], check)
        for level in levels
    ]


def _in_images(
    name: str, field: str, key: str | int, student: Any, teacher: Any, check: Check
) -> FeatureSource:
    check(
        student.stride == teacher.stride,
        "SOURCES",
        f"{name}; its stride is {student.stride} in the student and {teacher.stride} in the teacher; a map "
        "must have one stride in both: choose another source, or give both the same strides",
    )
    return FeatureSource(
        name, field, key, key, int(student.channels), int(teacher.channels), int(student.stride), None
    )


def _of_bev(
    name: str,
    rest: str,
    student: FeatureShapes,
    teacher: FeatureShapes,
    check: Check,
    layer_map: Sequence[Sequence[int]],
) -> list[FeatureSource]:
    grids = []
    for role, shapes in (("student", student), ("teacher", teacher)):
        check(shapes.bev is not None, "SOURCES", f"{name!r}; the {role} has no bird's-eye view")
        assert shapes.bev is not None
        grids.append(shapes.bev)
    ours, theirs = grids
    check(
        ours.shape == theirs.shape,
        "SOURCES",
        f"{name}; the BEV grid has {ours.shape} rows and columns in the student and {theirs.shape} in the "
        "teacher; use the same grid",
    )
    channels = ours.channels, theirs.channels
    if not rest:
        return [FeatureSource("bev", "bev_embed", None, None, *channels, None, ours.shape)]
    kind, _, index = rest.partition(".")
    check(
        kind in _LAYERS and (not index or (index.isdecimal() and int(index) < ours.layers)),
        "SOURCES",
        f"{name!r}; expected bev, or bev.layers, bev.temporal or bev.spatial, each with .<i> for one of the "
        f"student's {ours.layers} encoder layers",
    )
    for role, shape in (("student", ours), ("teacher", theirs)):
        check(shape.layers > 0, "SOURCES", f"{name!r}; the {role} has no encoder layers")
    pairs = map_layers(ours.layers, theirs.layers, layer_map, check)
    return [
        FeatureSource(f"bev.{kind}.{i}", _LAYERS[kind], i, j, *channels, None, ours.shape)
        for i, j in pairs
        if not index or int(index) == i
    ]


def knowledge_class(sources: Sequence[FeatureSource]) -> type[Knowledge]:
    """Returns the class of knowledge that has all of the sources."""
    return BEVKnowledge if any(source.plane == "bev" for source in sources) else Knowledge
