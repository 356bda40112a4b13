"""Weight inheriting (structured distillation, 3.2): the student takes the teacher's queries and positions.

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


@runtime_checkable
class Inheritable(Protocol):
    """A model whose queries and positional encodings can be inherited."""

    @property
    def bev_shape(self) -> tuple[int, int]:
        """(H, W) of the BEV grid."""
        ...

    def inheritable(self) -> dict[str, nn.Parameter]:
        """Returns parameters by name: bev_queries (H*W, C), bev_position.row (H, C/2), bev_position.column
        (W, C/2), object_queries (Q, 2C)."""
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
        ValueError: an unknown mode or name, or shapes that differ; both are named.
    """
    if mode not in MODES:
        raise ValueError(f"DISTILL.INHERIT.MODE: {mode!r} is not one of {', '.join(MODES)}")
    if resize not in RESIZES:
        raise ValueError(f"DISTILL.INHERIT.RESIZE: {resize!r} is not one of {RESIZES}")
    if mode == "off":
        return {}
    ours, theirs = student.inheritable(), teacher.inheritable()
    pairs = {name: (ours[name], theirs[name]) for name in _select(ours, theirs, params)}
    for name, (mine, source) in pairs.items():
        value = inherited_value(name, student, teacher, resize)
        with torch.no_grad():
            mine.copy_(value)
        mine.requires_grad_(mode != "freeze")
        logging.getLogger(__name__).info(
            "%s: student %s <- teacher %s, %s", name, tuple(mine.shape), tuple(source.shape), mode
        )
    return pairs


def inherited_value(name: str, student: Inheritable, teacher: Inheritable, resize: str) -> Tensor:
    """Returns what the student's parameter ``name`` must equal: the teacher's, on the student's grid.

    Interpolation runs on the CPU wherever the models are: a GPU rounds otherwise, and inheriting, which
    happens before the models move, is verified bit by bit afterwards.
    """
    mine, source = student.inheritable()[name].detach(), teacher.inheritable()[name].detach()
    if mine.shape == source.shape:
        return source
    if not resize or name.startswith("object_queries") or mine.shape[1] != source.shape[1]:
        remedy = "use the same width and number of queries"
        if mine.shape[1] == source.shape[1] and not name.startswith("object_queries"):
            remedy = "use the same BEV grid, or set DISTILL.INHERIT.RESIZE: bilinear"
        raise ValueError(
            f"DISTILL.INHERIT.PARAMS: teacher {name} is {tuple(source.shape)}, student's is "
            f"{tuple(mine.shape)}; {remedy}"
        )
    table = source.cpu()
    if name == "bev_queries":
        resized = _resize_grid(table, teacher.bev_shape, student.bev_shape)
    else:
        resized = F.interpolate(table.t()[None], size=len(mine), mode="linear", align_corners=False)[0].t()
    return resized.to(mine.device)


def verify_inherited(student: Inheritable, teacher: Inheritable, names: Sequence[str], resize: str) -> None:
    """Checks that frozen, inherited parameters still are what the teacher's say.

    Raises:
        RuntimeError: one has moved; the message names it and the largest difference.
    """
    for name in names:
        mine = student.inheritable()[name].detach()
        difference = (mine - inherited_value(name, student, teacher, resize)).abs().max().item()
        if difference != 0.0:
            raise RuntimeError(
                f"inherited parameter {name} differs from the teacher's by up to {difference:.3g}, though "
                "DISTILL.INHERIT.MODE is freeze; a checkpoint of another teacher was loaded into the student "
                "(MODEL.WEIGHTS, --resume), or something outside the trainer wrote to it"
            )


def _select(
    ours: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter], params: Sequence[str]
) -> list[str]:
    names: list[str] = []
    for wanted in params:
        found = [n for n in ours if n == wanted or n.startswith(f"{wanted}.")]
        if not found or any(n not in theirs for n in found):
            raise ValueError(
                f"DISTILL.INHERIT.PARAMS: {wanted!r} is not in both models; the student has {sorted(ours)}, "
                f"the teacher {sorted(theirs)}"
            )
        names += [n for n in found if n not in names]
    return names


def _resize_grid(source: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    grid = source.t().reshape(1, -1, *old)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).flatten(2)[0].t()
