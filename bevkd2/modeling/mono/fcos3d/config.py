"""The only place that reads MODEL.FCOS3D and MODEL.PGD."""

from __future__ import annotations

import itertools
from typing import Any

from bevkd2.config import CfgNode, class_names
from bevkd2.modeling.mono.config import check_prior_classes, pixel_arguments, pyramid_arguments
from bevkd2.modeling.mono.fcos3d.box_prior import BoxPrior
from bevkd2.modeling.mono.fcos3d.decode import DecodeOptions
from bevkd2.modeling.mono.fcos3d.head import DenseHead, DenseHeadOptions
from bevkd2.modeling.mono.fcos3d.losses import DenseCriterion

# Published ends of the first and the last level's range (px).
_NEAREST, _FARTHEST = -1.0, 1e8
# nuScenes's eight attributes, and one for none: the labels of the only data that have any.
_ATTRIBUTES = 9


def fcos3d_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Builds the parts of an FCOS3D.

    Args:
        cfg: the whole config.

    Returns:
        The keyword arguments of its constructor.

    Raises:
        ValueError: keys that contradict each other.
    """
    node = cfg.MODEL.FCOS3D
    options = DenseHeadOptions(num_attributes=node.ATTRIBUTES, velocity=node.VELOCITY)
    return _arguments(cfg, options, criterion={}, decoding={})


def pgd_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Builds the parts of a PGD.

    Args:
        cfg: the whole config.

    Returns:
        The keyword arguments of its constructor.

    Raises:
        ValueError: keys that contradict each other.
    """
    shared, pgd = cfg.MODEL.FCOS3D, cfg.MODEL.PGD
    if pgd.DEPTH_BINS < 2 or pgd.DEPTH_UNIT <= 0:
        raise ValueError(
            f"MODEL.PGD: DEPTH_BINS is {pgd.DEPTH_BINS}, DEPTH_UNIT {pgd.DEPTH_UNIT}, expected 2 bins at "
            "least and a unit above 0; without a depth distribution the detector is FCOS3D"
        )
    options = DenseHeadOptions(
        num_attributes=shared.ATTRIBUTES,
        velocity=shared.VELOCITY,
        depth_bins=pgd.DEPTH_BINS,
        uncertainty=pgd.UNCERTAINTY,
        keypoints=pgd.KEYPOINTS,
        boxes2d=pgd.BOXES2D,
    )
    loss = pgd.LOSS
    criterion = {
        "depth_bin_size": pgd.DEPTH_UNIT,
        "uncertainty_weight": loss.UNCERTAINTY_WEIGHT,
        "keypoint_weight": loss.KEYPOINT_WEIGHT,
        "box2d_weight": loss.BOX2D_WEIGHT,
        "consistency_depth": loss.CONSISTENCY_DEPTH,
        "loss_weights": {"consistency": loss.CONSISTENCY_WEIGHT},
    }
    return _arguments(cfg, options, criterion=criterion, decoding={"depth_unit": pgd.DEPTH_UNIT})


def _arguments(
    cfg: CfgNode, options: DenseHeadOptions, criterion: dict[str, Any], decoding: dict[str, Any]
) -> dict[str, Any]:
    node, num_classes = cfg.MODEL.FCOS3D, len(class_names(cfg, single_images=True))
    pyramid = pyramid_arguments(cfg)
    strides = pyramid["neck"].strides
    _check(node, strides)
    _refuse_random_windows(cfg)
    if max(len(node.DEPTH_PRIORS), len(node.SIZE_PRIORS)) > 1:
        check_prior_classes(cfg, "FCOS3D")
    return {
        **pyramid,
        **pixel_arguments(cfg),
        "num_classes": num_classes,
        "head": _head(cfg, num_classes, len(strides), options),
        "criterion": _criterion(node, strides, criterion),
        "regress_ranges": list(itertools.pairwise([_NEAREST, *node.REGRESS_BOUNDS, _FARTHEST])),
        "center_radius": node.CENTER_RADIUS,
        "decoding": DecodeOptions(
            direction_offset=node.DIRECTION_OFFSET,
            candidates_per_level=node.TEST.CANDIDATES_PER_LEVEL,
            nms_threshold=node.TEST.NMS_THRESHOLD,
            nms_inclusive=node.TEST.NMS_INCLUSIVE,
            score_threshold=node.TEST.SCORE_THRESHOLD,
            max_detections=node.TEST.MAX_DETECTIONS,
            **decoding,
        ),
    }


