"""Data loaders from a config."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bevkd2.config import class_names
from bevkd2.d2 import DatasetCatalog, comm
from bevkd2.data.image_cache import ImageCache
from bevkd2.data.kitti.dataset import has_labels, register_kitti
from bevkd2.data.mono.index import JoinedIndex
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.nuscenes.dataset import register_nuscenes
from bevkd2.data.nuscenes.index import NuScenesIndex, concatenate
from bevkd2.data.nuscenes.mapper import NuScenesMapper
from bevkd2.data.nuscenes_mono.dataset import register_nuscenes_mono
from bevkd2.data.samplers import SceneSampler, TrainingSampler


class Mapper(Protocol):
    """Makes samples of the frames of an index."""

    def __call__(
        self, index: Any, i: int, rng: np.random.Generator, cache: ImageCache | None = None
    ) -> dict[str, Any]:
        """The sample of frame `i`; equal generators make equal samples."""

    def cached_shape(self, index: Any, i: int) -> tuple[int, ...]:
        """Shape of what `cache` holds of frame `i`."""


class MappedDataset(Dataset[dict[str, Any]]):
    """An index seen through a mapper.

    A sample is a function of (frame, position) and the seed, whichever worker makes it: runs with different
    numbers of workers, and resumed ones, see the same augmentation.
    """

    def __init__(self, index: Any, mapper: Mapper, seed: int, cache_images: bool) -> None:
        """Combine index and mapper.

        Args:
            index: the frames.
            mapper: makes samples of them.
            seed: of the augmentation.
            cache_images: keep decoded, resized images in memory.
        """
        self.index, self.mapper, self._seed = index, mapper, seed
        self._cache = None
        if cache_images:
            self._cache = ImageCache([mapper.cached_shape(index, i) for i in range(len(index))])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Make a sample of (frame, position in the run)."""
        frame, position = key
        rng = np.random.default_rng([self._seed, position])
        return self.mapper(self.index, frame, rng, self._cache)


def dataset_name(cfg: Any, split: str) -> str:
    """Name of a split in the catalogs; registers it where it is not.

    Args:
        cfg: the config, of which DATASETS and INPUT.CAMERAS are read.
        split: name of the split.

    Returns:
        The name.

    Raises:
        ValueError: DATASETS.FORMAT or CLASSES is wrong for the other.
    """
    return _format(cfg).register(cfg, split)


def _register_nuscenes(cfg: Any, split: str) -> str:
    data = cfg.DATASETS
    if data.CLASSES:
        raise ValueError(
            f"DATASETS.CLASSES is {list(data.CLASSES)}, but the multi-view format 'nuscenes' has ten classes "
            "in a fixed order; set it to [], or choose a monocular DATASETS.FORMAT"
        )
    cameras = tuple(cfg.INPUT.CAMERAS)
    name = "/".join([data.ROOT, data.VERSION, split, *cameras])
    register_nuscenes(name, data.ROOT, data.VERSION, split, data.CACHE_DIR, cameras)
    return name


def _register_kitti(cfg: Any, split: str) -> str:
    classes = class_names(cfg)
    if split in cfg.DATASETS.TRAIN and not has_labels(split):
        raise ValueError(
            f"DATASETS.TRAIN names {split!r}, whose frames are in the folder testing, which has no labels; "
            "call the list of a training split otherwise (neither test nor test_...)"
        )
    name = "/".join(["kitti", cfg.DATASETS.ROOT, split, *classes])
    register_kitti(name, cfg.DATASETS.ROOT, split, classes)
    return name


def _register_nuscenes_mono(cfg: Any, split: str) -> str:
    data, cameras, classes = cfg.DATASETS, tuple(cfg.INPUT.CAMERAS), class_names(cfg)
    name = "/".join(["mono", data.ROOT, data.VERSION, split, *cameras, *classes])
    register_nuscenes_mono(name, data.ROOT, data.VERSION, split, data.CACHE_DIR, cameras, classes)
    return name


@dataclasses.dataclass(frozen=True)
class _Format:
    """What a DATASETS.FORMAT reads with."""

    register: Callable[[Any, str], str]
    """(cfg, split) -> its name in DatasetCatalog, which loads its index."""
    join: Callable[[Sequence[Any]], Any]
    """Of the indices of several training splits."""
    groups: Callable[[Any], list[range]]
    """Frames of an index that one process must evaluate, in order."""
    mapper: Callable[..., Mapper]


_mono_groups = operator.methodcaller("groups")
_FORMATS = {
    "nuscenes": _Format(_register_nuscenes, concatenate, NuScenesIndex.scenes, NuScenesMapper),
    "kitti": _Format(_register_kitti, JoinedIndex, _mono_groups, MonoMapper),
    "nuscenes_mono": _Format(_register_nuscenes_mono, JoinedIndex, _mono_groups, MonoMapper),
}


def _format(cfg: Any) -> _Format:
    name = cfg.DATASETS.FORMAT
    if name not in _FORMATS:
        raise ValueError(f"DATASETS.FORMAT is {name!r}, expected one of {', '.join(_FORMATS)}")
    return _FORMATS[name]


def build_train_loader(cfg: Any, start_iter: int = 0) -> DataLoader[dict[str, Any]]:
    """The endless training loader of this rank.

    Args:
        cfg: the config.
        start_iter: iterations that are done; the loader goes on where a run that had made them would be.

    Returns:
        A loader of lists of SOLVER.IMS_PER_BATCH / world size samples.

    Raises:
        ValueError: the batch cannot be divided among the ranks, or there are no frames.
    """
    world_size, total = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if total <= 0 or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}, expected a positive multiple of the {world_size} processes"
        )
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty, expected the name of a split or several")
    form = _format(cfg)
    index = form.join([DatasetCatalog.get(dataset_name(cfg, split)) for split in cfg.DATASETS.TRAIN])
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    dataset = MappedDataset(index, form.mapper(cfg, is_train=True), seed, cfg.DATALOADER.CACHE_IMAGES)
    sampler = TrainingSampler(len(index), seed, comm.get_rank(), world_size, start_iter * total)
    return _loader(dataset, sampler, total // world_size, cfg.DATALOADER.NUM_WORKERS)


def build_test_loader(cfg: Any, split: str) -> DataLoader[dict[str, Any]]:
    """The test loader of this rank: its frames in order, scenes and key frames in one piece.

    Args:
        cfg: the config.
        split: one of DATASETS.TEST.

    Returns:
        A loader of lists of one sample.
    """
    form = _format(cfg)
    index = DatasetCatalog.get(dataset_name(cfg, split))
    # No cache: an evaluation reads every frame once, and the next one has a loader of its own.
    dataset = MappedDataset(index, form.mapper(cfg, is_train=False), seed=0, cache_images=False)
    sampler = SceneSampler(form.groups(index), comm.get_rank(), comm.get_world_size())
    return _loader(dataset, sampler, 1, cfg.DATALOADER.NUM_WORKERS)


def _loader(
    dataset: MappedDataset, sampler: TrainingSampler | SceneSampler, batch_size: int, num_workers: int
) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_one_thread,
        # Forked workers share the image cache's memory with this process.
        multiprocessing_context="fork" if num_workers else None,
        persistent_workers=False,
    )


def _as_list(batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(batch)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
