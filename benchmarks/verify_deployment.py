#!/usr/bin/env python3
"""Compares an exported file with the detector that it was made of, over whole splits, as JSON.

    python -m benchmarks.verify_deployment --config-file configs/demo/teacher.yaml \
        --weights assets/demo_teacher.safetensors --json result.json DATASETS.ROOT data/demo

It exports the model to ONNX and runs every frame of the first split of DATASETS.TEST twice, by PyTorch as in
an evaluation and by bevkd2.runtime, both with the state of their own frames before. Boxes may differ by 1 mm
and 1 mrad, scores by 1e-4 (relatively, above 1), and the scores of the data set's metric by 1e-3; the exit
status is 1 beyond that.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.machine import machine
from bevkd2 import runtime
from bevkd2.config import CfgNode
from bevkd2.data import build_test_loader, data_format
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.export import export_detector, image_size_of, load_student, run_sample
from bevkd2.structures import Boxes3D, CameraBoxes3D

TOLERANCES = {"boxes": 1e-3, "scores": 1e-4, "metrics": 1e-3}
_HEADING = 6
_OTHER_CLASS = 1e6


def verify(cfg: CfgNode, weights: str, *, onnx: Path | None = None, frames: int = 0) -> dict[str, Any]:
    """Exports a model, runs both, and compares.

    Args:
        cfg: of the model, or of a distillation.
        weights: its checkpoint.
        onnx: a file to compare instead of a fresh export, such as a quantised one.
        frames: most frames to run, without the data set's metric; 0: all.

    Returns:
        The largest differences, the frames that differ in what was found, both metrics, and sizes and times.
    """
    cfg, model = load_student(cfg, weights)
    split = cfg.DATASETS.TEST[0]
    with tempfile.TemporaryDirectory() as folder:
        path, start = onnx or Path(folder) / "model.onnx", time.perf_counter()
        if onnx is None:
            export_detector(cfg, model, [path], image_size=image_size_of(cfg))
        seconds = time.perf_counter() - start
        runner = runtime.load(path, threads=torch.get_num_threads())
        evaluators = [build_evaluator(cfg, split, Path(folder) / name) for name in ("torch", "onnx")]
        for evaluator in evaluators:
            evaluator.reset()
        report: dict[str, Any] = {
            "frames": 0,
            "objects": 0,
            "frames_that_differ": 0,
            "at_the_end": 0,
            "boxes": 0.0,
            "scores": 0.0,
        }
        for batch in build_test_loader(cfg, split):
            (sample,) = batch
            with torch.no_grad():
                (expected,) = model.detect(batch)
            found = run_sample(runner, sample)
            compare(report, expected, found)
            for evaluator, outputs in zip(evaluators, (expected, as_outputs(found, expected)), strict=True):
                evaluator.process(batch, [outputs])
            if report["frames"] == frames:
                break
        if not frames:
            report["metrics"] = compare_metrics(*(evaluator.evaluate() for evaluator in evaluators))
        report |= {"onnx_megabytes": path.stat().st_size / 1e6, "export_seconds": round(seconds, 1)}
    return report


def compare(report: dict[str, Any], expected: Mapping[str, Any], found: runtime.Detections) -> None:
    """Adds a frame to the report.

    Objects of equal class are paired so that their boxes differ least: two of nearly equal scores may have
    changed places. At the score at which a frame's list ends, one object may also be in the list of one and
    not of the other; these are counted as ``at_the_end``, and their boxes are not compared.
    """
    report["frames"] += 1
    report["objects"] += len(found)
    ours, theirs = expected["scores"].double().numpy(), found.scores.astype(np.float64)
    end = max((scores.min() for scores in (ours, theirs) if len(scores)), default=0.0) + TOLERANCES["scores"]
    if not (len(ours) and len(theirs)):
        report["frames_that_differ"] += bool((ours > end).any() or (theirs > end).any())
        return
    boxes = np.abs(expected["boxes"].tensor.double().numpy()[:, None] - found.boxes[None])
    boxes[..., _HEADING] = np.minimum(boxes[..., _HEADING], np.abs(2 * math.pi - boxes[..., _HEADING]))
    distances = boxes.max(axis=2)
    distances[expected["labels"].numpy()[:, None] != found.labels[None]] = _OTHER_CLASS
    rows, columns = linear_sum_assignment(distances)
    alone = [np.delete(ours, rows), np.delete(theirs, columns)]
    compared = (ours[rows] > end) & (theirs[columns] > end)
    rows, columns, left = rows[compared], columns[compared], (rows[~compared], columns[~compared])
    alone += [ours[left[0]], theirs[left[1]]]
    report["at_the_end"] += sum(int((scores <= end).sum()) for scores in alone)
    others = distances[rows, columns] == _OTHER_CLASS
    if others.any() or any((scores > end).any() for scores in alone):
        report["frames_that_differ"] += 1
    if (~others).any():
        rows, columns = rows[~others], columns[~others]
        report["boxes"] = max(report["boxes"], float(distances[rows, columns].max()))
        report["scores"] = max(report["scores"], _score_difference(ours[rows], theirs[columns]))


def _score_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference; of PGD's scores above 1 the relative one."""
    return float((np.abs(ours - theirs) / np.maximum(ours, 1.0)).max())


def as_outputs(found: runtime.Detections, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an evaluator reads."""
    kind: type[Boxes3D] | type[CameraBoxes3D] = type(expected["boxes"])
    outputs: dict[str, Any] = {
        "boxes": kind(torch.from_numpy(found.boxes)),
        "scores": torch.from_numpy(found.scores),
        "labels": torch.from_numpy(found.labels),
    }
    for name in ("boxes2d", "attributes"):
        if (values := getattr(found, name)) is not None:
            outputs[name] = torch.from_numpy(values)
    return outputs


def compare_metrics(ours: Any, theirs: Any) -> dict[str, Any]:
    """Returns the data set's metrics of PyTorch, and the largest difference to those of the runtime."""
    differences = {
        name: abs(value - theirs[task][name])
        for task, metrics in ours.items()
        for name, value in metrics.items()
        if not math.isnan(value)
    }
    return {"torch": ours, "onnx": theirs, "largest_difference": max(differences.values())}


def passes(report: Mapping[str, Any]) -> bool:
    """Returns whether everything is within the tolerances."""
    metrics = report.get("metrics", {"largest_difference": 0.0})["largest_difference"]
    return bool(
        report["frames_that_differ"] == 0
        and report["boxes"] <= TOLERANCES["boxes"]
        and report["scores"] <= TOLERANCES["scores"]
        and metrics <= TOLERANCES["metrics"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    add_import_option(parser)
    parser.add_argument("--weights", default="", metavar="FILE", help="by default MODEL.WEIGHTS")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="compare this file, not a fresh export")
    parser.add_argument("--frames", type=int, default=0, help="most frames, without metrics; 0: all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report there, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    cfg = load_args(args)
    report = {"config": args.config_file, "tolerances": TOLERANCES, "machine": machine()}
    report |= verify(cfg, args.weights, onnx=args.onnx, frames=args.frames)
    report["format"], report["passes"] = data_format(cfg).name, passes(report)
    text = json.dumps(report, indent=1)
    print(text)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n")
    return 0 if report["passes"] else 1


if __name__ == "__main__":
    sys.exit(main())
