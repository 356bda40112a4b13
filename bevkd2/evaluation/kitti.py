"""Scoring a monocular detector on a KITTI split."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from bevkd2.d2 import DatasetEvaluator, comm
from bevkd2.evaluation.check_detections import check_detections
from bevkd2.kitti.ap import (
    CLASSES,
    DIFFICULTIES,
    METRICS,
    DistanceBin,
    KittiScores,
    ap_by_distance,
    kitti_scores,
    precision_to_json,
    to_json,
    to_object_table,
    to_table,
    why_zero,
)
from bevkd2.kitti.files import KittiFrames, frame_list_path, has_labels, read_frame_list, split_folder
from bevkd2.kitti.labels import KittiObjects, write_detections
from bevkd2.structures import CameraBoxes3D, projected_boxes2d, wrap_angle

logger = logging.getLogger(__name__)

_METRIC_NAMES = {"bbox": "2D", "bev": "BEV", "3d": "3D"}


class KittiEvaluator(DatasetEvaluator):
    """Collects detections, writes them in the files of KITTI's benchmark, and scores them as it does."""

    def __init__(
        self, *, root: str | Path, split: str, classes: Sequence[str], output_dir: str | Path
    ) -> None:
        """Chooses what to score against.

        Args:
            root: directory that holds training (and testing) and ImageSets.
            split: name of a list in ImageSets; all its frames must be processed. A split of testing, which
                has no labels, is written but not scored.
            classes: names of the labels, in their order.
            output_dir: gets ``data/<image_id>.txt`` (files of other frames there are removed) and
                ``kitti_scores.json``, with the scores and the precision over recall.
        """
        self._root, self._split = Path(root), split
        self._classes = tuple(classes)
        self._output_dir = Path(output_dir)
        self._detections: dict[str, KittiObjects] = {}

    def reset(self) -> None:
        """Removes all detections."""
        self._detections = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collects the detections of a batch.

        Args:
            inputs: samples, of which image_id, cam2img, image_to_original, height and width are read.
            outputs: for each of them boxes (CameraBoxes3D), scores (K,) and labels (K,).
        """
        for sample, found in zip(inputs, outputs, strict=True):
            self._detections[sample["image_id"]] = to_kitti(sample, found, self._classes)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Writes and scores what all processes collected.

        Returns:
            On the main process {"bbox": scores}, else None; {} for a split without labels. Scores are in
            percent, as KITTI prints them. Their keys are <class>_<metric>_<difficulty>_R40 with metrics 2D,
            BEV, 3D (average precision) and AOS, as Car_3D_moderate_R40, of those classes that the model has.
            What the official tool does not evaluate, a class without a single detection, is NaN. AP|R11 and
            the scores by distance are in ``kitti_scores.json``.

        Raises:
            FileNotFoundError: the list of the split or a label file does not exist.
            ValueError: frames of the split are missing or foreign.
        """
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return None
        started = time.perf_counter()
        detections = {image: found for part in gathered for image, found in part.items()}
        names = read_frame_list(frame_list_path(self._root, self._split))
        self._check_frames(names, set(detections))
        folder = self._output_dir / "data"
        _write(folder, detections)
        if not has_labels(self._split):
            logger.warning("%s is a split of testing: %s holds the detections, unscored", self._split, folder)
            return OrderedDict()
        label_dir = split_folder(self._root, self._split) / "label_2"
        truths, written = KittiFrames(names, label_dir, folder, 0).read()
        scores, by_distance = kitti_scores(truths, written), ap_by_distance(truths, written)
        self._write_scores(scores, by_distance)
        logger.info(
            "KITTI score of %s (%d images, %d boxes, %.1f s), percent:\n%s\n"
            "by distance, AP|R40 moderate:\n%s\n"
            "objects and detections that count (others may have several reasons not to):\n%s",
            self._split,
            len(names),
            sum(map(len, written)),
            time.perf_counter() - started,
            to_table(scores),
            _distance_table(by_distance),
            to_object_table(scores),
        )
        for sentence in why_zero(scores):
            logger.warning("KITTI score of %s: %s", self._split, sentence)
        return OrderedDict(bbox=_flat(scores, self._classes))

    def _check_frames(self, names: Sequence[str], processed: set[str]) -> None:
        expected = set(names)
        if processed != expected:
            example = min(expected - processed or processed - expected)
            raise ValueError(
                f"split {self._split!r} of {self._root} has {len(expected)} frames; "
                f"{len(expected - processed)} of them were not evaluated and {len(processed - expected)} "
                f"others were (e.g. {example!r}). The score needs the whole split: use build_test_loader "
                "with this split"
            )

    def _write_scores(self, scores: KittiScores, by_distance: Sequence[DistanceBin]) -> None:
        bins = [
            {
                "low": entry.low,
                "high": entry.high if np.isfinite(entry.high) else None,
                **to_json(entry.scores),
            }
            for entry in by_distance
        ]
        curves = {"precision": precision_to_json(scores), "by_distance": bins}
        content = json.dumps({**to_json(scores), **curves}, indent=1, allow_nan=False)
        (self._output_dir / "kitti_scores.json").write_text(content + "\n")


