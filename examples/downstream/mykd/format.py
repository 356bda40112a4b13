import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.config import CfgNode, class_names
from bevkd2.d2 import DatasetEvaluator, comm
from bevkd2.data import DATA_FORMAT_REGISTRY, MonoFormat, MonoRecord, dataset_root
from bevkd2.structures import CameraBoxes3D


class Photos:
    """The images of a split. ROOT/photos.json is {split: [{file, width, height, intrinsics, boxes}]}.

    ``intrinsics`` are 3 x 3. A box is {"class", "box": x, y, z, length, height, width, yaw}, in the camera's
    frame in metres (x right, y down, z forward), centre in the middle.
    """

    def __init__(self, root: str, split: str, classes: tuple[str, ...]) -> None:
        self.root, self.classes = Path(root), tuple(classes)
        splits = json.loads((self.root / "photos.json").read_text())
        if split not in splits:
            raise ValueError(
                f"{self.root}/photos.json has no split {split!r}; expected one of {sorted(splits)}"
            )
        self.images = splits[split]

    def __len__(self) -> int:
        return len(self.images)

    def image_size(self, i: int) -> tuple[int, int]:
        return self.images[i]["height"], self.images[i]["width"]

    def groups(self) -> list[range]:
        return [range(i, i + 1) for i in range(len(self))]  # any process may score any image

    def record(self, i: int) -> MonoRecord:
        image = self.images[i]
        boxes = [box for box in image["boxes"] if box["class"] in self.classes]  # others are background
        rows = torch.tensor([box["box"] for box in boxes], dtype=torch.float32).reshape(-1, 7)
        cam2img = np.eye(4)
        cam2img[:3, :3] = image["intrinsics"]
        return MonoRecord(
            image_id=image["file"],
            file_name=str(self.root / image["file"]),
            height=image["height"],
            width=image["width"],
            cam2img=cam2img,
            boxes=CameraBoxes3D(rows),
            labels=torch.tensor([self.classes.index(box["class"]) for box in boxes], dtype=torch.int64),
        )


class CenterPrecision(DatasetEvaluator):
    """Average precision by class: a detection is right where it is near an object without a detection."""

    def __init__(self, index: Photos, distance: float) -> None:
        self.index, self.distance = index, distance
        self.reset()

    def reset(self) -> None:
        self.found: dict[str, tuple[torch.Tensor, ...]] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            parts = output["boxes"].center, output["scores"], output["labels"]
            self.found[sample["image_id"]] = tuple(part.cpu() for part in parts)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        gathered = comm.gather(self.found, dst=0)
        if not comm.is_main_process():
            return None
        found = {name: parts for each in gathered for name, parts in each.items()}
        records = [self.index.record(i) for i in range(len(self.index))]
        if missing := [record.image_id for record in records if record.image_id not in found]:
            raise ValueError(
                f"{len(missing)} of {len(records)} images were not evaluated, such as {missing[0]!r}"
            )
        names = self.index.classes
        scores = {f"AP_{name}": self.precision(records, found, k) for k, name in enumerate(names)}
        return {"bbox": {**scores, "mAP": float(np.nanmean(list(scores.values())))}}

    def precision(self, records: list[MonoRecord], found: dict[str, Any], label: int) -> float:
        """Returns the area under the curve of precision over recall, in [0, 1]; NaN without objects."""
        hits: list[tuple[float, bool]] = []
        total = 0
        for record in records:
            objects = record.boxes.center[record.labels == label]
            total += len(objects)
            for k in found[record.image_id][1].argsort(descending=True).tolist():
                center, score, found_label = (part[k] for part in found[record.image_id])
                if found_label != label:
                    continue
                distances = (objects - center).norm(dim=1)
                hit = len(distances) > 0 and bool(distances.min() < self.distance)
                if hit:  # an object is found once
                    objects = objects[torch.arange(len(objects)) != distances.argmin()]
                hits.append((float(score), hit))
        right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=bool)
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        return float(precision[right].sum() / total) if total else float("nan")


@DATA_FORMAT_REGISTRY.register()
class PhotoBoxes(MonoFormat):
    name = "photo_boxes"
    default_classes = ("car", "person")  # where DATASETS.CLASSES is empty
    typical_image_size = (320, 96)  # for the FLOPs of `bevkd2 analyze`

    def add_config(self, cfg: CfgNode) -> None:
        super().add_config(cfg)  # the keys of all monocular formats
        cfg.TEST.PHOTO_BOXES = CfgNode({"DISTANCE": 2.0})  # metres between a detection and its object

    def load(self, cfg: CfgNode, split: str) -> Photos:
        return Photos(dataset_root(cfg), split, class_names(cfg))

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> CenterPrecision:
        return CenterPrecision(self.load(cfg, split), cfg.TEST.PHOTO_BOXES.DISTANCE)
