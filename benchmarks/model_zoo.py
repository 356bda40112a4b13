#!/usr/bin/env python3
"""Counts parameters and multiply-adds of every monocular detector in configs/, for docs/model_zoo.md.

    python -m benchmarks.model_zoo --json benchmarks/results/model_zoo_xeon_2_cores.json
    python -m benchmarks.model_zoo --table benchmarks/results/model_zoo_xeon_2_cores.json

Counts are those of tools/analyze_model.py and do not depend on the machine. Configs of the same model (other
schedules, or the student inside a distillation) are counted once. All of them take some minutes on one core.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.machine import machine
from bevkd2.cli.analyze_model import analyze
from bevkd2.config import load_config

ROOT = Path(__file__).resolve().parent.parent

DETECTORS = (
    "pgd/pgd_r101_kitti",
    "pgd/pgd_r18_kitti",
    "pgd/pgd_r18_half_kitti",
    "pgd/pgd_regnetx32_kitti",
    "pgd/pgd_regnetx08_kitti",
    "pgd/pgd_regnetx08_half_kitti",
    "pgd/pgd_mobilenetv2_kitti",
    "pgd/pgd_shufflenetv2_kitti",
    "smoke/smoke_dla60_kitti",
    "smoke/smoke_dla34_kitti",
    "pgd/pgd_r101_nuscenes",
    "pgd/pgd_r50_nuscenes",
    "pgd/pgd_r18_nuscenes",
    "pgd/fcos3d_r101_nuscenes",
)
"""One config of each model."""

PARTS = ("backbone", "neck", "head")


def main() -> None:
    """Counts, or prints the table of stored counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--table", type=Path, help="count nothing; print the table of this file")
    parser.add_argument("--only", nargs="+", choices=DETECTORS, default=DETECTORS, help="count these")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    report: dict[str, Any] = {"machine": machine(), "detectors": {}}
    for name in args.only:
        report["detectors"][name] = count(name)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def count(name: str) -> dict[str, Any]:
    """Returns the counts of tools/analyze_model.py for one detector."""
    print(name, file=sys.stderr)
    return analyze(load_config(ROOT / "configs" / f"{name}.yaml"))["models"]["model"]


def table(report: dict[str, Any]) -> str:
    """Returns the table of parameters and multiply-adds in Markdown."""
    rows = [
        [
            f"`configs/{name}.yaml`",
            " x ".join(map(str, model["image_size"])),
            f"{model['parameters']['total'] / 1e6:.2f}",
            " + ".join(f"{model['parameters'][part] / 1e6:.2f}" for part in PARTS),
            f"{model['flops']['total'] / 1e9:.1f}",
            " + ".join(f"{model['flops'][part] / 1e9:.1f}" for part in PARTS),
        ]
        for name, model in report["detectors"].items()
    ]
    header = [
        "config",
        "image",
        "parameters (M)",
        "backbone + neck + head",
        "FLOPs (G)",
        "backbone + neck + head",
    ]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
