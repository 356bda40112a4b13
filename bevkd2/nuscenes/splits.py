"""Splits of nuScenes' tables: the official ones, and those of a version's ``splits.json``."""

from __future__ import annotations

from pathlib import Path

from bevkd2.nuscenes.devkit import NuScenes, create_splits_scenes
from bevkd2.nuscenes.json_files import read_json, shortened

# The devkit scores an official split only with a version that ends like this
# (nuscenes.eval.common.loaders.load_gt).
_OFFICIAL_VERSION_SUFFIX = {
    "train": "trainval",
    "val": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
    "mini_train": "mini",
    "mini_val": "mini",
    "test": "test",
}
_SPLITS_EXPECTED = 'expected {"name of the split": ["name of a scene", ...], ...}'


def custom_splits(root: str | Path, version: str) -> dict[str, list[str]]:
    """Reads the splits of a version's own ``splits.json``.

    Args:
        root: the root of the data set.
        version: the folder of the tables below it, such as "v1.0-mini".

    Returns:
        The names of the scenes of each split, by the split's name; empty without the file.

    Raises:
        ValueError: the file is no JSON, or not an object of lists of names.
    """
    path = Path(root) / version / "splits.json"
    if not path.is_file():
        return {}
    splits = read_json(path, f"mend it, {_SPLITS_EXPECTED}")
    if not isinstance(splits, dict):
        raise ValueError(f"{path} holds a {type(splits).__name__}, {_SPLITS_EXPECTED}")
    for name, members in splits.items():
        if not isinstance(members, list) or not all(isinstance(scene, str) for scene in members):
            raise ValueError(f"{path}: split {shortened(name)} is {shortened(members)}, {_SPLITS_EXPECTED}")
    return splits


def available_splits(nusc: NuScenes) -> dict[str, list[str]]:
    """Splits of which a dataset has scenes, and that the devkit can score.

    Args:
        nusc: the tables.

    Returns:
        Split name to the names of its scenes that are in the tables. An official name always means the
        official split, as in the devkit, whatever ``splits.json`` says.
    """
    scenes = {scene["name"] for scene in nusc.scene}
    official = {
        name: [scene for scene in members if scene in scenes]
        for name, members in create_splits_scenes().items()
        if nusc.version.endswith(_OFFICIAL_VERSION_SUFFIX[name])
    }
    custom = {
        name: members
        for name, members in custom_splits(nusc.dataroot, nusc.version).items()
        if name not in _OFFICIAL_VERSION_SUFFIX
    }
    return {name: members for name, members in {**official, **custom}.items() if members}


def scenes_of_split(nusc: NuScenes, split: str) -> list[str]:
    """Returns the names of a split's scenes.

    Args:
        nusc: the tables.
        split: an official split, or one of the version's ``splits.json``.

    Returns:
        Scene names, all of them in the tables.

    Raises:
        ValueError: no such split here, or it names scenes that are not in the tables.
    """
    splits = available_splits(nusc)
    if split not in splits:
        hint = ""
        if split in _OFFICIAL_VERSION_SUFFIX:
            hint = (
                f" ({split!r} is an official nuScenes split, of versions that end in "
                f"{_OFFICIAL_VERSION_SUFFIX[split]!r}; a split of your own needs another name in splits.json)"
            )
        raise ValueError(
            f"version {nusc.version} in {nusc.dataroot} has no split {split!r}{hint}; splits there: "
            f"{', '.join(sorted(splits)) or 'none'}. Set DATASETS.TRAIN and DATASETS.TEST"
        )
    missing = sorted(set(splits[split]) - {scene["name"] for scene in nusc.scene})
    if missing:
        raise ValueError(
            f"split {split!r} of {nusc.table_root}/splits.json names scenes that scene.json lacks: "
            f"{shortened(missing)}"
        )
    return splits[split]