def to_kitti(sample: Mapping[str, Any], found: Mapping[str, Any], classes: Sequence[str]) -> KittiObjects:
    """Expresses detections as KITTI's files do.

    The image-plane box, whose height decides in the evaluation, surrounds the projected corners and is
    clipped to the original image. Detections of which nothing is left there are dropped.

    Args:
        sample: cam2img (4, 4) of the image that the model saw, image_to_original (3, 3) from its pixels to
            those of the file, height and width of the file, and image_id for messages.
        found: boxes (CameraBoxes3D), scores (K,) and labels (K,) index into ``classes``.
        classes: names of KITTI's types.

    Returns:
        K or fewer objects, truncated and occluded unknown (-1), in the order of ``found``.

    Raises:
        ValueError: detections that cannot be, see ``check_detections``; names the image.
    """
    boxes = CameraBoxes3D(found["boxes"].tensor.detach().cpu().double()[:, :7])
    scores, labels = found["scores"].detach().cpu().double().numpy(), found["labels"].cpu().numpy()
    check_detections(boxes, scores, labels, len(classes), f"image {sample['image_id']!r}")
    to_original = torch.eye(4, dtype=torch.float64)
    to_original[:3, :3] = torch.as_tensor(sample["image_to_original"]).double()
    cam2img = to_original @ torch.as_tensor(sample["cam2img"]).cpu().double()
    boxes2d = projected_boxes2d(boxes, cam2img, (sample["height"], sample["width"]))
    visible = (boxes2d[:, 2:] > boxes2d[:, :2]).all(dim=1)
    boxes, kept = boxes[visible], visible.numpy()
    unknown = np.full(len(boxes), -1)
    return KittiObjects(
        types=np.array([classes[label] for label in labels[kept]], dtype=np.str_),
        truncated=unknown.astype(np.float64),
        occluded=unknown.astype(np.int64),
        alpha=wrap_angle(boxes.alpha()).numpy(),
        boxes2d=boxes2d[visible].numpy(),
        sizes=boxes.tensor[:, [5, 4, 3]].numpy(),
        location=boxes.bottom_center.numpy(),
        rotation_y=wrap_angle(boxes.rotation_y).numpy(),
        scores=scores[kept],
    )


def _write(folder: Path, detections: Mapping[str, KittiObjects]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.txt"):  # of another split: they would be scored as well
        path.unlink()
    for image, found in detections.items():
        write_detections(folder / f"{image}.txt", found)


def _flat(scores: KittiScores, classes: Sequence[str]) -> dict[str, float]:
    """Returns AP|R40 and AOS of the model's classes, by readable names."""
    ap, aos = scores.ap_r40(), scores.aos_r40()
    flat: dict[str, float] = {}
    for name in classes:
        if name.lower() not in CLASSES:
            continue  # KITTI scores three classes; others are only written
        for metric in METRICS:
            for difficulty in DIFFICULTIES:
                value = ap.get(f"{name.lower()}/{metric}/{difficulty}", float("nan"))
                flat[f"{name}_{_METRIC_NAMES[metric]}_{difficulty}_R40"] = value
        for difficulty in DIFFICULTIES:
            value = aos.get(f"{name.lower()}/bbox/{difficulty}", float("nan"))
            flat[f"{name}_AOS_{difficulty}_R40"] = value
    return flat


def _distance_table(bins: Sequence[DistanceBin]) -> str:
    keys = [f"{cls}/{metric}/moderate" for cls in CLASSES for metric in ("bev", "3d")]
    rows = []
    for key in keys:
        curves = [entry.scores.curves.get(key) for entry in bins]
        rows.append([key, *(None if curve is None else curve.ap_r40 for curve in curves)])
    headers = ["", *(f"{entry.low:g} to {entry.high:g} m" for entry in bins)]
    return tabulate(rows, headers=headers, floatfmt=".4f", missingval="-")
