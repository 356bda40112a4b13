"""The keys of MODEL.FCOS3D and MODEL.PGD, and the parts that are built from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bevkd2.config import CfgNode, add_config_extension, add_removed_key, check_rules, class_names
from bevkd2.modeling.detector import detector_arguments
from bevkd2.modeling.mono.detector import check_prior_classes
from bevkd2.modeling.mono.fcos3d.decode import DecodeOptions
from bevkd2.modeling.mono.fcos3d.head import DenseHead, DenseHeadOptions, TowerShape
from bevkd2.modeling.mono.fcos3d.losses import DenseCriterion, DenseLossOptions
from bevkd2.modeling.mono.fcos3d.priors import BoxPrior

BRANCH_NAMES = (
    "class",
    "direction",
    "centerness",
    "attributes",
    "offset",
    "depth",
    "size",
    "rotation",
    "velocity",
    "depth_bins",
    "uncertainty",
    "keypoints",
    "boxes2d",
)
# Published ends of the first and the last level's range (px).
_NEAREST, _FARTHEST = -1.0, 1e8
# nuScenes's eight attributes, and one for none: the labels of the only data that have any.
_ATTRIBUTES = 9

for _node in ("FCOS3D", "PGD"):
    add_removed_key(
        f"MODEL.{_node}.BRANCHES",
        'use MODEL.FCOS3D.BRANCH_CHANNELS: BRANCHES: {CENTERNESS: [64]} is [["centerness", 64]] there, and a '
        'value of [0] is a name alone, [["centerness"]]',
    )
add_removed_key("MODEL.FCOS3D.TEST.NMS_INCLUSIVE", "boxes are suppressed above NMS_THRESHOLD, not at it")


@add_config_extension
def add_fcos3d_config(cfg: CfgNode) -> None:
    """Adds MODEL.FCOS3D and MODEL.PGD; the values are those of the published PGD on KITTI.

    The number of classes is that of DATASETS.CLASSES, and the priors are in its order.

    Args:
        cfg: the whole config.
    """
    cfg.MODEL.FCOS3D = CfgNode()
    _add_shared(cfg.MODEL.FCOS3D)
    cfg.MODEL.PGD = CfgNode()
    _add_pgd(cfg.MODEL.PGD)


def _add_shared(head: CfgNode) -> None:
    head.FEATURE_CHANNELS = 256  # of both towers
    head.STACKED_CONVS = 2  # of each tower
    head.DCN_ON_LAST_CONV = True  # the last of them is DCNv2
    head.ATTRIBUTES = 0  # attribute classes; nuScenes: 9, the last is "none"
    head.VELOCITY = False  # predict vx, vz
    # Mean and deviation (m) of the depth, one pair or one per class; []: the exponential of the raw number.
    head.DEPTH_PRIORS = [[28.01, 16.32]]
    # Length, height, width (m) of every class, multiplied by an exponential; []: the exponential alone.
    head.SIZE_PRIORS = [[0.8, 1.73, 0.6], [1.76, 1.73, 0.6], [3.9, 1.56, 1.6]]
    # Classes of the rows; required if DATASETS.CLASSES has other classes than the default, but as many.
    head.PRIOR_CLASSES = []
    head.DIRECTION_OFFSET = 0.7854  # where the first half of local yaws begins (rad; published: rounded pi/4)
    # Branches whose 3x3 convolutions, before the 1x1 convolution that predicts the numbers, are not one of
    # FEATURE_CHANNELS: [["centerness", 64]] makes it one of 64 channels, [["centerness"]] none. The names are
    # class, direction, centerness, attributes, offset, depth, size, rotation, velocity (which has none unless
    # it is named), and of PGD depth_bins, uncertainty, keypoints, boxes2d.
    head.BRANCH_CHANNELS = []

    # Farthest side of the 2D box (px) above which an object belongs to the next level; one less than levels.
    head.REGRESS_BOUNDS = [64.0, 128.0, 256.0]
    head.CENTER_RADIUS = 1.5  # strides around a projected centre within which locations get the object

    loss = head.LOSS = CfgNode()
    loss.FOCAL_ALPHA = 0.25  # alpha of the focal loss
    loss.FOCAL_GAMMA = 2.0  # gamma of the focal loss
    loss.BETA = 1.0 / 9  # smooth L1 of boxes turns linear there
    loss.DEPTH_BETA = 3.0  # that of depths (m)
    # of dx dy depth length height width yaw [vx vz]
    loss.CODE_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    loss.CLASS_WEIGHT = 1.0  # weight of the focal loss of classes
    loss.DIRECTION_WEIGHT = 1.0  # weight of the cross-entropy of the direction bin
    loss.CENTERNESS_WEIGHT = 1.0  # weight of the binary cross-entropy of centerness
    loss.ATTRIBUTE_WEIGHT = 1.0  # weight of the cross-entropy of attributes

    test = head.TEST = CfgNode()
    test.CANDIDATES_PER_LEVEL = 100  # locations per level that are passed to the suppression
    test.NMS_THRESHOLD = 0.05  # IoU of footprints, within a class
    test.SCORE_THRESHOLD = 0.001  # least score of a detection
    test.MAX_DETECTIONS = 20  # most detections per image


def _add_pgd(head: CfgNode) -> None:
    head.DEPTH_BINS = 8  # depths of the distribution: 0, DEPTH_UNIT, 2 DEPTH_UNIT...
    head.DEPTH_UNIT = 10.0  # metres
    head.UNCERTAINTY = True  # predict the log scale of the depth, which weighs its loss and the scores
    head.KEYPOINTS = True  # learn the eight projected corners too
    head.BOXES2D = True  # predict the 2D box too

    loss = head.LOSS = CfgNode()
    loss.UNCERTAINTY_WEIGHT = 1.0  # weight of the depth loss that the predicted uncertainty scales
    loss.KEYPOINT_WEIGHT = 0.2  # of each of the 16 numbers
    loss.BOX2D_WEIGHT = 1.0  # of each of the four distances, and of the consistency
    loss.CONSISTENCY_WEIGHT = 1.0  # between the 2D box and the projected 3D box; 0: off
    loss.CONSISTENCY_DEPTH = "direct"  # | "fused" (published on nuScenes): depth that places the 3D box


def fcos3d_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Returns the constructor arguments of an FCOS3D, its parts built by the config.

    Raises:
        ValueError: keys that contradict each other.
    """
    node = cfg.MODEL.FCOS3D
    options = DenseHeadOptions(num_attributes=node.ATTRIBUTES, velocity=node.VELOCITY)
    return _arguments(cfg, options, criterion={}, decoding={})