def _head(cfg: CfgNode, num_classes: int, num_levels: int, options: DenseHeadOptions) -> DenseHead:
    node = cfg.MODEL.FCOS3D
    branches = {**node.BRANCHES, **cfg.MODEL.PGD.BRANCHES}
    return DenseHead(
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        num_classes=num_classes,
        num_levels=num_levels,
        feature_channels=node.FEATURE_CHANNELS,
        stacked_convs=node.STACKED_CONVS,
        deformable_last=node.DCN_ON_LAST_CONV,
        widths={name.lower(): widths for name, widths in branches.items()},
        prior=BoxPrior(num_classes, node.DEPTH_PRIORS, node.SIZE_PRIORS),
        options=options,
    )


def _criterion(node: CfgNode, strides: list[int], pgd: dict[str, Any]) -> DenseCriterion:
    loss = node.LOSS
    weights = {
        "cls": loss.CLASS_WEIGHT,
        "direction": loss.DIRECTION_WEIGHT,
        "centerness": loss.CENTERNESS_WEIGHT,
        "attribute": loss.ATTRIBUTE_WEIGHT,
    }
    shared = {
        "strides": strides,
        "box_code_weights": loss.CODE_WEIGHTS,
        "direction_offset": node.DIRECTION_OFFSET,
        "center_radius": node.CENTER_RADIUS,
        "box_beta": loss.BETA,
        "depth_beta": loss.DEPTH_BETA,
        "focal_alpha": loss.FOCAL_ALPHA,
        "focal_gamma": loss.FOCAL_GAMMA,
        # 1 stands for the finest level's longest distance, in its strides.
        "keypoint_range": [*node.REGRESS_BOUNDS, _FARTHEST][0] / strides[0],
    }
    return DenseCriterion(**shared | pgd | {"loss_weights": weights | pgd.get("loss_weights", {})})


def _refuse_random_windows(cfg: CfgNode) -> None:
    """These heads learn depths from every image, and a shift or scale changes what a depth looks like."""
    affine = cfg.INPUT.AFFINE
    if affine.ENABLED and affine.PROB > 0:
        raise ValueError(
            f"INPUT.AFFINE.PROB is {affine.PROB}, expected 0: {cfg.MODEL.META_ARCHITECTURE} learns depths "
            "from every image, and a random window makes them wrong; only SMOKE leaves such images out"
        )


def _check(node: CfgNode, strides: list[int]) -> None:
    bounds, codes = list(node.REGRESS_BOUNDS), 9 if node.VELOCITY else 7
    rules = [
        (
            len(bounds) == len(strides) - 1 and bounds == sorted(set(bounds)),
            f"REGRESS_BOUNDS is {bounds}, expected {len(strides) - 1} rising numbers, one less than the "
            f"levels of MODEL.FPN (strides {strides})",
        ),
        (
            len(node.LOSS.CODE_WEIGHTS) == codes,
            f"LOSS.CODE_WEIGHTS has {len(node.LOSS.CODE_WEIGHTS)} numbers, expected {codes} with VELOCITY "
            f"{node.VELOCITY}",
        ),
        (
            node.ATTRIBUTES in (0, _ATTRIBUTES),
            f"ATTRIBUTES is {node.ATTRIBUTES}, expected {_ATTRIBUTES} (nuScenes's eight, and one for none) "
            "or 0 for a model without them",
        ),
        (
            min(node.TEST.CANDIDATES_PER_LEVEL, node.TEST.MAX_DETECTIONS) >= 1,
            f"TEST.CANDIDATES_PER_LEVEL is {node.TEST.CANDIDATES_PER_LEVEL}, TEST.MAX_DETECTIONS "
            f"{node.TEST.MAX_DETECTIONS}, expected 1 at least",
        ),
    ]
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ValueError(f"MODEL.FCOS3D: {'; '.join(broken)}")
