"""The scripts of docs/deployment.md: what they compare, and what their result files hold."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_latency, export_sizes, lower_precision
from bevkd2.runtime import Detections
from tests.configs.shipped import CONFIGS, DISTILLATIONS, built, name_of
from tests.limits import PROGRAM_SECONDS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "deployment"
FILE = RESULTS / "export_sizes.json"
SIZES = json.loads(FILE.read_text())["models"] if FILE.is_file() else []  # it is completed step by step


@pytest.mark.parametrize("model", SIZES, ids=lambda model: model["configs"][0])
def test_an_exported_student_is_still_that_of_its_config(model: dict[str, Any]) -> None:
    if "failed" in model:
        assert model["failed"].strip()
        return
    assert model["domains"] == ["ai.onnx"] and model["opset"] >= 17
    assert sum(model["operators"].values()) == model["nodes"]
    detector = built(CONFIGS / f"{model['configs'][0]}.yaml")
    assert model["parameters"] == sum(parameter.numel() for parameter in detector.parameters())


def test_students_that_are_the_same_are_exported_once() -> None:
    groups = export_sizes.shipped_students()
    assert ["distill/pair1", "distill/pair2", "distill_r50"] in groups
    listed = [name for group in groups for name in group]
    assert {name_of(path) for path in DISTILLATIONS} | set(export_sizes.MORE) == set(listed)
    assert len(listed) == len(set(listed)) and all(model["configs"] in groups for model in SIZES)


def test_sizes_are_added_to_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_sizes, "shipped_students", lambda: [["a", "b"], ["c"]])
    asked = []

    def measure(name: str, limit: float) -> dict[str, Any]:
        asked.append(name)
        return {"failed": "too large"} if name == "c" else {"nodes": len(asked)}

    monkeypatch.setattr(export_sizes, "measure_apart", measure)
    path = tmp_path / "sizes.json"
    assert export_sizes.main(["--json", str(path), "--only", "b"]) == 0
    assert json.loads(path.read_text())["models"] == [{"configs": ["a", "b"], "nodes": 1}]
    assert export_sizes.main(["--json", str(path)]) == 1
    assert asked == ["a", "c"]
    models = json.loads(path.read_text())["models"]
    assert models == [{"configs": ["a", "b"], "nodes": 1}, {"configs": ["c"], "failed": "too large"}]
    capsys.readouterr()


def test_an_export_that_does_not_end_well_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(result: Any) -> dict[str, Any]:
        def instead(command: list[str], **options: Any) -> Any:
            if isinstance(result, Exception):
                raise result
            return subprocess.CompletedProcess(command, *result)

        monkeypatch.setattr(export_sizes.subprocess, "run", instead)
        return export_sizes.measure_apart("a", 7)

    assert run((0, 'warning\n{"nodes": 3}\n', "")) == {"nodes": 3}
    assert run((1, "", "Traceback\nValueError: no\n")) == {"failed": "ValueError: no"}
    assert run((-signal.SIGKILL, "", "")) == {"failed": "ended by the system, out of memory"}
    assert run(subprocess.TimeoutExpired("a", 7)) == {"failed": "not finished after 7 s"}


def test_contestants_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def contestant(name: str, frame: int) -> float:
        calls.append((name, frame))
        return 7.0

    runs = {name: functools.partial(contestant, name) for name in ("a", "b")}
    times = bench_latency.time_in_turns(runs, seconds=0.0, pause=0.0)
    assert times == {"a": [7.0] * 20, "b": [7.0] * 20}
    assert calls[:6] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_a_contestant_times_the_frames_that_it_is_asked_for() -> None:
    ours, theirs = multiprocessing.Pipe()
    frames: list[int] = []
    for frame in (5, 6, None):
        ours.send(frame)
    bench_latency.serve(
        theirs, lambda: (lambda fed: frames.append(int(fed["i"])), [{"i": np.array(i)} for i in range(6)])
    )
    assert frames == [0, 1, 2, 3, 5, 0]  # the warm-up, then the frames, which repeat
    assert ours.recv()["seconds"] > 0 and ours.recv() > 0 and ours.recv() > 0


def test_a_contestant_that_fails_says_why() -> None:
    def fail(fed: Any) -> None:
        raise RuntimeError("no compiler\nhere")

    ours, theirs = multiprocessing.Pipe()
    bench_latency.serve(theirs, lambda: (fail, [{}]))
    assert ours.recv() == {"failed": "RuntimeError: no compiler"}


def fast() -> tuple[bench_latency.Run, bench_latency.Feeds]:
    return lambda fed: fed, [{}]


def exiting() -> tuple[bench_latency.Run, bench_latency.Feeds]:
    os._exit(3)


def hanging() -> tuple[bench_latency.Run, bench_latency.Feeds]:
    time.sleep(PROGRAM_SECONDS)
    return fast()


@pytest.mark.slow
def test_contestants_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    makes = {"eager": fast, "ONNX Runtime int8": exiting, "torch.compile": hanging}
    rows = bench_latency.measure("m", makes, threads=2, seconds=0.0, limits=(0.1, PROGRAM_SECONDS))
    died, late, measured = rows
    common = {"model": "m", "threads": 2}
    assert died == {**common, "run by": "ONNX Runtime int8", "failed": "its process ended with exit status 3"}
    assert late == {**common, "run by": "torch.compile", "failed": "not ready after 0 s"}
    assert measured.items() >= {**common, "run by": "eager", "rounds": 20}.items()
    assert 0 <= measured["median_ms"] <= measured["p95_ms"] and measured["warm_up_s"] >= 0
    assert "m, eager" in capsys.readouterr().err


def test_rows_are_written_model_by_model_and_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, int]] = []

    def measure(name: str, makes: Any, threads: int, *rest: Any) -> list[dict[str, Any]]:
        if name == "monocular student" and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append((name, threads))
        return [{"model": name, "run by": by, "threads": threads, "median_ms": len(measured)} for by in makes]

    monkeypatch.setattr(bench_latency, "measure", measure)
    path = tmp_path / "latency.json"
    command = ["--files", "f", "--json", str(path), "--threads", "2", "1"]
    command += ["--models", "multi-view student", "monocular student"]
    with pytest.raises(KeyboardInterrupt):
        bench_latency.main(command)
    assert {row["model"] for row in json.loads(path.read_text())["rows"]} == {"multi-view student"}
    measured.append(("the interrupted one", 0))
    assert bench_latency.main(command) == 0
    students = ("multi-view student", "monocular student")
    assert measured[2:] == [(students[1], 2), (students[0], 1), (students[1], 1)]
    rows = json.loads(path.read_text())["rows"]
    order = [(row["threads"], row["model"]) for row in rows if row["run by"] == "eager"]
    assert order == [(threads, name) for threads in (1, 2) for name in students]
    assert bench_latency.main([*command, "--again", "--without", "torch.compile"]) == 0
    values = {(row["model"], row["threads"], row["run by"]): row["median_ms"] for row in rows}
    again = {
        (row["model"], row["threads"], row["run by"]): row["median_ms"]
        for row in json.loads(path.read_text())["rows"]
    }
    changed = {key for key in values if values[key] != again[key]}
    assert changed == {key for key in values if key[2] != "torch.compile"}
    capsys.readouterr()


def found(rows: list[tuple[float, int, float]]) -> Detections:
    """Objects at (x, 0, 0), with class and score."""
    boxes = np.zeros((len(rows), 7), dtype=np.float32)
    boxes[:, 0] = [x for x, _, _ in rows]
    labels, scores = np.array([c for _, c, _ in rows]), np.array([s for _, _, s in rows])
    return Detections(boxes, scores, labels)


def test_change_pairs_certain_objects_of_a_class() -> None:
    ours = [found([(0, 0, 0.9), (5, 1, 0.8), (9, 0, 0.5), (20, 0, 0.1)]), found([])]
    theirs = [found([(0.4, 0, 0.7), (5, 0, 0.8), (9, 0, 0.5)]), found([(1, 0, 0.9)])]
    assert lower_precision.change(ours, theirs) == {
        "objects": 3,
        "lost": pytest.approx(1 / 3),
        "shift": pytest.approx(0.2),
        "score": pytest.approx(0.1),
    }


def test_main_metrics() -> None:
    assert lower_precision.main_metrics({"NDS": 0.5, "mAP": 0.4, "mATE": 0.3}) == {"NDS": 0.5, "mAP": 0.4}
    kitti = {"Car_3D_moderate_R40": 60.0, "Car_3D_easy_R40": 1.0, "Cyclist_3D_moderate_R40": 20.0}
    assert lower_precision.main_metrics(kitti) == {"Car_3D_moderate_R40": 60, "Cyclist_3D_moderate_R40": 20}