def pgd_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Returns the constructor arguments of a PGD, its parts built by the config.

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
    shared = detector_arguments(cfg)
    strides = shared["neck"].strides
    _check(node, strides)
    _refuse_random_windows(cfg)
    if max(len(node.DEPTH_PRIORS), len(node.SIZE_PRIORS)) > 1:
        check_prior_classes(cfg, "FCOS3D")
    return {
        **shared,
        "num_classes": num_classes,
        "head": _head(cfg, num_classes, len(strides), options),
        "criterion": _criterion(node, strides, criterion),
        "regress_ranges": list(itertools.pairwise([_NEAREST, *node.REGRESS_BOUNDS, _FARTHEST])),
        "center_radius": node.CENTER_RADIUS,
        "decoding": DecodeOptions(
            direction_offset=node.DIRECTION_OFFSET,
            candidates_per_level=node.TEST.CANDIDATES_PER_LEVEL,
            nms_threshold=node.TEST.NMS_THRESHOLD,
            score_threshold=node.TEST.SCORE_THRESHOLD,
            max_detections=node.TEST.MAX_DETECTIONS,
            **decoding,
        ),
    }


def _head(cfg: CfgNode, num_classes: int, num_levels: int, options: DenseHeadOptions) -> DenseHead:
    node = cfg.MODEL.FCOS3D
    return DenseHead(
        TowerShape(
            in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
            channels=node.FEATURE_CHANNELS,
            convs=node.STACKED_CONVS,
            deformable_last=node.DCN_ON_LAST_CONV,
        ),
        num_classes=num_classes,
        num_levels=num_levels,
        widths=_widths(node),
        prior=BoxPrior(num_classes, node.DEPTH_PRIORS, node.SIZE_PRIORS),
        options=options,
    )


def _widths(node: CfgNode) -> dict[str, Sequence[int]]:
    """Returns the channels of the convolutions of every branch, by its name."""
    widths: dict[str, Sequence[int]] = dict.fromkeys(BRANCH_NAMES, (node.FEATURE_CHANNELS,))
    widths["velocity"] = ()
    for row in node.BRANCH_CHANNELS:
        name, *channels = row if isinstance(row, (list, tuple)) and row else (None,)
        if name not in widths or not all(isinstance(width, int) and width > 0 for width in channels):
            raise ValueError(
                f"MODEL.FCOS3D.BRANCH_CHANNELS has {row!r}, expected a list of the name of a branch and of "
                f"numbers of channels above 0; the names are {', '.join(widths)}"
            )
        widths[name] = channels
    return widths


def _criterion(node: CfgNode, strides: list[int], pgd: dict[str, Any]) -> DenseCriterion:
    loss = node.LOSS
    weights = {
        "cls": loss.CLASS_WEIGHT,
        "direction": loss.DIRECTION_WEIGHT,
        "centerness": loss.CENTERNESS_WEIGHT,
        "attribute": loss.ATTRIBUTE_WEIGHT,
    }
    shared = {
        "box_code_weights": loss.CODE_WEIGHTS,
        "direction_offset": node.DIRECTION_OFFSET,
        "center_radius": node.CENTER_RADIUS,
        "box_beta": loss.BETA,
        "depth_beta": loss.DEPTH_BETA,
        "focal_alpha": loss.FOCAL_ALPHA,
        "focal_gamma": loss.FOCAL_GAMMA,
        # A keypoint of 1 is the finest level's longest distance, in strides.
        "keypoint_range": [*node.REGRESS_BOUNDS, _FARTHEST][0] / strides[0],
    }
    options = shared | pgd | {"loss_weights": weights | pgd.get("loss_weights", {})}
    return DenseCriterion(DenseLossOptions(**options))


def _refuse_random_windows(cfg: CfgNode) -> None:
    """Refuses random shifts and scales: these heads learn depths from every image, and both change depths."""
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
    check_rules("MODEL.FCOS3D", rules)
