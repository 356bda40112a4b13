"""What is known of a nuScenes-layout dataset without reading its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten detection classes in the order of the labels, which is that of the published BEVFormer heads."""

TP_ERRORS = {
    "mATE": "trans_err",
    "mASE": "scale_err",
    "mAOE": "orient_err",
    "mAVE": "vel_err",
    "mAAE": "attr_err",
}
"""Means of the true positive errors, in the devkit's order -> its keys of them in metrics_summary.json."""

MONO_CLASS_NAMES = (
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
)
"""The same classes in the order of the published PGD and FCOS3D heads."""

ATTRIBUTE_NAMES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
"""The eight attributes in the order of the published FCOS3D and PGD heads' attribute branch; the devkit's own
ATTRIBUTE_NAMES has another order."""

NO_ATTRIBUTE = len(ATTRIBUTE_NAMES)
"""The ninth attribute label: the object has none."""


def layout_labels(class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns the labels, as in CLASS_NAMES, of classes in another order.

    Args:
        class_names: nuScenes detection classes in any order; may be fewer than all.

    Returns:
        (len(class_names),) for each of them its index in CLASS_NAMES.

    Raises:
        ValueError: a class that nuScenes has not, or one twice.
    """
    wrong = [name for i, name in enumerate(class_names) if name not in CLASS_NAMES or name in class_names[:i]]
    if wrong:
        raise ValueError(
            f"DATASETS.CLASSES has {', '.join(wrong)}, unknown or twice; expected classes of nuScenes, each "
            f"once: {', '.join(CLASS_NAMES)}"
        )
    return np.array([CLASS_NAMES.index(name) for name in class_names], dtype=np.int64)


def is_below_root(name: object) -> bool:
    """Returns whether a file name of a table stays below the dataset's root.

    Only the name is judged: a folder below the root may be a link to another disk, which its owner made.

    Args:
        name: as the table has it, such as ``samples/CAM_FRONT/a.jpg``.

    Returns:
        False for an absolute path, one with ``..``, and what is no path.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_version(root: str | Path, version: str) -> None:
    """Checks that a root holds a version.

    Args:
        root: the dataset's root directory.
        version: name of the directory with the tables.

    Raises:
        FileNotFoundError: names what is missing, what is there, and how to point elsewhere.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"the dataset root {str(root)!r} does not exist. Set DATASETS.ROOT in the config, or on the "
            "command line (DATASETS.ROOT /path/to/nuscenes), to the directory that holds v1.0-trainval and "
            "samples; or make a synthetic world with `bevkd2 make-synthetic --out DIR` and point it there"
        )
    if not (root / version / "sample.json").is_file():
        present = sorted(path.parent.name for path in root.glob("*/sample.json"))
        raise FileNotFoundError(
            f"the dataset root {str(root)!r} has no version {version!r} (no {version}/sample.json); "
            f"versions there: {', '.join(present) or 'none'}. Set DATASETS.VERSION"
        )
