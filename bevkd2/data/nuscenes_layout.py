"""What is known of a nuScenes-layout dataset without reading its tables."""

from __future__ import annotations

from pathlib import Path

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


def check_version(root: str | Path, version: str) -> None:
    """Check that a root holds a version.

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
            "samples; or make a synthetic world with `python tools/make_synthetic.py --out DIR` and point "
            "it there"
        )
    if not (root / version / "sample.json").is_file():
        present = sorted(path.parent.name for path in root.glob("*/sample.json"))
        raise FileNotFoundError(
            f"the dataset root {str(root)!r} has no version {version!r} (no {version}/sample.json); "
            f"versions there: {', '.join(present) or 'none'}. Set DATASETS.VERSION"
        )
