"""nuScenes one camera at a time, as a data format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from bevkd2.config import CfgNode as CN  # noqa: N817
from bevkd2.config import class_names
from bevkd2.d2 import DatasetEvaluator
from bevkd2.data.format import DATA_FORMAT_REGISTRY, dataset_root
from bevkd2.data.mono.format import MonoFormat
from bevkd2.data.mono.index import MonoRecord
from bevkd2.data.mono.targets import Labelled
from bevkd2.data.nuscenes.format import load_frames, nuscenes_source, nuscenes_stored_frames
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.nuscenes.layout import CLASS_NAMES, MONO_CLASS_NAMES, layout_labels
from bevkd2.structures import CameraBoxes3D, camera_from_upright, projected_boxes2d, wrap_angle

if TYPE_CHECKING:
    from bevkd2.data.stored import StoredFrames
    from bevkd2.evaluation.left_out import LeftOutScorer


class NuScenesMonoIndex:
    """The camera images of a split: those of a key frame follow one another, in the order of the cameras.

    Attributes:
        frames: the key frames.
        class_names: what labels mean, in their order. Objects of other classes are background.
    """

    def __init__(self, frames: NuScenesIndex, class_names: Sequence[str]) -> None:
        """Makes an index of the single images of key frames.

        Args:
            frames: the key frames.
            class_names: nuScenes detection classes in the order of the labels.

        Raises:
            ValueError: a class that nuScenes has not, or one twice.
        """
        self.frames, self.class_names = frames, tuple(class_names)
        self._label_of = np.full(len(CLASS_NAMES), -1, dtype=np.int64)
        self._label_of[layout_labels(class_names)] = np.arange(len(class_names))

    def __len__(self) -> int:
        return len(self.frames) * len(self.frames.cameras)

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (height, width) of image ``i`` in pixels."""
        height, width = self.frames.image_sizes[divmod(i, len(self.frames.cameras))].tolist()
        return height, width

    def groups(self) -> list[range]:
        """Returns the images of each key frame, which an evaluation wants on one rank."""
        count = len(self.frames.cameras)
        return [range(count * frame, count * (frame + 1)) for frame in range(len(self.frames))]

    def record(self, i: int) -> MonoRecord:
        """Returns what is known of an image.

        Objects are those that mmdetection3d's monocular detectors learn: with lidar points, of any
        visibility, their centre before the camera, and their projected corners inside the image in part.

        Args:
            i: frame times the number of cameras, plus the camera.

        Returns:
            The record, without image-plane boxes, as nuScenes has none of its own. ``extra`` holds
            sample_token and camera (str), cam2global (4, 4) float64, through the ego's pose at the camera's
            own time, and lidar2global and ego2global (4, 4) float64.

        Raises:
            IndexError: no such image.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of split {self.frames.split!r}, which has {len(self)} images")
        frames = self.frames
        f, c = divmod(i, len(frames.cameras))
        token, camera = frames.sample_tokens[f].decode(), frames.cameras[c]
        height, width = self.image_size(i)
        cam2img = np.eye(4)
        cam2img[:3, :3] = frames.intrinsics[f, c]
        boxes, labels, attributes = self._objects(f, c)
        boxes2d = projected_boxes2d(boxes, torch.from_numpy(cam2img), (height, width))
        seen = (boxes.depth > 0) & (boxes2d[:, 2:] > boxes2d[:, :2]).all(dim=1)
        return MonoRecord(
            image_id=f"{token}/{camera}",
            file_name=str(Path(frames.root) / frames.filenames[f, c].decode()),
            height=height,
            width=width,
            cam2img=cam2img,
            boxes=boxes[seen],
            labels=labels[seen],
            attributes=attributes[seen],
            extra={
                "sample_token": token,
                "camera": camera,
                "cam2global": frames.lidar2global[f] @ frames.cam2lidar[f, c],
                "lidar2global": frames.lidar2global[f].copy(),
                "ego2global": frames.ego2global[f].copy(),
            },
        )

    def labelled(self) -> Labelled:
        """Returns the objects of the key frames, by class."""
        labels, with_points = self._label_of[self.frames.labels], self.frames.num_lidar_pts > 0

        def counts(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
            return np.bincount(labels[chosen & (labels >= 0)], minlength=len(self.class_names))

        left_out = {"have no lidar points": counts(~with_points)}
        return Labelled(counts(with_points), left_out, int((labels < 0).sum()))

    def _objects(self, f: int, c: int) -> tuple[CameraBoxes3D, Tensor, Tensor]:
        """Returns all objects of a frame that have lidar points and a label: boxes, labels, attributes."""
        frames = self.frames
        where = frames.annotations(f)
        labels = self._label_of[frames.labels[where]]
        wanted = torch.from_numpy((frames.num_lidar_pts[where] > 0) & (labels >= 0))
        boxes = camera_from_upright(frames.boxes3d(f)[wanted], frames.cam2lidar[f, c])
        boxes.tensor[:, 6] = wrap_angle(boxes.rotation_y)
        boxes.tensor[:, 7:9] = boxes.velocity.nan_to_num(nan=0.0)
        attributes = torch.from_numpy(frames.attributes[where].copy())
        return boxes, torch.from_numpy(labels)[wanted], attributes[wanted]


@DATA_FORMAT_REGISTRY.register()
class NuScenesMonoFormat(MonoFormat):
    """Each image of each camera of each key frame is a sample; the data are those of "nuscenes"."""

    name = "nuscenes_mono"
    default_classes = known_classes = MONO_CLASS_NAMES
    typical_image_size = (1600, 900)

    def add_config(self, cfg: CfgNode) -> None:
        """Adds ``TEST.NUSCENES_MONO``: how the cameras of a key frame become one list of boxes."""
        super().add_config(cfg)
        node = cfg.TEST.NUSCENES_MONO = CN()
        # The values are those of mmdetection3d's NuScenesMonoDataset.
        node.SCORE_THRESHOLD = 0.01  # detections of a camera below it are dropped
        node.NMS_THRESHOLD = (
            0.05  # rotated IoU on the ground above which the lower score goes, within a class
        )
        node.MAX_PER_SAMPLE = 500  # detections of a key frame; the official evaluation refuses more than 500

    def source(self, cfg: CfgNode) -> dict[str, str]:
        """Returns the key frames' settings and the classes."""
        return {**nuscenes_source(cfg), "classes": ",".join(class_names(cfg))}

    def load(self, cfg: CfgNode, split: str) -> NuScenesMonoIndex:
        """Returns the images of a split."""
        return NuScenesMonoIndex(load_frames(cfg, split), class_names(cfg))

    def labelled(self, index: NuScenesMonoIndex) -> Labelled:  # type: ignore[override]
        """Returns the objects of a split."""
        return index.labelled()

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
        """Returns the official score of the merged cameras."""
        from bevkd2.evaluation import NuScenesMonoEvaluator  # imports the devkit, which takes seconds
        from bevkd2.evaluation.camera_merge import MergeRule

        node = cfg.TEST.NUSCENES_MONO
        return NuScenesMonoEvaluator(
            root=dataset_root(cfg),
            version=cfg.DATASETS.VERSION,
            split=split,
            output_dir=output_dir,
            class_names=class_names(cfg),
            cameras=cfg.INPUT.CAMERAS,
            rule=MergeRule(node.SCORE_THRESHOLD, node.NMS_THRESHOLD, node.MAX_PER_SAMPLE),
        )

    def left_out_scorer(self, cfg: CfgNode, split: str) -> LeftOutScorer:
        """Returns the official score, without one scene at a time."""
        from bevkd2.evaluation.nuscenes_scenes import NuScenesScenes  # imports the devkit

        return NuScenesScenes(root=dataset_root(cfg), version=cfg.DATASETS.VERSION, split=split)

    def stored_frames(self, cfg: CfgNode, split: str) -> StoredFrames:
        """Returns the key frames with all cameras; matches are the devkit's true positives."""
        return nuscenes_stored_frames(cfg, split)
