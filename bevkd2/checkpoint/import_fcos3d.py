"""Converts between the key layout of mmdetection3d's FCOS3D and PGD and this package's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bevkd2.checkpoint.key_rules import ImportReport, KeyRules, register_importer

_HEAD = "bbox_head."
# Published branch (its convolutions, its last one), our branch.
_BRANCHES = (
    ("conv_cls_prev", "conv_cls", "class_branch"),
    ("conv_dir_cls_prev", "conv_dir_cls", "direction_branch"),
    ("conv_centerness_prev", "conv_centerness", "centerness_branch"),
    ("conv_attr_prev", "conv_attr", "extra_branches.attributes"),
    ("conv_depth_cls_prev", "conv_depth_cls", "extra_branches.depth_bins"),
    ("conv_weight_prevs.0", "conv_weights.0", "extra_branches.uncertainty"),
)
_KEYPOINT_CHANNELS = 16


def _rules(with_keypoints: bool) -> list[tuple[str, str]]:
    """Returns all pairs; published regressors and factors are numbered by which of them there are."""
    fourth = "keypoints" if with_keypoints else "velocity"
    regressors = ("offset", "depth", "size", "rotation", fourth, "boxes2d")
    scaled = [name for name in regressors if name not in ("rotation", "velocity")]
    branches = [
        *_BRANCHES,
        *(
            (f"conv_reg_prevs.{i}", f"conv_regs.{i}", f"regressors.{name}")
            for i, name in enumerate(regressors)
        ),
    ]
    rules = [
        ("backbone.{rest}", "image_backbone.{rest}"),
        ("neck.lateral_convs.{i}.conv.{rest}", "neck.lateral_convs.{i}.conv.{rest}"),
        ("neck.fpn_convs.{i}.conv.{rest}", "neck.output_convs.{i}.conv.{rest}"),
        (_HEAD + "fuse_lambda", "head.fuse_lambda"),
    ]
    for published, ours in (("cls_convs", "class_tower"), ("reg_convs", "box_tower")):
        rules += _convolutions(published, f"head.{ours}")
    for convs, last, ours in branches:
        rules += _convolutions(convs, f"head.{ours}.convs")
        rules.append((f"{_HEAD}{last}.{{rest}}", f"head.{ours}.out.{{rest}}"))
    rules += [
        (f"{_HEAD}scales.{{i}}.{j}.scale", f"head.scales.{{i}}.{name}") for j, name in enumerate(scaled)
    ]
    return rules


def _convolutions(published: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{_HEAD}{published}.{{i}}.conv.{{rest}}", f"{ours}.{{i}}.conv.{{rest}}"),
        (f"{_HEAD}{published}.{{i}}.gn.{{rest}}", f"{ours}.{{i}}.norm.{{rest}}"),
    ]


_KEYS = {
    with_keypoints: KeyRules("FCOS3D or PGD", _rules(with_keypoints)) for with_keypoints in (False, True)
}


@register_importer("fcos3d", "pgd")
def from_published(published: Mapping[str, Tensor]) -> ImportReport:
    """Renames the keys of a published FCOS3D or PGD.

    Args:
        published: state dict with ``backbone.``, ``neck.`` and ``bbox_head.`` keys; a leading ``module.``
            and the old name ``conv2_offset`` are understood.

    Returns:
        The renamed tensors, with an account of every key.

    Raises:
        KeyError: keys that no rule fits; the message names them.
        ValueError: two keys for one tensor.
    """
    fourth = [value for key, value in published.items() if key.endswith(_HEAD + "conv_regs.4.weight")]
    return _KEYS[bool(fourth) and len(fourth[0]) == _KEYPOINT_CHANNELS].from_published(published)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our keys to the published layout.

    Args:
        state: state dict of an FCOS3D or PGD of this package.

    Raises:
        KeyError: keys that the published layout lacks; the message names them.
    """
    return _KEYS["head.regressors.keypoints.out.weight" in state].to_published(state)
