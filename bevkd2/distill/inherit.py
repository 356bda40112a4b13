"""Weight inheriting (structured distillation, 3.2): the student takes over inputs that the teacher learned.

The paper fixes the BEV queries and the positional encodings, so that both models get the same inputs. The
object queries and the other learned inputs can be named too; that is not the paper's.

``freeze`` is the paper's scheme: the values are copied and never change. ``init`` is its ablation: they are
copied and then trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("freeze", "init", "off")
RESIZES = ("", "bilinear")
# Object queries are positions only through the layer that turns them into reference points: one without the
# other would give other reference points than the teacher's.
_TOGETHER = ("object_queries", "reference_points")
_ON_THE_GRID = ("bev_queries", "bev_position.row", "bev_position.column")  # RESIZE interpolates these


@runtime_checkable
class Inheritable(Protocol):
    """A model whose queries and positional encodings can be inherited."""

    @property
    def bev_shape(self) -> tuple[int, int]:
        """(H, W) of the BEV grid."""
        ...

    def inheritable(self) -> dict[str, nn.Parameter]:
        """Returns parameters by name.

        The names are those of DISTILL.INHERIT.PARAMS: ``bev_queries`` (H*W, C), ``bev_position.row``
        (H, C/2), ``bev_position.column`` (W, C/2), and what else of these there is: ``object_queries``
        (Q, 2C), ``reference_points.weight`` and ``.bias``, ``can_bus_mlp.<layer>.weight`` and ``.bias``,
        ``level_embeddings``, ``camera_embeddings``.
        """
        ...


def inherit(
    student: Inheritable, teacher: Inheritable, params: Sequence[str], mode: str, resize: str = ""
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Copies the named parameters of ``teacher`` into ``student``, and freezes them for ``mode="freeze"``.

    Args:
        student: the model that inherits; its parameters are changed in place.
        teacher: the model whose values are taken.
        params: names or prefixes of ``inheritable()``, as in DISTILL.INHERIT.PARAMS.
        mode: "freeze", "init" or "off".
        resize: "" or "bilinear": interpolates BEV queries and positions between different grids.

    Returns:
        Inherited pairs (student's parameter, teacher's) by name; empty for "off".

    Raises:
        ValueError: an unknown mode or name, object queries without the layer of their reference points, or
            shapes that differ; the message names both.
    """
    if mode not in MODES:
        raise ValueError(f"DISTILL.INHERIT.MODE: {mode!r} is not one of {', '.join(MODES)}")
    if resize not in RESIZES:
        raise ValueError(f"DISTILL.INHERIT.RESIZE: {resize!r} is not one of {RESIZES}")
    if mode == "off":
        return {}
    students, teachers = student.inheritable(), teacher.inheritable()
    names = _select(students, teachers, params)
    _check_together(names, students)
    pairs = {name: (students[name], teachers[name]) for name in names}
    for name, (target, source) in pairs.items():
        value = inherited_value(name, student, teacher, resize)
        with torch.no_grad():
            target.copy_(value)
        target.requires_grad_(mode != "freeze")
        logging.getLogger(__name__).info(
            "%s: student %s <- teacher %s, %s", name, tuple(target.shape), tuple(source.shape), mode
        )
    return pairs


def inherited_value(name: str, student: Inheritable, teacher: Inheritable, resize: str) -> Tensor:
    """Returns the value that the student's parameter must have: the teacher's, on the student's grid.

    Interpolation runs on the CPU, whichever device the models are on: a GPU rounds differently, and
    inheriting happens before the models move and is verified bit by bit afterwards.
    """
    target, source = student.inheritable()[name].detach(), teacher.inheritable()[name].detach()
    if target.shape == source.shape:
        return source
    resizable = name in _ON_THE_GRID and target.shape[1] == source.shape[1]
    if not resize or not resizable:
        remedy = "use the same BEV grid, or set DISTILL.INHERIT.RESIZE: bilinear"
        raise ValueError(
            f"DISTILL.INHERIT.PARAMS: teacher {name} is {tuple(source.shape)}, student's is "
            f"{tuple(target.shape)}; {remedy if resizable else 'use the same width and number of queries'}"
        )
    table = source.cpu()
    if name == "bev_queries":
        resized = _resize_grid(table, teacher.bev_shape, student.bev_shape)
    else:
        resized = F.interpolate(table.t()[None], size=len(target), mode="linear", align_corners=False)[0].t()
    return resized.to(target.device)


def verify_inherited(student: Inheritable, teacher: Inheritable, names: Sequence[str], resize: str) -> None:
    """Checks that frozen, inherited parameters still equal the teacher's.

    Raises:
        RuntimeError: one has moved; the message names it and the largest difference.
    """
    for name in names:
        value = student.inheritable()[name].detach()
        difference = (value - inherited_value(name, student, teacher, resize)).abs().max().item()
        if difference != 0.0:
            raise RuntimeError(
                f"inherited parameter {name} differs from the teacher's by up to {difference:.3g}, though "
                "DISTILL.INHERIT.MODE is freeze; a checkpoint of another teacher was loaded into the student "
                "(MODEL.WEIGHTS, --resume), or something outside the trainer wrote to it"
            )


def _select(
    students: dict[str, nn.Parameter], teachers: dict[str, nn.Parameter], params: Sequence[str]
) -> list[str]:
    names: list[str] = []
    for wanted in params:
        found = [n for n in students if n == wanted or n.startswith(f"{wanted}.")]
        if not found or any(n not in teachers for n in found):
            raise ValueError(
                f"DISTILL.INHERIT.PARAMS: {wanted!r} is not in both models; the student has "
                f"{sorted(students)}, the teacher {sorted(teachers)}"
            )
        names += [n for n in found if n not in names]
    return names


def _check_together(names: Sequence[str], students: dict[str, nn.Parameter]) -> None:
    """Refuses object queries without the layer that turns them into reference points, and the reverse."""
    parts = [part for part in _TOGETHER if any(_part_of(n) == part for n in students)]
    missing = [part for part in parts if not any(_part_of(name) == part for name in names)]
    if len(parts) == len(_TOGETHER) and len(missing) == 1:
        (named,) = set(parts) - set(missing)
        raise ValueError(
            f"DISTILL.INHERIT.PARAMS has {named}, but not {missing[0]}; the two go together, since an object "
            f"query is a position only through that layer: add {missing[0]}, or leave out {named}"
        )


def _part_of(name: str) -> str:
    return name.split(".")[0]


def _resize_grid(source: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    grid = source.t().reshape(1, -1, *old)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).flatten(2)[0].t()
