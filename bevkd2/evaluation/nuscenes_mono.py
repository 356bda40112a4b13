"""The official nuScenes detection score of a model that sees one camera at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.d2 import DatasetEvaluator, comm
from bevkd2.evaluation.camera_merge import CameraDetections, MergeRule, merge_cameras
from bevkd2.evaluation.check_detections import check_detections, check_range
from bevkd2.evaluation.nuscenes import NuScenesScorer
from bevkd2.nuscenes.layout import NO_ATTRIBUTE, layout_labels


class NuScenesMonoEvaluator(DatasetEvaluator):
    """Collects detections of camera images, merges those of a key frame, and scores them.

    Images may come in any order and any batches, the cameras of a key frame from different processes too.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        version: str,
        split: str,
        output_dir: str | Path,
        class_names: Sequence[str],
        cameras: Sequence[str],
        rule: MergeRule,
    ) -> None:
        """Chooses what to score against.

        Args:
            root: the dataset's root directory.
            version: name of the tables.
            split: an official split or one of the version's ``splits.json``; all its samples must be
                processed.
            output_dir: gets the files of ``NuScenesEvaluator``.
            class_names: what the model's labels mean: nuScenes detection classes in the order of the labels.
            cameras: channels that must be processed of every sample.
            rule: how the cameras of a sample are merged.

        Raises:
            ValueError: a class that nuScenes has not.
        """
        self._scorer = NuScenesScorer(root=root, version=version, split=split, output_dir=output_dir)
        self._split, self._cameras, self._rule = split, tuple(cameras), rule
        self._layout_labels = layout_labels(class_names)
        self._detections: dict[tuple[str, str], CameraDetections] = {}

    def reset(self) -> None:
        """Removes all detections."""
        self._detections = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collects the detections of a batch.

        Args:
            inputs: samples, of which image_id, sample_token, camera, cam2global and ego2global are read.
            outputs: for each of them boxes (CameraBoxes3D), scores (K,), labels (K,), and where the model
                predicts them attributes (K,), 0 to 8.

        Raises:
            ValueError: detections that cannot be, see ``check_detections``, or an attribute that cannot;
                names the image.
        """
        for sample, found in zip(inputs, outputs, strict=True):
            key = (sample["sample_token"], sample["camera"])
            self._detections[key] = self._collected(sample, found)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Merges and scores what all processes collected.

        Returns:
            On the main process {"bbox": metrics} as ``NuScenesEvaluator`` gives them, else None.

        Raises:
            ValueError: cameras or samples of the split are missing or foreign.
        """
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return None
        samples: dict[str, dict[str, CameraDetections]] = {}
        for (token, camera), found in (item for part in gathered for item in part.items()):
            samples.setdefault(token, {})[camera] = found
        self._check_cameras(samples)
        merged = {
            token: merge_cameras([found[c] for c in self._cameras], self._rule, self._scorer.class_range)
            for token, found in samples.items()
        }
        return self._scorer.score(merged)

    def _collected(self, sample: Mapping[str, Any], found: Mapping[str, Any]) -> CameraDetections:
        boxes = found["boxes"].to("cpu")
        scores = found["scores"].detach().cpu().double().numpy()
        labels = found["labels"].cpu().numpy()
        where = f"image {sample['image_id']!r}"
        check_detections(boxes, scores, labels, len(self._layout_labels), where)
        predicted = found.get("attributes")
        attributes = None if predicted is None else predicted.cpu().numpy()
        if attributes is not None:
            check_range(attributes, NO_ATTRIBUTE + 1, where, "attribute", "nuScenes has eight, and none")
        return CameraDetections(
            boxes=boxes,
            scores=scores,
            labels=self._layout_labels[labels],
            attributes=attributes,
            cam2global=np.asarray(sample["cam2global"], dtype=np.float64),
            ego2global=np.asarray(sample["ego2global"], dtype=np.float64),
        )

    def _check_cameras(self, samples: Mapping[str, Mapping[str, CameraDetections]]) -> None:
        """Raises for a sample whose cameras are not those of the config."""
        expected = set(self._cameras)
        wrong = {token: found for token, found in samples.items() if set(found) != expected}
        if not wrong:
            return
        token, found = next(iter(wrong.items()))
        missing, foreign = [c for c in self._cameras if c not in found], sorted(set(found) - expected)
        details = [f"{', '.join(missing)} not evaluated"] if missing else []
        details += [f"{', '.join(foreign)} not in INPUT.CAMERAS"] if foreign else []
        raise ValueError(
            f"{len(wrong)} of {len(samples)} samples of split {self._split!r} lack cameras or have others: "
            f"sample {token!r} has {'; '.join(details)}. The score needs every camera of INPUT.CAMERAS: use "
            "build_test_loader with this split"
        )
