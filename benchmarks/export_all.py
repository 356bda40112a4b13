#!/usr/bin/env python3
"""Exports every shipped model at its full size to ONNX, and writes file size and seconds, as JSON.

    python -m benchmarks.export_all --json benchmarks/results/export_all.json
    python -m benchmarks.export_all --only configs/pgd/pgd_r18_kitti.yaml --json one.json

Weights are random: neither size nor time depends on them. Every file is opened by ONNX Runtime. With --json,
models that the file has already are not exported again.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bevkd2.modeling  # noqa: F401  (registers the models)
from benchmarks.machine import machine
from bevkd2 import runtime
from bevkd2.config import load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.d2 import build_model
from bevkd2.distill import is_distillation, student_config
from bevkd2.export import export_detector, image_size_of


def shipped_configs() -> list[str]:
    """Returns the names of all shipped configs but bases, such as configs/demo/student.yaml."""
    folder = shipped_folder("configs")
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
    return [f"configs/{path}" for path in paths if "_base_" not in path.parts]


def export_one(name: str) -> dict[str, Any]:
    """Exports one config's model, of a distillation its student.

    Args:
        name: of the config.

    Returns:
        ``architecture``, ``image_size`` (width, height), ``parameters`` (millions), ``megabytes`` and
        ``seconds``.
    """
    # Without data, the size is that of the format's files.
    cfg = load_config(name, ["MODEL.DEVICE", "cpu", "DATASETS.ROOT", "data/none"])
    if is_distillation(cfg):
        cfg = student_config(cfg)
    cfg.MODEL.BACKBONE.WEIGHTS = cfg.MODEL.WEIGHTS = ""
    start, model = time.perf_counter(), build_model(cfg).eval()
    height, width = image_size_of(cfg)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        description = export_detector(cfg, model, [path], image_size=(height, width))
        seconds = time.perf_counter() - start
        runtime.load(path)
        return {
            "architecture": description["architecture"],
            "image_size": [width, height],
            "parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "seconds": round(seconds, 1),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="CONFIG", help="by default all shipped ones")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    report = json.loads(args.json.read_text()) if args.json.is_file() else {"models": {}}
    report["machine"] = machine()
    for name in args.only or shipped_configs():
        if name in report["models"]:
            continue
        report["models"][name] = export_one(name)
        print(name, report["models"][name], flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
