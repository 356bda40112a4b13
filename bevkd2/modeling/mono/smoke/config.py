"""The only place that reads MODEL.SMOKE and MODEL.DLA_UP."""

from __future__ import annotations

from typing import Any

from bevkd2.config import CfgNode, class_names
from bevkd2.d2 import build_backbone
from bevkd2.modeling.mono.config import check_prior_classes, pixel_arguments
from bevkd2.modeling.mono.smoke.decode import SmokeCoder
from bevkd2.modeling.mono.smoke.head import SmokeHead
from bevkd2.modeling.mono.smoke.losses import SmokeLossWeights
from bevkd2.modeling.necks.dla_up import DLAUp


def smoke_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Builds the parts of a SMOKE.

    Args:
        cfg: the whole config.

    Returns:
        The keyword arguments of its constructor.

    Raises:
        ValueError: keys that contradict each other.
    """
    classes = class_names(cfg, single_images=True)
    _check(cfg.MODEL.SMOKE, classes)
    check_prior_classes(cfg, "SMOKE")
    model, smoke = cfg.MODEL, cfg.MODEL.SMOKE
    backbone = build_backbone(cfg)
    neck = DLAUp(
        backbone.output_shape(), in_features=model.DLA_UP.IN_FEATURES, out_channels=model.DLA_UP.OUT_CHANNELS
    )
    mean, deviation = smoke.DEPTH_PRIOR
    return {
        "image_backbone": backbone,
        "neck": neck,
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
        **pixel_arguments(cfg),
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
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ValueError(f"MODEL.SMOKE: {'; '.join(broken)}")
