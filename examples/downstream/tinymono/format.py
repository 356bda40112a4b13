"""BoxesJson: a data format of its own, a folder of images with one JSON file per split.

ROOT/train.json::

    {"images": [{"file": "images/000.png", "width": 320, "height": 96, "intrinsics": [[f, 0, u], ...],
                 "boxes": [{"class": "car", "center": [x, y, z], "size": [length, height, width],
                            "yaw": 0.1}]}]}

Boxes are in the frame of the camera (metres; x right, y down, z forward), centre in the middle of the box.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.config import CfgNode, class_names
from bevkd2.d2 import DatasetEvaluator, comm
from bevkd2.data import DATA_FORMAT_REGISTRY, MonoFormat, MonoRecord, dataset_root
from bevkd2.structures import CameraBoxes3D


class BoxesJsonIndex:
    """The images of a split."""

    def __init__(self, root: Path, split: str, classes: Sequence[str]) -> None:
        path = root / f"{split}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; set DATASETS.ROOT, DATASETS.TRAIN or DATASETS.TEST"
            )
        self.root, self.classes = root, tuple(classes)
        self.images: list[dict[str, Any]] = json.loads(path.read_text())["images"]

    def __len__(self) -> int:
        return len(self.images)

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (height, width) of image ``i`` in pixels."""
        return self.images[i]["height"], self.images[i]["width"]

    def groups(self) -> list[range]:
        """Returns one group per image: any process may score it."""
        return [range(i, i + 1) for i in range(len(self))]

    def record(self, i: int) -> MonoRecord:
        """Returns image ``i``; objects of other classes are background."""
        image = self.images[i]
        boxes = [box for box in image["boxes"] if box["class"] in self.classes]
        rows = [[*box["center"], *box["size"], box["yaw"]] for box in boxes]
        cam2img = np.eye(4)
        cam2img[:3, :3] = image["intrinsics"]
        return MonoRecord(
            image_id=image["file"],
            file_name=str(self.root / image["file"]),
            height=image["height"],
            width=image["width"],
            cam2img=cam2img,
            boxes=CameraBoxes3D(torch.tensor(rows, dtype=torch.float32).reshape(-1, 7)),
            labels=torch.tensor([self.classes.index(box["class"]) for box in boxes], dtype=torch.int64),
        )


class CenterDistanceEvaluator(DatasetEvaluator):
    """Average precision of each class; a detection is right if its centre is near that of a new object."""

    def __init__(self, index: BoxesJsonIndex, distance: float) -> None:
        self._index, self._distance = index, distance
        self.reset()

    def reset(self) -> None:
        """Removes all detections."""
        self._found: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collects the detections of a batch: centres (K, 3), scores (K,), labels (K,) of each image."""
        for sample, found in zip(inputs, outputs, strict=True):
            parts = (found["boxes"].center, found["scores"], found["labels"])
            self._found[sample["sample_id"]] = tuple(part.detach().cpu() for part in parts)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns {"bbox": {"AP_<class>": ..., "mAP": ...}} in [0, 1] on the main process, else None."""
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return None
        found = {image: parts for part in gathered for image, parts in part.items()}
        records = [self._index.record(i) for i in range(len(self._index))]
        missing = [record.image_id for record in records if record.image_id not in found]
        if missing:
            raise ValueError(f"{len(missing)} images were not evaluated, such as {missing[0]!r}")
        names = self._index.classes
        scores = {f"AP_{name}": self._precision(records, found, k) for k, name in enumerate(names)}
        return OrderedDict(bbox={**scores, "mAP": float(np.nanmean(list(scores.values())))})

    def _precision(self, records: Sequence[MonoRecord], found: dict[str, Any], label: int) -> float:
        """Returns the average precision of one class; NaN where it has no object."""
        hits: list[tuple[float, bool]] = []
        total = 0
        for record in records:
            centers, scores, labels = found[record.image_id]
            truth = record.boxes.center[record.labels == label]
            total += len(truth)
            free = torch.ones(len(truth), dtype=torch.bool)
            for k in [k for k in scores.argsort(descending=True).tolist() if labels[k] == label]:
                distances = (truth - centers[k]).norm(dim=1).where(free, torch.tensor(float("inf")))
                hit = bool(len(truth)) and float(distances.min()) < self._distance
                if hit:
                    free[distances.argmin()] = False
                hits.append((float(scores[k]), hit))
        right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=bool)
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        return float(precision[right].sum() / total) if total else float("nan")


@DATA_FORMAT_REGISTRY.register()
class BoxesJson(MonoFormat):
    """What DATASETS.FORMAT "boxes_json" is. Loading, augmentation and figures are those of MonoFormat."""

    name = "boxes_json"
    default_classes = ("car", "person")  # DATASETS.CLASSES may name any others
    typical_image_size = (320, 96)

    def add_config(self, cfg: CfgNode) -> None:
        """Adds the key of the evaluator to those of all monocular formats."""
        super().add_config(cfg)
        cfg.TEST.BOXES_JSON = CfgNode({"DISTANCE": 2.0})  # metres between a detection and its object

    def load(self, cfg: CfgNode, split: str) -> BoxesJsonIndex:
        """Reads the file of a split."""
        return BoxesJsonIndex(Path(dataset_root(cfg)), split, class_names(cfg))

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> CenterDistanceEvaluator:
        """Returns the evaluator; it writes no files."""
        return CenterDistanceEvaluator(self.load(cfg, split), cfg.TEST.BOXES_JSON.DISTANCE)
