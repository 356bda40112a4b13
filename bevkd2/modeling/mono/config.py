"""What every monocular detector reads from the config: backbone, neck of pyramids, pixels."""

from __future__ import annotations

from typing import Any

from bevkd2.config import CfgNode, class_names, default_classes
from bevkd2.d2 import build_backbone
from bevkd2.modeling.necks.fpn import FPN


def pixel_arguments(cfg: CfgNode) -> dict[str, Any]:
    """How images are normalised and padded, as constructor arguments of a MonoDetector.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: an unknown channel order, or means and deviations that are not three numbers each.
    """
    model = cfg.MODEL
    if model.PIXEL_FORMAT not in ("RGB", "BGR"):
        raise ValueError(f"MODEL.PIXEL_FORMAT is {model.PIXEL_FORMAT!r}, expected 'RGB' or 'BGR'")
    if not len(model.PIXEL_MEAN) == len(model.PIXEL_STD) == 3 or min(model.PIXEL_STD) <= 0:
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {list(model.PIXEL_MEAN)}, MODEL.PIXEL_STD {list(model.PIXEL_STD)}, "
            "expected three numbers each, deviations above 0"
        )
    return {
        "pixel_mean": model.PIXEL_MEAN,
        "pixel_std": model.PIXEL_STD,
        "pixel_format": model.PIXEL_FORMAT,
        "size_divisibility": model.SIZE_DIVISIBILITY,
    }


def check_prior_classes(cfg: CfgNode, name: str) -> None:
    """Refuse rows of priors that are of other classes, or stand in another order.

    The rows are of MODEL.<name>.PRIOR_CLASSES. Where that is empty they are of DATASETS.CLASSES, but if those
    are as many as the format's default classes, they are of the default: their number then does not tell the
    rows that a config brings along from rows of its own.

    Args:
        cfg: the whole config.
        name: node of the priors in MODEL.

    Raises:
        ValueError: the classes of the rows are not DATASETS.CLASSES.
    """
    classes, default = class_names(cfg), default_classes(cfg)
    brought = default if len(classes) == len(default) else classes
    rows_of = tuple(cfg.MODEL[name].PRIOR_CLASSES) or brought
    if rows_of != classes:
        raise ValueError(
            f"MODEL.{name}: the rows of the priors are of {', '.join(rows_of)}, but DATASETS.CLASSES is "
            f"{', '.join(classes)}; give their rows in that order and set MODEL.{name}.PRIOR_CLASSES to it "
            "(tools/compute_priors.py prints both)"
        )


def pyramid_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Backbone and feature pyramid, as constructor arguments of a MonoDetector.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: the pyramid reads what the backbone lacks.
    """
    backbone, fpn = build_backbone(cfg), cfg.MODEL.FPN
    neck = FPN(
        backbone.output_shape(),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        num_outs=fpn.NUM_OUTS,
        norm=fpn.NORM,
    )
    return {"image_backbone": backbone, "neck": neck}
