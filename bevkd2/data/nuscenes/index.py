"""The compact index of a split: everything that training reads of the tables, as flat arrays in one file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from iopath.common.file_io import file_lock

from bevkd2.config.shipped import expanded, refuse_address
from bevkd2.nuscenes.json_files import file_states
from bevkd2.nuscenes.layout import is_below_root
from bevkd2.structures import Boxes3D, lidar2img_matrix, scale_intrinsics

logger = logging.getLogger(__name__)

# What numpy, zipfile and zlib raise on truncated or garbled files; found by fuzzing.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,  # of which zipfile's NotImplementedError is one
    ValueError,
)
_FORMAT = 5  # raise it when the arrays, their meaning or their checks change: older files are then rebuilt


@dataclasses.dataclass(frozen=True, eq=False)
class NuScenesIndex:
    """F key frames, scene by scene and in order of time, with C cameras each and M annotated boxes in total.

    Attributes:
        root: the dataset's root directory.
        version: name of the tables.
        split: name of the split.
        cameras: (C) channel names.
        sample_tokens: (F,) bytes.
        scene_tokens: (F,) bytes.
        scene_starts: (F,) the index of the first frame in the frame's scene.
        timestamps: (F,) microseconds.
        filenames: (F, C) bytes, paths below the root.
        image_sizes: (F, C, 2) height, width in pixels.
        intrinsics: (F, C, 3, 3) float64, pixels of the original images.
        cam2lidar: (F, C, 4, 4) float64 from the camera at its own time to LIDAR_TOP at the sample's: the
            ego's motion between the two is in it.
        lidar2global: (F, 4, 4) float64.
        ego2global: (F, 4, 4) float64, at the lidar's time.
        can_bus: (F, 18) float64, see :mod:`bevkd2.data.nuscenes.ego_motion`.
        from_can_bus: (F,) bool, whether the motion in ``can_bus`` is that of the CAN bus expansion; else it
            is derived from the ego's poses.
        box_starts: (F + 1,) where a frame's boxes begin; they end where the next frame's begin.
        boxes: (M, 9) float32 in the Boxes3D layout, LIDAR_TOP frame; velocity NaN where unknown.
        labels: (M,) int64 index into CLASS_NAMES; other categories are not kept.
        num_lidar_pts: (M,) int64.
        num_radar_pts: (M,) int64.
        visibility: (M,) int64, nuScenes levels 1 to 4; 0 where not annotated.
        attributes: (M,) int64 index into ATTRIBUTE_NAMES, NO_ATTRIBUTE for none.
    """

    root: str
    version: str
    split: str
    cameras: tuple[str, ...]
    sample_tokens: npt.NDArray[np.bytes_]
    scene_tokens: npt.NDArray[np.bytes_]
    scene_starts: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.int64]
    filenames: npt.NDArray[np.bytes_]
    image_sizes: npt.NDArray[np.int64]
    intrinsics: npt.NDArray[np.float64]
    cam2lidar: npt.NDArray[np.float64]
    lidar2global: npt.NDArray[np.float64]
    ego2global: npt.NDArray[np.float64]
    can_bus: npt.NDArray[np.float64]
    from_can_bus: npt.NDArray[np.bool_]
    box_starts: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    num_lidar_pts: npt.NDArray[np.int64]
    num_radar_pts: npt.NDArray[np.int64]
    visibility: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.timestamps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns the metadata of a frame as a Detectron2 dataset dict: tokens, time, image paths, poses."""
        if not 0 <= i < len(self):
            raise IndexError(f"frame {i} of split {self.split!r}, which has {len(self)} frames")
        return {
            "sample_token": self.sample_tokens[i].decode(),
            "scene_token": self.scene_tokens[i].decode(),
            "timestamp": int(self.timestamps[i]),
            "file_names": [str(Path(self.root) / name.decode()) for name in self.filenames[i]],
            "lidar2global": self.lidar2global[i],
            "ego2global": self.ego2global[i],
            "can_bus": self.can_bus[i],
        }

    def lidar2img(self, i: int, sizes: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
        """Projections of a frame into its resized images.

        Args:
            i: the frame.
            sizes: (height, width) of each camera's image after resizing.

        Returns:
            (C, 4, 4) from metres in LIDAR_TOP to pixels.
        """
        matrices = []
        for c, (height, width) in enumerate(sizes):
            old_height, old_width = self.image_sizes[i, c]
            intrinsics = scale_intrinsics(self.intrinsics[i, c], width / old_width, height / old_height)
            matrices.append(lidar2img_matrix(intrinsics, self.cam2lidar[i, c]))
        return np.stack(matrices)

    def annotations(self, i: int) -> slice:
        """Returns where the boxes of frame ``i`` are in the arrays of boxes."""
        return slice(int(self.box_starts[i]), int(self.box_starts[i + 1]))

    def boxes3d(self, i: int) -> Boxes3D:
        """Returns all boxes of frame ``i``, in a copy."""
        return Boxes3D(torch.from_numpy(self.boxes[self.annotations(i)].copy()))

    def scenes(self) -> list[range]:
        """Returns the frames of each scene."""
        starts = np.unique(self.scene_starts).tolist()
        return [range(a, b) for a, b in zip(starts, [*starts[1:], len(self)], strict=True)]


_ARRAYS = [field.name for field in dataclasses.fields(NuScenesIndex)][4:]


def concatenate(indices: Sequence[NuScenesIndex]) -> NuScenesIndex:
    """Joins splits of one dataset into one index, for training on several.

    Args:
        indices: one or more indices with the same root, version and cameras.

    Returns:
        All frames; the split's name is that of the parts joined by "+".
    """
    if len(indices) == 1:
        return indices[0]
    frames = np.cumsum([0] + [len(index) for index in indices])
    boxes = np.cumsum([0] + [len(index.boxes) for index in indices])
    arrays = {name: np.concatenate([getattr(index, name) for index in indices]) for name in _ARRAYS}
    parts = list(zip(indices, frames[:-1], boxes[:-1], strict=True))
    arrays["scene_starts"] = np.concatenate([index.scene_starts + frame for index, frame, _ in parts])
    starts = [index.box_starts[:-1] + box for index, _, box in parts]
    arrays["box_starts"] = np.concatenate([*starts, boxes[-1:]])
    first = indices[0]
    split = "+".join(index.split for index in indices)
    return NuScenesIndex(first.root, first.version, split, first.cameras, **arrays)


def cache_directory(root: str | Path, cache_dir: str) -> Path:
    """Returns where a dataset's index files are kept.

    Args:
        root: the dataset's root.
        cache_dir: DATASETS.CACHE_DIR; "" means ``root``/.bevkd2_cache if the root is writable, else bevkd2
            below XDG_CACHE_HOME (~/.cache).

    Returns:
        An existing directory.

    Raises:
        ValueError: ``cache_dir`` is an address, not a path.
    """
    refuse_address(cache_dir, "DATASETS.CACHE_DIR")
    root = Path(root).resolve()
    if cache_dir:
        path = expanded(cache_dir) / _short_hash(str(root))
    elif os.access(root, os.W_OK):
        path = root / ".bevkd2_cache"
    else:
        home = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        path = home / "bevkd2" / _short_hash(str(root))
    path.mkdir(parents=True, exist_ok=True)
    return path


def cached_index(
    root: str | Path,
    version: str,
    split: str,
    cameras: Sequence[str],
    cache_dir: str,
    build: Callable[[], NuScenesIndex],
) -> NuScenesIndex:
    """Reads the index of a split from the cache, or builds and stores it.

    A stored index counts only while version, split, cameras, and the size and time of every table and of the
    CAN bus' pose files are those that it was built from. Of several processes that ask at the same time, one
    builds.

    Args:
        root: the dataset's root.
        version: name of the tables.
        split: name of the split.
        cameras: channel names.
        cache_dir: see ``cache_directory``.
        build: makes the index from the tables.

    Returns:
        The index.
    """
    key = _cache_key(root, version, split, cameras)
    path = cache_directory(root, cache_dir) / _file_name(version, split, cameras)
    index = _read(path, str(root), key)
    if index is not None:
        return index
    with file_lock(str(path)):
        index = _read(path, str(root), key)  # another process may have built it in the meantime
        if index is None:
            index = build()
            _write(path, index, key)
    return index


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _file_name(version: str, split: str, cameras: Sequence[str]) -> str:
    return f"{version}-{quote(split, safe='')}-{_short_hash(' '.join(cameras))}.npz"


def _cache_key(root: str | Path, version: str, split: str, cameras: Sequence[str]) -> dict[str, Any]:
    """Returns what an index depends on, as JSON values."""
    can_bus = file_states(Path(root) / "can_bus", "*_pose.json")
    return {
        "format": _FORMAT,
        "version": version,
        "split": split,
        "cameras": list(cameras),
        "tables": file_states(Path(root) / version, "*.json"),
        "can_bus": _short_hash(json.dumps(can_bus)) if can_bus else None,  # a thousand files
    }


def _read(path: Path, root: str, key: dict[str, Any]) -> NuScenesIndex | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if json.loads(str(file["header"])) != key:
                logger.info("tables or CAN bus changed since %s was built: building it again", path)
                return None
            arrays = {name: file[name] for name in _ARRAYS}
        if not all(is_below_root(name.decode()) for name in arrays["filenames"].flat):
            raise ValueError("it names images outside of the dataset's root")
    except _DAMAGE as error:
        logger.warning("cannot read the cached index %s (%s): building it again", path, error)
        return None
    return NuScenesIndex(root, key["version"], key["split"], tuple(key["cameras"]), **arrays)


def _write(path: Path, index: NuScenesIndex, key: dict[str, Any]) -> None:
    """Stores an index atomically: a reader finds the old file or the whole new one."""
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(key)), **arrays)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    logger.info("stored the index of %d frames in %s", len(index), path)
