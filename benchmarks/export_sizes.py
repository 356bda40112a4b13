#!/usr/bin/env python3
"""Exports the students of the shipped configs at full size to ONNX, and records what each export takes.

    python -m benchmarks.export_sizes --json benchmarks/results/deployment/export_sizes.json
    make tables

Weights are random, since sizes and graphs do not depend on them. Every model has a process of its own, which
is ended after ``--limit`` seconds or by the machine's memory; the result then says why. Configs whose models
are the same are exported once. Models that the file already holds are left out, so that the script can be
called again; --only names configs.
"""

import argparse
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.peak_memory import resident_peak_mib
from bevkd2.config import CfgNode, load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.d2 import build_model
from bevkd2.distill import is_distillation, student_config
from bevkd2.export import export_detector, image_size_of

MORE = ("bevformer/bevformer_tiny", "bevformer/bevformer_small", "bevformer/bevformer_base")
"""Detectors that are no student of a shipped distillation, but are exported as well."""


def shipped_students() -> list[list[str]]:
    """Returns the names of shipped configs, those whose models are the same in one list.

    They are all distillations, whose student counts, and ``MORE``.
    """
    folder = shipped_folder("configs")
    names = [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.yaml"))]
    models: dict[str, list[str]] = {}
    for name in names:
        if name.startswith("_base_"):
            continue
        cfg = load_config(f"configs/{name}.yaml")
        if is_distillation(cfg) or name in MORE:
            models.setdefault(what_decides_the_graph(model_config(cfg)), []).append(name)
    return list(models.values())


def model_config(cfg: CfgNode) -> CfgNode:
    """Returns the config of the detector that a config trains, without weights, for the CPU."""
    cfg = student_config(cfg) if is_distillation(cfg) else cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.WEIGHTS = "cpu", "", ""
    return cfg


def what_decides_the_graph(cfg: CfgNode) -> str:
    """Returns a text that is the same for configs whose exported graphs are the same but for weights."""
    inp = cfg.INPUT
    parts = [inp.IMAGE_SCALE, inp.RESIZE_TEST, inp.AFFINE.ENABLED, inp.AFFINE.SIZE, inp.CAMERAS]
    parts += [inp.POINT_RANGE, cfg.DATASETS.FORMAT, cfg.DATASETS.CLASSES]
    return repr([cfg.MODEL.dump(), *parts])


def measure(name: str) -> dict[str, Any]:
    """Exports one model in this process.

    Args:
        name: of a config, from ``configs/`` on, without suffix.

    Returns:
        Image size, parameters, nodes by operator, file size, seconds and peak memory.
    """
    import onnx

    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    cfg = model_config(load_config(f"configs/{name}.yaml"))
    cfg.DATASETS.ROOT = "data/absent"  # the images' usual size, whatever lies in this machine's folders
    model = build_model(cfg).eval()
    size = image_size_of(cfg)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "model.onnx", time.perf_counter()
        export_detector(cfg, model, [path], image_size=size)
        seconds, peak = time.perf_counter() - start, resident_peak_mib()
        written = onnx.load(path)
        return {
            "image_size": list(size),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "opset": written.opset_import[0].version,
            "domains": sorted({node.domain or "ai.onnx" for node in written.graph.node}),
            "nodes": len(written.graph.node),
            "operators": dict(Counter(node.op_type for node in written.graph.node).most_common()),
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "seconds": round(seconds, 1),
            "peak_mib": round(peak),
        }


def measure_apart(name: str, limit: float) -> dict[str, Any]:
    """Exports one model in a process of its own; returns its result, or ``failed`` with the reason."""
    command = [sys.executable, "-m", "benchmarks.export_sizes", "--measure", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {limit:.0f} s"}
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    if done.returncode == -signal.SIGKILL:
        return {"failed": "ended by the system, out of memory"}
    return {"failed": done.stderr.strip().splitlines()[-1]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status: 1 where a model could not be exported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="read and complete this file")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="such as distill/pair1; again if there")
    parser.add_argument("--limit", type=float, default=840.0, help="seconds per model; default: %(default)s")
    parser.add_argument(
        "--measure", metavar="NAME", help="export this config in this process, print the result"
    )
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0
    stored = json.loads(args.json.read_text())["models"] if args.json and args.json.is_file() else []
    results = {result["configs"][0]: result for result in stored}
    students = {names[0]: names for names in shipped_students()}
    chosen = [first for first in students if first not in results]
    if args.only is not None:
        chosen = [first for first, names in students.items() if set(args.only) & set(names)]
    for first in chosen:
        print(first, file=sys.stderr, flush=True)
        results[first] = {"configs": students[first], **measure_apart(first, args.limit)}
        report = {"machine": machine(), "models": [results[name] for name in students if name in results]}
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
