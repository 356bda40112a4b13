"""Data loaders from a config."""

from __future__ import annotations

import functools
import mmap
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset

from bevkd2.d2 import DatasetCatalog, MetadataCatalog, comm
from bevkd2.data.format import Mapper, data_format
from bevkd2.data.image_cache import ImageCache
from bevkd2.data.samplers import SceneSampler, TrainingSampler
from bevkd2.distill import is_distillation, teacher_config
from bevkd2.distill.config import more_distillations, teacher_key

_IGNORED = (signal.SIGINT, signal.SIGUSR1)  # by workers: the parent deals with them
_PARENT_CHECK = 0.5  # seconds between two looks of a worker for its parent


class MappedDataset(Dataset[dict[str, Any]]):
    """The samples that a mapper makes of an index.

    A sample is a function of (frame, position) and the seed, whichever worker makes it: runs with different
    numbers of workers, and resumed ones, see the same augmentation.
    """

    def __init__(
        self,
        index: Any,
        mapper: Mapper,
        *,
        class_names: Sequence[str],
        seed: int,
        cache_images: bool,
        teacher_mappers: Mapping[str, Mapper] | None = None,
    ) -> None:
        """Combines index and mapper.

        Args:
            index: the frames.
            mapper: makes samples of them.
            class_names: in the order of the labels.
            seed: of the augmentation.
            cache_images: keep decoded, resized images in memory.
            teacher_mappers: make the samples that teachers get instead, with the same random numbers, by the
                sample's key for them; None: all get the student's.
        """
        self.index, self.mapper, self._seed = index, mapper, seed
        self.class_names = tuple(class_names)
        self._mappers = {"": mapper, **(teacher_mappers or {})}
        self._caches = {
            name: ImageCache([m.cached_shape(index, i) for i in range(len(index))]) if cache_images else None
            for name, m in self._mappers.items()
        }

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Returns the sample of (frame, position in the run)."""
        frame, position = key
        samples = {
            name: mapper(self.index, frame, np.random.default_rng([self._seed, position]), self._caches[name])
            for name, mapper in self._mappers.items()
        }
        sample = samples.pop("")
        return {**sample, **samples}


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> DataLoader[dict[str, Any]]:
    """Builds the endless training loader of this rank.

    Args:
        cfg: the config.
        start_iter: iterations that are done; the loader continues where a run with that many would be.

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
    form = data_format(cfg)
    names = [form.register(cfg, split) for split in cfg.DATASETS.TRAIN]
    index = form.join([DatasetCatalog.get(name) for name in names])
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    dataset = MappedDataset(
        index,
        form.mapper(cfg, is_train=True),
        class_names=MetadataCatalog.get(names[0]).thing_classes,
        seed=seed,
        cache_images=cfg.DATALOADER.CACHE_IMAGES,
        teacher_mappers=_teacher_mappers(cfg),
    )
    sampler = TrainingSampler(len(index), seed, comm.get_rank(), world_size, start_iter * total)
    settings = cfg.DATALOADER
    return _loader(dataset, sampler, total // world_size, settings.NUM_WORKERS, settings.PIN_MEMORY)


def build_test_loader(cfg: CfgNode, split: str) -> DataLoader[dict[str, Any]]:
    """Builds the test loader of this rank: its frames in order, none of the format's groups divided.

    Args:
        cfg: the config.
        split: one of DATASETS.TEST.

    Returns:
        A loader of lists of one sample.
    """
    form = data_format(cfg)
    name = form.register(cfg, split)
    index = DatasetCatalog.get(name)
    dataset = MappedDataset(
        index,
        form.mapper(cfg, is_train=False),
        class_names=MetadataCatalog.get(name).thing_classes,
        seed=0,
        cache_images=False,  # an evaluation reads every frame once, and the next one has a loader of its own
    )
    sampler = SceneSampler(form.groups(index), comm.get_rank(), comm.get_world_size())
    return _loader(dataset, sampler, 1, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.PIN_MEMORY)


def _teacher_mappers(cfg: CfgNode) -> dict[str, Mapper]:
    """Returns mappers of the samples of those teachers whose OWN_INPUT asks for them, by the sample's key."""
    if not is_distillation(cfg):
        return {}
    return {
        teacher_key(name): data_format(cfg).mapper(teacher_config(one), is_train=True)
        for name, one in {"": cfg, **more_distillations(cfg)}.items()
        if one.DISTILL.TEACHER.OWN_INPUT
    }


def _loader(
    dataset: MappedDataset,
    sampler: TrainingSampler | SceneSampler,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader[dict[str, Any]]:
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_list,
        worker_init_fn=_init_worker,
        # Forked workers share the image cache's memory with this process.
        multiprocessing_context="fork" if num_workers else None,
        persistent_workers=False,
        pin_memory=pin_memory and torch.cuda.is_available(),
    )


class _Loader(DataLoader[dict[str, Any]]):
    """A DataLoader whose workers start undisturbed by the signals that end a training.

    One that ended a worker before :func:`_init_worker`, or whose handler raised an exception while there are
    half of the workers, would end the training in the middle of a step or of a checkpoint.
    """

    def __iter__(self) -> Any:
        """Starts the workers; signals that come meanwhile are dealt with afterwards."""
        if not (self.num_workers and hasattr(signal, "sigtimedwait")):  # see _init_worker
            return super().__iter__()
        _ending(os.getpid())  # workers inherit it
        held = {*_IGNORED, signal.SIGTERM}
        received: list[int] = []
        in_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
        handlers = {
            number: signal.signal(number, lambda number, _: received.append(number))
            for number in (held if in_main else ())
        }
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)  # workers inherit it
        try:
            return super().__iter__()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for late in received:
                signal.raise_signal(late)


