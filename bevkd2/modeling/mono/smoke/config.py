"""The keys of MODEL.SMOKE, and the parts that are built from them."""

from __future__ import annotations

from typing import Any

from bevkd2.config import CfgNode, add_config_extension, check_rules, class_names
from bevkd2.modeling.detector import detector_arguments
from bevkd2.modeling.mono.detector import check_prior_classes
from bevkd2.modeling.mono.smoke.decode import SmokeCoder
from bevkd2.modeling.mono.smoke.head import SmokeHead
from bevkd2.modeling.mono.smoke.losses import SmokeLossWeights
from bevkd2.modeling.necks import DLAUp


@add_config_extension
def add_smoke_config(cfg: CfgNode) -> None:
    """Adds MODEL.SMOKE.

    Args:
        cfg: the whole config.
    """
    smoke = cfg.MODEL.SMOKE = CfgNode()
    smoke.FEATURE_CHANNELS = 256  # between the two convolutions of a branch of the head
    # Mean and deviation of depths (metres), which the published code measured on KITTI.
    smoke.DEPTH_PRIOR = [28.01, 16.32]
    # Length, height, width (metres) of every class of DATASETS.CLASSES in its order: those that the published
    # code measured on KITTI's pedestrians, cyclists and cars.
    smoke.SIZE_PRIORS = [[0.88, 1.73, 0.67], [1.78, 1.70, 0.58], [3.88, 1.63, 1.53]]
    # Classes of the rows; required if DATASETS.CLASSES has other classes than the default, but as many.
    smoke.PRIOR_CLASSES = []
    smoke.MIN_OVERLAP = 0.7  # of a 2D box with itself, its corners moved by the radius of its Gaussian
    smoke.MAX_DETECTIONS = 100  # peaks per image
    # Published: 0.25. An average precision only gains from a lower one, such as 0.01: more recall.
    smoke.SCORE_THRESHOLD = 0.25

    loss = smoke.LOSS = CfgNode()
    loss.HEATMAP_WEIGHT = 1.0  # the loss is divided by the number of centres of the batch
    # Published: 10 over 30 objects at most. The sum over all corners is divided by neither objects nor
    # images, so it grows with the images per GPU (SOLVER.IMS_PER_BATCH).
    loss.BOX_WEIGHT = 1.0 / 300


def smoke_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Returns the constructor arguments of a SMOKE, its parts built by the config.

    Raises:
        ValueError: keys that contradict each other.
    """
    classes = class_names(cfg, single_images=True)
    _check(cfg.MODEL.SMOKE, classes)
    check_prior_classes(cfg, "SMOKE")
    smoke = cfg.MODEL.SMOKE
    shared = detector_arguments(cfg, DLAUp.from_config)
    neck = shared["neck"]
    mean, deviation = smoke.DEPTH_PRIOR
    return {
        **shared,
        "head": SmokeHead(neck.out_channels, len(classes), smoke.FEATURE_CHANNELS),
        "coder": SmokeCoder(
            depth_prior=(mean, deviation),
            size_priors=tuple((length, height, width) for length, height, width in smoke.SIZE_PRIORS),
            stride=neck.strides[0],
        ),
        "loss_weights": SmokeLossWeights(heatmap=smoke.LOSS.HEATMAP_WEIGHT, box=smoke.LOSS.BOX_WEIGHT),
        "min_overlap": smoke.MIN_OVERLAP,
        "max_detections": smoke.MAX_DETECTIONS,
        "score_threshold": smoke.SCORE_THRESHOLD,
        "num_classes": len(classes),
    }


def _check(smoke: CfgNode, classes: tuple[str, ...]) -> None:
    priors = smoke.SIZE_PRIORS
    rules = [
        (
            len(priors) == len(classes) and all(len(row) == 3 and min(row) > 0 for row in priors),
            f"SIZE_PRIORS is {list(priors)}, expected a length, height and width above 0 for each of "
            f"{', '.join(classes)} (DATASETS.CLASSES)",
        ),
        (
            len(smoke.DEPTH_PRIOR) == 2 and smoke.DEPTH_PRIOR[1] > 0,
            f"DEPTH_PRIOR is {list(smoke.DEPTH_PRIOR)}, expected [mean, deviation above 0] in metres",
        ),
        (0 < smoke.MIN_OVERLAP < 1, f"MIN_OVERLAP is {smoke.MIN_OVERLAP}, expected between 0 and 1"),
        (smoke.MAX_DETECTIONS >= 1, f"MAX_DETECTIONS is {smoke.MAX_DETECTIONS}, expected 1 at least"),
    ]
    check_rules("MODEL.SMOKE", rules)
