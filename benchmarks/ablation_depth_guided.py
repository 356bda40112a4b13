#!/usr/bin/env python3
"""Ablation of depth-guided distillation on the synthetic KITTI world: the rows of the paper's Tables 1 and 2.

    python -m benchmarks.ablation_depth_guided --seeds 0 1 2 --jobs 2

Trains the student of the monocular demo (configs/demo_mono) without distillation and with each setting, for
each seed, and scores it by KITTI's rules. Runs with stored scores are not repeated, so an interrupted
ablation can be continued. The world is that of ``make demo-mono``; the teacher is the one in assets/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parent.parent
TEACHER_WEIGHTS = ROOT / "assets" / "demo_mono_teacher.safetensors"
FEATURE, PREDICTION = "['PerspectiveFeature']", "['DepthGuidedPrediction']"
NODE = "DISTILL.DEPTH_GUIDED"


def _prediction(distance: str, attention: bool, rho: str) -> list[str]:
    keys = {"DISTANCE": distance, "DEPTH_ATTENTION": str(attention), "RHO": rho}
    options = ["DISTILL.METHODS", PREDICTION]
    for key, value in keys.items():
        options += [f"{NODE}.{key}", value]
    return options


# Name of the row -> config and options. "KL" and "L2" are plain prediction distillation; D is the depth
# attention phi, W the weight rho of the annotated depth (the paper's Table 1); F and P are its Table 2.
ROWS: dict[str, tuple[str, list[str]]] = {
    "student": ("student", []),
    "KL": ("distill", _prediction("kl", False, "off")),
    "L2": ("distill", _prediction("l2", False, "off")),
    "L2 + D": ("distill", _prediction("l2", True, "off")),
    "L2 + W (linear)": ("distill", _prediction("l2", False, "linear")),
    "L2 + W (exp)": ("distill", _prediction("l2", False, "exp")),
    "P: L2 + D + W (exp)": ("distill", _prediction("l2", True, "exp")),
    "F, M = 1 (FitNet)": (
        "distill",
        ["DISTILL.METHODS", FEATURE, "DISTILL.PERSPECTIVE_FEATURE.PERSPECTIVE", "False"],
    ),
    "F": ("distill", ["DISTILL.METHODS", FEATURE]),
    "F + P": ("distill", []),
}
COLUMNS = {
    f"{name} {difficulty}": f"car/{metric}/{difficulty}"
    for name, metric in (("BEV", "bev"), ("3D", "3d"))
    for difficulty in ("easy", "moderate", "hard")
}


def main() -> None:
    """Runs the trainings that have no scores yet, and writes the table."""
    args = parse_args()
    names = args.rows or list(ROWS)
    if unknown := set(names) - set(ROWS):
        sys.exit(f"--rows: {sorted(unknown)} are unknown; expected some of {', '.join(ROWS)}")
    runs = [(name, seed) for seed in args.seeds for name in names]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda run: run_one(*run, args), runs))
    content = {
        "machine": machine(),
        "iterations": args.iterations,
        "teacher": teacher_scores(args),
        "runs": [
            {"row": name, "seed": seed, **result} for (name, seed), result in zip(runs, found, strict=True)
        ],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo_mono")
    parser.add_argument("--teacher", type=Path, default=TEACHER_WEIGHTS)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation_depth_guided")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "ablation_depth_guided.json"
    )
    return parser.parse_args()


def run_one(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Trains and scores one student, unless its scores exist.

    Raises:
        SystemExit: the training failed; the message names the log.
    """
    config, options = ROWS[name]
    folder = args.output / "".join(c if c.isalnum() else "_" for c in name) / f"seed{seed}"
    common = ["SEED", str(seed), "SOLVER.MAX_ITER", str(args.iterations)]
    common += ["SOLVER.CHECKPOINT_PERIOD", str(args.iterations)]
    if config == "distill":
        common += ["DISTILL.TEACHER.WEIGHTS", str(args.teacher)]
    return scores(folder, config, [*common, *options], args)


def teacher_scores(args: argparse.Namespace) -> dict[str, float]:
    """Scores the teacher."""
    options = ["--eval-only", "MODEL.WEIGHTS", str(args.teacher)]
    return scores(args.output / "teacher", "teacher", options, args)


def scores(folder: Path, config: str, options: Sequence[str], args: argparse.Namespace) -> dict[str, float]:
    """Runs tools/train_net.py if there are no scores yet, and returns the AP|R40 of cars.

    Raises:
        SystemExit: the run failed; the message names the log.
    """
    written = folder / "inference" / "kitti_scores.json"
    if not written.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file"]
        command += [str(ROOT / "configs" / "demo_mono" / f"{config}.yaml")]
        command += [option for option in options if option.startswith("--")]
        command += ["OUTPUT_DIR", str(folder), "DATASETS.ROOT", str(args.data), "MODEL.DEVICE", "cpu"]
        command += [option for option in options if not option.startswith("--")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "console.txt").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
        if code:
            sys.exit(f"tools/train_net.py failed with exit code {code}; see {folder / 'console.txt'}")
        print(f"done: {folder.relative_to(args.output)}", flush=True)
    ap = json.loads(written.read_text())["AP_R40"]
    # KITTI's scores have no class without detections.
    return {column: ap.get(key, 0.0) for column, key in COLUMNS.items()}


def table(content: Mapping[str, Any]) -> str:
    """Returns a Markdown table of means over the seeds, and the standard deviation of 3D moderate."""
    rows = [["teacher", *(content["teacher"][c] for c in COLUMNS), "", ""]]
    for name in dict.fromkeys(run["row"] for run in content["runs"]):
        runs = [run for run in content["runs"] if run["row"] == name]
        means = [statistics.mean(run[c] for run in runs) for c in COLUMNS]
        moderate = [run["3D moderate"] for run in runs]
        spread = statistics.stdev(moderate) if len(moderate) > 1 else float("nan")
        rows.append([name, *means, spread, len(runs)])
    headers = ["", *COLUMNS, "sd of 3D moderate", "seeds"]
    return tabulate(rows, headers=headers, floatfmt=".2f", tablefmt="github")


if __name__ == "__main__":
    main()
