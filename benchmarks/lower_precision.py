#!/usr/bin/env python3
"""Scores exported files of lower precision, and what int8 costs in each part of a detector.

    python -m benchmarks.lower_precision --config-file configs/demo/teacher.yaml \
        --weights assets/demo_teacher.safetensors --json files_demo_teacher.json DATASETS.ROOT data/demo
    bevkd2 make-synthetic --out data/quant --train-scenes 8 --val-scenes 10 --seed 3
    python -m benchmarks.lower_precision --groups --config-file configs/demo/teacher.yaml \
        --weights assets/demo_teacher.safetensors --json groups_demo_teacher.json DATASETS.ROOT data/quant
    make tables

The first command scores float32 and what ``bevkd2 export`` writes with --dtype float16 and --int8. The second
quantises one group of modules at a time, those of ``GROUPS``; a small world is enough, since all rows see the
same frames. Every row has the metrics of the first split of DATASETS.TEST, run by bevkd2.runtime, and how far
the objects that float32 is certain of move.
"""

import argparse
import functools
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.machine import machine
from benchmarks.verify_deployment import as_outputs
from bevkd2 import runtime
from bevkd2.config import CfgNode
from bevkd2.data import build_test_loader
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.export import (
    calibration_feeds,
    calibration_samples,
    export_detector,
    image_size_of,
    load_student,
    run_sample,
    to_float16,
    to_int8,
)
from bevkd2.export.precision import INT8_OPERATORS, module_of
from bevkd2.structures import Boxes3D, CameraBoxes3D

PRODUCTS = ("Conv", "Gemm", "MatMul")
GROUPS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "backbone, convolutions alone": ([r"\.image_backbone\b"], PRODUCTS),
    "backbone": ([r"\.image_backbone\b"], INT8_OPERATORS),
    "neck": ([r"\.neck\b"], INT8_OPERATORS),
    "attention: sampling offsets": ([r"\.sampling_offsets\b"], PRODUCTS),
    "attention: weights": ([r"\.attention_weights\b"], PRODUCTS),
    "attention: values and outputs": ([r"\.(value|output)_proj\b", r"\.self_attention\b"], PRODUCTS),
    "feed-forward": ([r"\.ffn\b"], PRODUCTS),
    "head: towers": ([r"\.(class|box)_tower\b", r"\.head\..*\.convs\b"], PRODUCTS),
    "head: last layers of classes": ([r"\.class_branch\.out\b", r"\.class_branches\b"], PRODUCTS),
    "head: last layers of boxes": (
        [r"\.head\.(?!class_branch).*\.out\b", r"\.box_branches\b", r"\.reference_points\b"],
        PRODUCTS,
    ),
    "all modules": (["."], INT8_OPERATORS),
}
"""Names of groups -> modules, and the operators in them that are quantised."""
CERTAIN = 0.3
"""Least score of an object whose change is counted."""
LOST = 2.0
"""Metres from which on an object is another one."""


