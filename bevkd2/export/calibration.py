"""Runs exported files on samples of the mappers, and collects what is fed to a graph there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.config import CfgNode
from bevkd2.data.format import data_format, load_dataset
from bevkd2.runtime import Detections, Graph, MonoRuntime, MultiViewRuntime
from bevkd2.runtime.graph import Array, runtime_of


class RecordingGraph(Graph):
    """A graph that keeps its last inputs.

    Attributes:
        fed: every input of the last run by name.
    """

    fed: dict[str, Array]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a batch, and keeps it."""
        self.fed = dict(feeds)
        return super().run(feeds)


def run_sample(runner: MonoRuntime | MultiViewRuntime, sample: Mapping[str, Any]) -> Detections:
    """Runs a sample of a mapper by the runtime.

    Args:
        runner: of :func:`bevkd2.runtime.load`.
        sample: of a mapper in evaluation; those of multi-view detectors in the order of their scene.

    Returns:
        The detections.
    """
    if isinstance(runner, MonoRuntime):
        return runner.detect(sample["image"].numpy(), sample["cam2img"].numpy())
    return runner.detect(
        sample["images"].numpy(),
        sample["lidar2img"].numpy(),
        timestamp=sample["timestamp"],
        scene=sample["scene_token"],
        can_bus=sample["can_bus"].numpy(),
    )


def calibration_samples(cfg: CfgNode, frames: int) -> Iterator[dict[str, Any]]:
    """Returns samples of the first split of DATASETS.TRAIN, without augmentation.

    Args:
        cfg: of the model.
        frames: how many at most, from the starts of scenes (or single images) spread evenly over the split.

    Raises:
        ValueError: DATASETS.TRAIN is empty, or ``frames`` is not positive.
        FileNotFoundError: the data set does not exist.
    """
    if frames < 1:
        raise ValueError(f"--calibration-frames is {frames}, expected 1 at least")
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty, expected the name of a split, which calibrates int8")
    form, index = data_format(cfg), load_dataset(cfg, cfg.DATASETS.TRAIN[0])
    mapper, groups = form.mapper(cfg, is_train=False), form.groups(index)
    needed = min(len(groups), -(-frames * len(groups) // len(index)))
    chosen = [frame for i in range(needed) for frame in groups[i * len(groups) // needed]][:frames]
    return (mapper(index, frame, np.random.default_rng(0), None) for frame in chosen)


def calibration_feeds(samples: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Array]]:
    """Yields the inputs of the graph on training frames, with the state that the file itself carries.

    Args:
        samples: of :func:`calibration_samples`.
        path: of the model's float32 file.

    Yields:
        Every input by name, a batch of one.
    """
    graph = RecordingGraph(path, threads=1)
    runner = runtime_of(graph)
    for sample in samples:
        run_sample(runner, sample)
        yield graph.fed
