"""nuScenes one camera at a time, as a data format."""

from __future__ import annotations

from pathlib import Path

from fvcore.common.config import CfgNode

from bevkd2.config import CfgNode as CN  # noqa: N817
from bevkd2.config import class_names
from bevkd2.d2 import DatasetEvaluator
from bevkd2.data.format import DATA_FORMAT_REGISTRY, dataset_root
from bevkd2.data.mono.format import MonoFormat
from bevkd2.data.nuscenes.format import load_frames, nuscenes_source
from bevkd2.data.nuscenes_mono.dataset import NuScenesMonoIndex
from bevkd2.nuscenes.layout import MONO_CLASS_NAMES


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
