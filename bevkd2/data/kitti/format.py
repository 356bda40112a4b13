"""KITTI's object data, as a data format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from bevkd2.config import class_names
from bevkd2.d2 import DatasetEvaluator
from bevkd2.data.format import DATA_FORMAT_REGISTRY, dataset_root
from bevkd2.data.kitti.dataset import KittiIndex, load_kitti
from bevkd2.data.mono.format import MonoFormat
from bevkd2.kitti.frame_lists import has_labels
from bevkd2.kitti.labels import TYPES

if TYPE_CHECKING:
    from bevkd2.data.synthetic.world import SyntheticWorld


@DATA_FORMAT_REGISTRY.register()
class KittiFormat(MonoFormat):
    """Single images with KITTI's label and calibration files."""

    name = "kitti"
    default_classes = ("Pedestrian", "Cyclist", "Car")  # the order of the published PGD and SMOKE heads
    known_classes = tuple(name for name in TYPES if name != "DontCare")
    typical_image_size = (1242, 375)  # they differ by some pixels

    def register(self, cfg: CfgNode, split: str) -> str:
        """Registers a split; one of the folder testing, which has no labels, cannot be trained with."""
        if split in cfg.DATASETS.TRAIN and not has_labels(split):
            raise ValueError(
                f"DATASETS.TRAIN names {split!r}, whose frames are in the folder testing, which has no "
                "labels; call the list of a training split otherwise (neither test nor test_...)"
            )
        return super().register(cfg, split)

    def load(self, cfg: CfgNode, split: str) -> KittiIndex:
        """Returns the frames of a split."""
        return load_kitti(dataset_root(cfg), split, class_names(cfg))

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
        """Returns KITTI's score."""
        from bevkd2.evaluation.kitti import KittiEvaluator

        return KittiEvaluator(
            root=dataset_root(cfg), split=split, classes=class_names(cfg), output_dir=output_dir
        )

    def synthetic_world(self) -> type[SyntheticWorld]:
        """Returns the settings of the world in KITTI layout."""
        from bevkd2.data.synthetic import KittiWorldConfig

        return KittiWorldConfig
