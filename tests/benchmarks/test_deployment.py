"""The scripts of docs/deployment.md: what they compare, and what their result files hold."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_latency, export_sizes, lower_precision
from bevkd2.runtime import Detections
from tests.configs.shipped import CONFIGS, DISTILLATIONS, built, name_of

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
    runs = {name: lambda fed, name=name: calls.append((name, int(fed["frame"]))) for name in ("a", "b")}
    feeds = [{"frame": np.array(i)} for i in range(3)]
    times = bench_latency.time_in_turns(runs, feeds, 0.0)
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 20}
    assert calls[:6] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert all(value > 0 for values in times.values() for value in values)


def test_a_contestant_that_fails_is_taken_out() -> None:
    def fail(fed: Any) -> None:
        raise RuntimeError("no compiler\nhere")

    runs = {"a": lambda fed: fed, "b": fail}
    assert bench_latency.warm_up(runs, [{}]) == {"b": "RuntimeError: no compiler"}
    assert list(runs) == ["a"]


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
