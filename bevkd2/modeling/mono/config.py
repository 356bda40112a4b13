"""A check that monocular detectors with priors per class share."""

from __future__ import annotations

from bevkd2.config import CfgNode, class_names, default_classes


def check_prior_classes(cfg: CfgNode, name: str) -> None:
    """Refuses priors whose rows are of other classes, or in another order.

    The rows are of MODEL.<name>.PRIOR_CLASSES. Where that is empty they are of DATASETS.CLASSES, but if those
    are as many as the format's default classes, they are of the default: the number of rows then does not
    show whether they are the inherited ones or new ones.

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
