"""Converts between the key layout of mmdetection3d's SMOKE (DLA-34) and this package's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd2.checkpoint.key_rules import ImportReport, KeyRules, register_importer

_BACKBONE = "image_backbone.body."
_HEAD = "bbox_head."
_UNREAD = "no forward pass reads it: the trees within this tree have projections of their own"


def _neck(published: str, ours: str) -> list[tuple[str, str]]:
    parts = (("projs", "projections"), ("ups", "upsamplings"), ("nodes", "nodes"))
    return [(f"neck.{published}.{theirs}.{{rest}}", f"neck.{ours}.{name}.{{rest}}") for theirs, name in parts]


def _branch(convs: str, last: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{_HEAD}{convs}.0.conv.{{rest}}", f"head.{ours}.convs.0.conv.{{rest}}"),
        (f"{_HEAD}{convs}.0.gn.{{rest}}", f"head.{ours}.convs.0.norm.{{rest}}"),
        (f"{_HEAD}{last}.{{rest}}", f"head.{ours}.out.{{rest}}"),
    ]


_RULES = KeyRules(
    "SMOKE",
    [
        *(
            (f"backbone.{{rest}}.norm{{i}}.{name}", f"{_BACKBONE}{{rest}}.bn{{i}}.{name}")
            for name in ("weight", "bias")
        ),
        *(
            (f"backbone.{{rest}}.norm.{name}", f"{_BACKBONE}{{rest}}.bn.{name}")
            for name in ("weight", "bias")
        ),
        ("backbone.{rest}", f"{_BACKBONE}{{rest}}"),
        *_neck("dla_up.ida_{i}", "stages.{i}"),
        *_neck("ida_up", "final"),
        *_branch("conv_cls_prev", "conv_cls", "class_branch"),
        *_branch("conv_reg_prevs.0", "conv_regs.0", "box_branch"),
    ],
    dropped={
        f"backbone.level{level}.project.{name}": _UNREAD
        for level in (3, 4)
        for name in ("0.weight", "1.weight", "1.bias")
    },
)


@register_importer("smoke")
def from_published(published: Mapping[str, Tensor]) -> ImportReport:
    """Renames the keys of a published SMOKE.

    Args:
        published: state dict with ``backbone.``, ``neck.`` and ``bbox_head.`` keys; a leading ``module.`` is
            understood.

    Returns:
        The renamed tensors, with an account of every key.

    Raises:
        KeyError: keys that no rule fits; the message names them.
        ValueError: two keys for one tensor.
    """
    return _RULES.from_published(published)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our keys to the published layout, without the projections that are never read.

    Args:
        state: state dict of a SMOKE of this package.

    Raises:
        KeyError: keys that the published layout lacks; the message names them.
    """
    return _RULES.to_published(state)
