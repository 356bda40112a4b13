"""Keys of the monocular datasets and of their augmentation, and the names of the classes."""

from __future__ import annotations

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config.node import CfgNode as CN  # noqa: N817

DEFAULT_CLASSES: dict[str, tuple[str, ...]] = {
    "kitti": ("Pedestrian", "Cyclist", "Car"),
    "nuscenes_mono": (
        "car",
        "truck",
        "trailer",
        "bus",
        "construction_vehicle",
        "bicycle",
        "motorcycle",
        "pedestrian",
        "traffic_cone",
        "barrier",
    ),
}
"""The classes of each monocular DATASETS.FORMAT where DATASETS.CLASSES is empty, in the order of the labels,
which is that of the published PGD, FCOS3D and SMOKE heads."""

_KNOWN_CLASSES = {
    **DEFAULT_CLASSES,
    "kitti": ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc"),
}


def add_mono_data(cfg: FvcoreNode) -> None:
    """Adds what the monocular formats read, besides the keys that they share with the multi-view one.

    Args:
        cfg: the whole config, with INPUT and DATASETS.
    """
    # What is detected, in the order of the labels; []: the format's default. Other objects are background.
    cfg.DATASETS.CLASSES = []

    inp = cfg.INPUT
    # [width, height] in pixels: images are scaled, proportions kept, to the largest size that fits; []: as
    # they are. Published for KITTI: [1242, 375] in training only.
    inp.RESIZE_TRAIN = []
    inp.RESIZE_TEST = []
    inp.FLIP_PROB = 0.5  # how often a training image is mirrored; monocular formats only
    # The objects' image-plane boxes: "projected" (around the 3D boxes' corners, as published) | "label" (the
    # label files' own; KITTI only)
    inp.BOXES2D = "projected"

    affine = inp.AFFINE = CN()  # SMOKE's warp to one size; instead of RESIZE_TRAIN and RESIZE_TEST
    affine.ENABLED = False
    affine.SIZE = [1280, 384]  # width, height in pixels
    affine.PROB = 0.3  # how often a training image is shifted and scaled
    affine.SHIFT = 0.2  # largest shift, in widths and heights of the image
    affine.SCALE = [0.6, 1.4]  # of the window that fills SIZE: below 1 objects grow
    affine.STEP = 0.1  # of shifts and scales


def stored_classes(cfg: FvcoreNode) -> tuple[str, ...]:
    """The class names to store with a model's weights: those of a monocular format, whose order is free."""
    return class_names(cfg) if cfg.DATASETS.FORMAT in DEFAULT_CLASSES else ()


def class_names(cfg: FvcoreNode) -> tuple[str, ...]:
    """Names of the classes of a monocular dataset; a class's label is its place.

    Args:
        cfg: the config; reads DATASETS.FORMAT and DATASETS.CLASSES.

    Returns:
        The names.

    Raises:
        ValueError: the format is not a monocular one, or CLASSES has a name that the format does not know, or
            the same name twice.
    """
    form, names = cfg.DATASETS.FORMAT, tuple(cfg.DATASETS.CLASSES)
    if form not in DEFAULT_CLASSES:
        raise ValueError(
            f"DATASETS.FORMAT is {form!r}, expected one of {', '.join(DEFAULT_CLASSES)}: monocular models "
            "read single images"
        )
    known = _KNOWN_CLASSES[form]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"DATASETS.CLASSES has {', '.join(map(repr, unknown))}, expected names of {form}: "
            f"{', '.join(known)}"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"DATASETS.CLASSES is {list(names)}, expected every name once")
    return names or DEFAULT_CLASSES[form]