def measure(
    cfg: CfgNode, weights: str, by_group: bool, calibration_frames: int, onnx_file: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yields a row per file, float32 first.

    Args:
        cfg: of the model.
        weights: its checkpoint.
        by_group: one group of modules at a time.
        calibration_frames: training frames.
        onnx_file: the model's float32 file, where there is one already.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = onnx_file or folder / "float32.onnx", folder / "lower.onnx"
        if onnx_file is None:
            cfg, model = load_student(cfg, weights)
            export_detector(cfg, model, [source], image_size=image_size_of(cfg))
        expected, scores = score(cfg, source, folder)
        yield {"name": "float32", **size(source), "metrics": scores}
        feeds = list(calibration_feeds(calibration_samples(cfg, calibration_frames), source))
        for row, convert in (groups if by_group else files)(source, target, feeds).items():
            print(row, file=sys.stderr, flush=True)
            convert()
            found, scores = score(cfg, target, folder)
            yield {"name": row, **size(target), "metrics": scores, **change(expected, found)}


def files(source: Path, target: Path, feeds: list[Any]) -> dict[str, Callable[[], None]]:
    """Returns what writes the default of each precision."""
    return {
        "float16": lambda: to_float16(source, target),
        "int8": lambda: to_int8(source, target, iter(feeds)),
    }


def groups(source: Path, target: Path, feeds: list[Any]) -> dict[str, Callable[[], None]]:
    """Returns what writes a file with one group in int8, of the groups of which the graph has an operator."""
    names = {(module_of(node), node.op_type) for node in onnx.load(source).graph.node}
    return {
        group: functools.partial(to_int8, source, target, iter(feeds), modules=modules, operators=operators)
        for group, (modules, operators) in GROUPS.items()
        if any(op in operators and any(re.search(m, name) for m in modules) for name, op in names)
    }


def size(path: Path) -> dict[str, Any]:
    """Returns the file's size and the number of its operators that have an int8 weight or input."""
    nodes = onnx.load(path).graph.node
    quantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    count = sum(
        any(name in quantised for name in node.input) for node in nodes if node.op_type in INT8_OPERATORS
    )
    return {"megabytes": round(path.stat().st_size / 1e6, 2), "operators": count}


def score(cfg: CfgNode, path: Path, folder: Path) -> tuple[list[runtime.Detections], dict[str, float]]:
    """Returns the detections of a file on the held-out split, and the data set's metrics."""
    split, runner = cfg.DATASETS.TEST[0], runtime.load(path, threads=torch.get_num_threads())
    evaluator = build_evaluator(cfg, split, folder / "scores")
    evaluator.reset()
    kind = CameraBoxes3D if runner.description["kind"] == "mono" else Boxes3D
    boxes = {"boxes": kind(torch.zeros(0, 9))}
    found = []
    for batch in build_test_loader(cfg, split):
        found.append(run_sample(runner, batch[0]))
        evaluator.process(batch, [as_outputs(found[-1], boxes)])
    return found, main_metrics(evaluator.evaluate()["bbox"])


def main_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns nuScenes' NDS and mAP, or KITTI's 3D AP (moderate, R40) of every class."""
    if "NDS" in metrics:
        return {name: metrics[name] for name in ("NDS", "mAP")}
    return {name: value for name, value in metrics.items() if name.endswith("_3D_moderate_R40")}


def change(expected: Sequence[runtime.Detections], found: Sequence[runtime.Detections]) -> dict[str, float]:
    """Returns how the certain objects of float32 change.

    Returns:
        ``lost``: the share without an object of the class within ``LOST``; ``shift``: the mean distance of
        the centres of the others in metres; ``score``: the mean change of their scores.
    """
    shifts, scores, lost = [], [], 0
    for ours, theirs in zip(expected, found, strict=True):
        for i in np.flatnonzero(ours.scores >= CERTAIN):
            same = np.flatnonzero(theirs.labels == ours.labels[i])
            distances = np.linalg.norm(theirs.boxes[same, :3] - ours.boxes[i, :3], axis=1)
            if not len(same) or distances.min() > LOST:
                lost += 1
                continue
            shifts.append(distances.min())
            scores.append(abs(theirs.scores[same[distances.argmin()]] - ours.scores[i]))
    total = lost + len(shifts)
    return {
        "objects": total,
        "lost": lost / max(total, 1),
        "shift": float(np.mean(shifts)) if shifts else 0.0,
        "score": float(np.mean(scores)) if scores else 0.0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", action="store_true", help="one group of modules at a time, in int8")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    add_import_option(parser)
    parser.add_argument("--weights", default="", metavar="FILE", help="by default MODEL.WEIGHTS")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="the float32 file, if already exported")
    parser.add_argument("--calibration-frames", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows there, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    cfg = load_args(args)
    report: dict[str, Any] = {"config": args.config_file, "options": args.opts, "machine": machine()}
    report |= {"calibration_frames": args.calibration_frames, "rows": []}
    for row in measure(cfg, args.weights, args.groups, args.calibration_frames, args.onnx):
        print(row)
        report["rows"].append(row)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
