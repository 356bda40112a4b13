"""Inheriting: the student takes over parameters of the teacher when it is built.

Weight inheriting of structured distillation (3.2) fixes the BEV queries and the positional encodings, so that
both models get the same inputs. ``freeze`` is the paper's scheme: the values are copied and never change.
``init`` is its ablation: they are copied and then trained. Any other parameters can be named too, by prefix:
other learned inputs, the neck, the decoder, a head. That is not the paper's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("freeze", "init", "off")
RESIZES = ("", "bilinear")
FROZEN_KEY, INIT_KEY = "DISTILL.INHERIT.PARAMS", "DISTILL.INHERIT.INIT_PARAMS"
_ON_THE_GRID = ("bev_queries", "bev_position.row", "bev_position.column")  # RESIZE interpolates these


@runtime_checkable
class Inheritable(Protocol):
    """A model whose learned inputs have short names, and whose grid they may be resized to."""

    @property
    def bev_shape(self) -> tuple[int, int]:
        """(H, W) of the BEV grid."""
        ...

    def inheritable(self) -> dict[str, nn.Parameter]:
        """Returns learned inputs by name.

        ``bev_queries`` (H*W, C), ``bev_position.row`` (H, C/2), ``bev_position.column`` (W, C/2), and what
        else of these there is: ``object_queries`` (Q, 2C), ``reference_points.weight`` and ``.bias``,
        ``can_bus_mlp.<layer>.weight`` and ``.bias``, ``level_embeddings``, ``camera_embeddings``.
        """
        ...


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    params: Sequence[str],
    mode: str,
    resize: str = "",
    key: str = FROZEN_KEY,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies the named parameters of ``teacher`` into ``student``, and freezes them for ``mode="freeze"``.

    Buffers under a name, such as the statistics of a batch normalisation, are copied too.

    Args:
        student: the model that inherits; its parameters are changed in place.
        teacher: the model whose values are taken.
        params: names or prefixes of ``inheritable()``, or of the state dicts, such as ``neck``.
        mode: "freeze", "init" or "off".
        resize: "" or "bilinear": interpolates BEV queries and positions between different grids.
        key: the config key that lists ``params``, for errors.

    Returns:
        Inherited pairs (student's tensor, teacher's) by name; empty for "off".

    Raises:
        ValueError: an unknown mode or name, object queries without the layer of their reference points,
            statistics that cannot be frozen, or shapes that differ; the message names both.
    """
    if mode not in MODES:
        raise ValueError(f"DISTILL.INHERIT.MODE: {mode!r} is not one of {', '.join(MODES)}")
    if resize not in RESIZES:
        raise ValueError(f"DISTILL.INHERIT.RESIZE: {resize!r} is not one of {RESIZES}")
    if mode == "off":
        return {}
    students, teachers = _tensors(student), _tensors(teacher)
    names = _select(student, students, teachers, params, key)
    if mode == "freeze":
        _check_statistics(student, names, key)
    pairs = {name: (students[name], teachers[name]) for name in names}
    for name, (target, source) in pairs.items():
        value = _inherited_value(name, student, teacher, resize, key)
        with torch.no_grad():
            target.copy_(value)
        if isinstance(target, nn.Parameter):
            target.requires_grad_(mode != "freeze")
        logging.getLogger(__name__).info(
            "%s: student %s <- teacher %s, %s", name, tuple(target.shape), tuple(source.shape), mode
        )
    return pairs


def check_together(student: nn.Module, inherited: Mapping[str, Tensor], named: Sequence[str]) -> None:
    """Refuses object queries without the layer that turns them into reference points, and the reverse.

    An object query is a position only through that layer: one without the other would give other reference
    points than the teacher's.

    Args:
        student: the model that inherits.
        inherited: its inherited tensors, by name.
        named: the names and prefixes that the config lists.

    Raises:
        ValueError: one is inherited without the other.
    """
    inputs = student.inheritable() if isinstance(student, Inheritable) else {}
    layer = {id(tensor) for name, tensor in inputs.items() if name.startswith("reference_points.")}
    queries = inputs.get("object_queries")
    if queries is None or not layer:
        return
    taken = {id(tensor) for tensor in inherited.values()}
    has_queries, has_layer = id(queries) in taken, layer <= taken
    asked = any(name.split(".")[0] == "reference_points" for name in named)
    if has_queries == has_layer or (has_layer and not asked):  # a whole decoder brings its layer along
        return
    there, missing = "object_queries", "reference_points"
    if has_layer:
        there, missing = missing, there
    raise ValueError(
        f"DISTILL.INHERIT names {there}, but not {missing}; the two go together, since an object query is a "
        f"position only through that layer: add {missing}, or leave out {there}"
    )