def _as_list(batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(batch)


def _init_worker(_worker: int) -> None:
    """Takes one thread, and leaves the signals of the process group to the parent, which ends its workers.

    A worker that a signal ended would end the parent in the middle of a step or of a checkpoint.
    """
    torch.set_num_threads(1)
    sys.excepthook = _print_unless_parent_ended
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _print_unless_parent_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an exception of a worker's thread, but not that the parent ended while it was sent a sample."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


@functools.cache
def _ending(process: int) -> mmap.mmap:
    """Returns a byte that a process shares with its workers; it is 1 once the process ends.

    Args:
        process: its number. The first call is the process's own, before there are workers.
    """
    byte = mmap.mmap(-1, 1)
    multiprocessing.util.Finalize(None, byte.write_byte, args=(1,), exitpriority=0)
    return byte


def _end_with_parent(parent: int) -> None:
    """Ends this process on a SIGTERM of its parent, which multiprocessing sends, or when the parent ends.

    The SIGTERM alone does not do: one that comes while another process's is pending is lost, and the parent
    would wait for ever. torch's workers look for their parent every 5 s, in the main thread alone.
    """
    while os.getppid() == parent and not _ending(parent)[0]:
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def first_test_split(cfg: CfgNode) -> str:
    """Returns the first split of DATASETS.TEST.

    Args:
        cfg: the config.

    Raises:
        ValueError: DATASETS.TEST is empty.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name the split to draw, such as ('val',)")
    return str(cfg.DATASETS.TEST[0])


def first_test_dataset(cfg: CfgNode) -> MappedDataset:
    """Returns the samples of the first split of DATASETS.TEST, as its evaluation maps them.

    Args:
        cfg: the config.

    Raises:
        FileNotFoundError: the data set or one of its files does not exist.
        ValueError: DATASETS.TEST is empty, or the data set is wrong.
    """
    dataset = build_test_loader(cfg, first_test_split(cfg)).dataset
    assert isinstance(dataset, MappedDataset)
    return dataset
