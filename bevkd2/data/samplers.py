"""Samplers: which frames a rank reads, in which order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TrainingSampler(Sampler[tuple[int, int]]):
    """Infinite shuffled sampler; rank r takes every world_size-th index.

    The stream is a function of size and seed alone; ranks and a later start only choose positions in it. So a
    resumed run sees the frames that the interrupted one would have seen, and together the ranks see each
    frame once per epoch.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0) -> None:
        """Chooses positions of the stream.

        Args:
            size: number of frames in the dataset.
            seed: of the shuffling.
            rank: this process.
            world_size: number of processes.
            start: first position, over all ranks: iteration times the total batch size.

        Raises:
            ValueError: the dataset is empty.
        """
        if size <= 0:
            raise ValueError("the training set has no frames: check DATASETS.TRAIN")
        self._size, self._seed = size, seed
        self._positions = (start + rank, world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (frame, position); the position is unique in the run and seeds the frame's augmentation."""
        epoch, order = -1, torch.empty(0)
        for position in itertools.count(*self._positions):
            if position // self._size != epoch:
                epoch = position // self._size
                generator = torch.Generator().manual_seed(self._seed + epoch)
                order = torch.randperm(self._size, generator=generator)
            yield int(order[position % self._size]), position


class SceneSampler(Sampler[tuple[int, int]]):
    """All frames in order, whole scenes per rank: temporal models carry their state from frame to frame."""

    def __init__(self, scenes: Sequence[range], rank: int = 0, world_size: int = 1) -> None:
        """Chooses the scenes of a rank.

        Args:
            scenes: the frames of each scene, in order.
            rank: this process.
            world_size: number of processes. Where there are more of them than scenes, some get nothing.
        """
        total = sum(len(scene) for scene in scenes)
        # A scene belongs to the rank in whose share of all frames its middle lies: a contiguous run, evenly
        # full.
        self._frames = [
            frame
            for scene in scenes
            if (2 * scene.start + len(scene)) * world_size // (2 * total) == rank
            for frame in scene
        ]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (frame, frame), as training samplers do."""
        return ((frame, frame) for frame in self._frames)

    def __len__(self) -> int:
        return len(self._frames)