def verify_inherited(student: nn.Module, teacher: nn.Module, names: Sequence[str], resize: str) -> None:
    """Checks that frozen, inherited parameters still equal the teacher's.

    Args:
        student: the detector that is trained.
        teacher: the frozen one.
        names: of the student's parameters that were inherited.
        resize: ``DISTILL.INHERIT.RESIZE``, by which they were fitted to the student's shapes.

    Raises:
        RuntimeError: one has moved; the message names it and the largest difference.
    """
    students = _tensors(student)
    for name in names:
        value = students[name].detach()
        wanted = _inherited_value(name, student, teacher, resize, FROZEN_KEY)
        difference = (value - wanted).abs().max().item()
        if difference != 0.0:
            raise RuntimeError(
                f"inherited parameter {name} differs from the teacher's by up to {difference:.3g}, though "
                "DISTILL.INHERIT.MODE is freeze; a checkpoint of another teacher was loaded into the student "
                "(MODEL.WEIGHTS, --resume), or something outside the trainer wrote to it"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers by their names in the state dict and by their short names."""
    short = model.inheritable() if isinstance(model, Inheritable) else {}
    named: dict[str, Tensor] = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }
    return named | short


def _select(
    student: nn.Module,
    students: Mapping[str, Tensor],
    teachers: Mapping[str, Tensor],
    params: Sequence[str],
    key: str,
) -> list[str]:
    """Returns the names of the wanted tensors, each once; short names before those of state dicts."""
    short = student.inheritable() if isinstance(student, Inheritable) else {}
    names: list[str] = []
    for wanted in params:
        found = [n for n in short if _is_part(n, wanted)] or [n for n in students if _is_part(n, wanted)]
        if not found or any(n not in teachers for n in found):
            lacking = [n for n in found if n not in teachers] or [wanted]
            raise ValueError(
                f"{key}: {lacking[0]!r} is not in both models; expected prefixes of parameters of both, such "
                f"as {', '.join(_roots(students, teachers))}"
            )
        taken = {id(students[n]) for n in names}
        names += [n for n in found if id(students[n]) not in taken]
    return names


def _roots(students: Mapping[str, Tensor], teachers: Mapping[str, Tensor]) -> list[str]:
    return sorted({name.split(".")[0] for name in students} & {name.split(".")[0] for name in teachers})


def _is_part(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _check_statistics(student: nn.Module, names: Sequence[str], key: str) -> None:
    """Refuses to freeze a batch normalisation, whose statistics training would go on changing."""
    for name, module in student.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean" in names:
            raise ValueError(
                f"{key}: {name} is a batch normalisation, whose statistics would change in training although "
                f"DISTILL.INHERIT.MODE is freeze; name it in {INIT_KEY} instead, or use a frozen or group "
                "normalisation"
            )


def _inherited_value(name: str, student: nn.Module, teacher: nn.Module, resize: str, key: str) -> Tensor:
    """Returns the value that the student's tensor must have: the teacher's, on the student's grid.

    Interpolation runs on the CPU, whichever device the models are on: a GPU rounds differently, and
    inheriting happens before the models move and is verified bit by bit afterwards.
    """
    target, source = _tensors(student)[name].detach(), _tensors(teacher)[name].detach()
    if target.shape == source.shape:
        return source
    on_grid = isinstance(student, Inheritable) and isinstance(teacher, Inheritable) and name in _ON_THE_GRID
    resizable = on_grid and target.shape[1] == source.shape[1]
    if not resize or not resizable:
        inputs = isinstance(student, Inheritable) and name in student.inheritable()
        remedy = "use the same width and number of queries" if inputs else "use the same architecture there"
        if resizable:
            remedy = "use the same BEV grid, or set DISTILL.INHERIT.RESIZE: bilinear"
        raise ValueError(
            f"{key}: teacher {name} is {tuple(source.shape)}, student's is {tuple(target.shape)}; {remedy}"
        )
    assert isinstance(student, Inheritable) and isinstance(teacher, Inheritable)
    table = source.cpu()
    if name == "bev_queries":
        resized = _resize_grid(table, teacher.bev_shape, student.bev_shape)
    else:
        resized = F.interpolate(table.t()[None], size=len(target), mode="linear", align_corners=False)[0].t()
    return resized.to(target.device)


def _resize_grid(source: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    grid = source.t().reshape(1, -1, *old)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).flatten(2)[0].t()
