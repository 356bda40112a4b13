"""nuScenes for multi-view detectors, as a data format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from bevkd2.d2 import DatasetEvaluator
from bevkd2.data.format import DATA_FORMAT_REGISTRY, DataFormat, Mapper, dataset_root
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes.index import NuScenesIndex, concatenate
from bevkd2.data.nuscenes.mapper import NuScenesMapper
from bevkd2.data.targets import Lacking, lacking_classes
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.structures import CAMERA_NAMES, Boxes3D

if TYPE_CHECKING:
    from bevkd2.data.loader import MappedDataset
    from bevkd2.data.stored import StoredFrames
    from bevkd2.data.synthetic.world import SyntheticWorld
    from bevkd2.evaluation.left_out import LeftOutScorer
    from bevkd2.modeling.detector import Detector
    from bevkd2.visualization.objects import Image


def nuscenes_source(cfg: CfgNode) -> dict[str, str]:
    """Returns the settings that decide which frames a nuScenes split has; see ``DataFormat.source``."""
    data = cfg.DATASETS
    return {
        "root": dataset_root(cfg),
        "version": data.VERSION,
        "cache": data.CACHE_DIR,
        "cameras": ",".join(cfg.INPUT.CAMERAS),
    }


def load_frames(cfg: CfgNode, split: str) -> NuScenesIndex:
    """Returns the key frames of a split; errors as :func:`load_nuscenes`."""
    data = cfg.DATASETS
    return load_nuscenes(dataset_root(cfg), data.VERSION, split, data.CACHE_DIR, tuple(cfg.INPUT.CAMERAS))


def nuscenes_stored_frames(cfg: CfgNode, split: str) -> StoredFrames:
    """Returns the key frames of a split; see ``DataFormat.stored_frames``."""
    from bevkd2.data.stored.nuscenes import NuScenesStoredFrames  # imports the devkit

    x0, y0, _, x1, y1, _ = cfg.INPUT.POINT_RANGE
    index = load_frames(cfg, split)
    return NuScenesStoredFrames(dataset_root(cfg), cfg.DATASETS.VERSION, index, (x0, y0, x1, y1))


@DATA_FORMAT_REGISTRY.register()
class NuScenesFormat(DataFormat):
    """Key frames of all cameras, with boxes in the frame of LIDAR_TOP."""

    name = "nuscenes"
    default_classes = known_classes = CLASS_NAMES
    fixed_classes = True
    single_images = False
    typical_image_size = (1600, 900)

    def add_config(self, cfg: CfgNode) -> None:
        """Adds the keys of nuScenes' tables, and those of multi-view samples."""
        cfg.DATASETS.VERSION = "v1.0-trainval"  # the folder with the tables
        # of the compact index; "": <ROOT>/.bevkd2_cache, or the user's cache where ROOT is read-only
        cfg.DATASETS.CACHE_DIR = ""

        inp = cfg.INPUT
        inp.CAMERAS = list(CAMERA_NAMES)  # sensor channels, in the order in which the model gets them
        inp.IMAGE_SCALE = 0.5  # resize factor of both image sides; the intrinsics follow
        # Key frames of a training sample: the current one and QUEUE_LENGTH - 1 of history.
        inp.QUEUE_LENGTH = 3
        # Which key frames those of history are. "random": of the QUEUE_LENGTH before the current one, all but
        # one drawn at random, as published | "latest": those directly before it, always one key frame apart,
        # as in evaluation (ours)
        inp.HISTORY = "random"
        # Metres: x, y, z least, then x, y, z greatest, in the frame of LIDAR_TOP. Boxes whose centre is
        # outside in x or y are not trained with, and the BEV grid covers it.
        inp.POINT_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]

    def source(self, cfg: CfgNode) -> dict[str, str]:
        """Returns root, version, cache and cameras."""
        return nuscenes_source(cfg)

    def load(self, cfg: CfgNode, split: str) -> NuScenesIndex:
        """Returns the key frames of a split."""
        return load_frames(cfg, split)

    def join(self, indices: Sequence[NuScenesIndex]) -> NuScenesIndex:
        """Returns the frames of all splits."""
        return concatenate(indices)

    def groups(self, index: NuScenesIndex) -> list[range]:
        """Returns the frames of each scene: a temporal detector reads them in order."""
        return index.scenes()

    def mapper(self, cfg: CfgNode, *, is_train: bool) -> Mapper:
        """Returns a :class:`NuScenesMapper`."""
        mapper: Mapper = NuScenesMapper(cfg, is_train=is_train)
        return mapper

    def random_settings(self, cfg: CfgNode) -> list[str]:
        """Returns also the key of the history, where it is drawn."""
        drawn = cfg.INPUT.HISTORY == "random" and cfg.INPUT.QUEUE_LENGTH > 1
        return super().random_settings(cfg) + (["INPUT.HISTORY: random"] if drawn else [])

    def lacking(self, cfg: CfgNode, index: NuScenesIndex) -> Lacking:
        """Returns the classes without an object that has points and is in range."""
        mapper = self.mapper(cfg, is_train=True)
        if not isinstance(mapper, NuScenesMapper):
            return super().lacking(cfg, index)
        with_points = index.num_lidar_pts + index.num_radar_pts > 0
        inside = Boxes3D(torch.from_numpy(index.boxes)).in_range(mapper.bev_limits).numpy()

        def counts(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
            return np.bincount(index.labels[chosen], minlength=len(CLASS_NAMES))

        left_out = {
            "have no lidar or radar points": counts(~with_points),
            "are outside INPUT.POINT_RANGE": counts(with_points & ~inside),
        }
        return lacking_classes(CLASS_NAMES, counts(with_points & inside), left_out)

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
        """Returns the official score."""
        from bevkd2.evaluation import NuScenesEvaluator  # imports the devkit, which takes seconds

        return NuScenesEvaluator(
            root=dataset_root(cfg), version=cfg.DATASETS.VERSION, split=split, output_dir=output_dir
        )

    def left_out_scorer(self, cfg: CfgNode, split: str) -> LeftOutScorer:
        """Returns the official score, without one scene at a time."""
        from bevkd2.evaluation.nuscenes_scenes import NuScenesScenes  # imports the devkit

        return NuScenesScenes(root=dataset_root(cfg), version=cfg.DATASETS.VERSION, split=split)

    def stored_frames(self, cfg: CfgNode, split: str) -> StoredFrames:
        """Returns the key frames with all cameras; matches are the devkit's true positives."""
        return nuscenes_stored_frames(cfg, split)

    def figures(
        self,
        cfg: CfgNode,
        dataset: MappedDataset,
        models: Mapping[str, Detector[Any, Any, Any]],
        *,
        num: int,
        sample_ids: Sequence[str] = (),
        score_threshold: float = 0.3,
    ) -> Iterator[tuple[str, dict[str, Image]]]:
        """Draws frames; every scene is seen from its beginning, so ``sample_ids`` must be empty.

        Raises:
            ValueError: samples are named.
        """
        from bevkd2.visualization import ModelStream, choose_frames, frame_figures

        if sample_ids:
            raise ValueError(
                f"format {self.name!r} draws frames of whole scenes: choose their number instead"
            )
        streams = {name: ModelStream(model) for name, model in models.items()}
        scenes = dataset.index.scenes()
        chosen_frames = choose_frames(scenes, num)
        for scene, chosen in tqdm(list(zip(scenes, chosen_frames, strict=True)), unit="scene"):
            for frame in scene[: list(scene).index(chosen[-1]) + 1] if chosen else []:
                sample = dataset[(int(frame), 0)]
                views: dict[str, Any] = {name: stream.see(sample) for name, stream in streams.items()}
                if frame in chosen:
                    cameras = tuple(cfg.INPUT.CAMERAS)
                    yield (
                        f"{int(frame):05d}",
                        frame_figures(
                            sample, views, cameras, dataset.class_names, score_threshold=score_threshold
                        ),
                    )

    def synthetic_world(self) -> type[SyntheticWorld]:
        """Returns the settings of the world in nuScenes layout."""
        from bevkd2.data.synthetic import WorldConfig

        return WorldConfig
