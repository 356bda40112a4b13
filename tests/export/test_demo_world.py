"""The example and the comparison of the docs, on scenes of the demo's world, with the graph in PyTorch."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import verify_deployment
from bevkd2 import runtime
from bevkd2.config import CfgNode, load_config
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.export import calibration, load_student
from bevkd2.modeling import Detector
from bevkd2.runtime import MultiViewRuntime
from tests.docs.pages import ROOT
from tests.runtime.graphs import TorchGraph

TEACHER = str(ROOT / "assets" / "demo_teacher.safetensors")
World = tuple[CfgNode, Detector[Any, Any, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two scenes of three frames, and the demo's teacher."""
    root = tmp_path_factory.mktemp("world")
    settings = WorldConfig(num_train_scenes=0, num_val_scenes=2, frames_per_scene=3)
    generate(settings, root, workers=1, progress=False)
    options = ["MODEL.DEVICE", "cpu", "DATASETS.ROOT", str(root)]
    return load_student(load_config("configs/demo/teacher.yaml", options), TEACHER)


@pytest.fixture
def in_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are not exported, and loading one gives the model of ``world``."""
    graph: Any = TorchGraph(*world, (64, 176))
    monkeypatch.setattr(runtime, "load", lambda path, **options: MultiViewRuntime(graph))
    monkeypatch.setattr(
        verify_deployment, "export_detector", lambda cfg, model, paths, **size: paths[0].write_text("")
    )


def test_the_example_writes_the_results_of_an_evaluation(
    world: World, in_torch: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, model = world
    output = tmp_path / "results.json"
    script = str(ROOT / "examples" / "deploy" / "nuscenes_scene.py")
    monkeypatch.setattr(sys, "argv", [script, "x.onnx", cfg.DATASETS.ROOT, cfg.DATASETS.VERSION, str(output)])
    runpy.run_path(script, run_name="__main__")

    evaluator = build_evaluator(cfg, cfg.DATASETS.TEST[0], tmp_path)
    evaluator.reset()
    model.train().eval()  # forgets scenes
    for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        evaluator.process(batch, model(batch))
    evaluator.evaluate()
    expected = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    results = json.loads(output.read_text())["results"]
    assert results.keys() == expected.keys() and len(results) == 6
    for token, boxes in expected.items():  # without those out of the range that counts
        for box in boxes[:20]:
            scores = [abs(other["detection_score"] - box["detection_score"]) for other in results[token]]
            same = results[token][scores.index(min(scores))]
            assert (same["detection_name"], same["attribute_name"]) == (
                box["detection_name"],
                box["attribute_name"],
            )
            for name in ("translation", "size", "velocity"):
                assert same[name] == pytest.approx(box[name], abs=2e-3)
            quaternion = box["rotation"] if box["rotation"][0] >= 0 else [-x for x in box["rotation"]]
            assert same["rotation"] == pytest.approx(quaternion, abs=2e-3)


def test_the_comparison_passes_and_sees_a_difference(
    world: World, in_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, _ = world
    report = verify_deployment.verify(cfg, TEACHER)
    assert verify_deployment.passes(report) and report["frames"] == 6 and report["objects"] > 600
    assert set(report["metrics"]["torch"]["bbox"]) >= {"mAP", "NDS"}

    without_past = MultiViewRuntime.detect

    def forget(self: MultiViewRuntime, *args: Any, **kwargs: Any) -> runtime.Detections:
        self.reset()
        return without_past(self, *args, **kwargs)

    monkeypatch.setattr(MultiViewRuntime, "detect", forget)
    assert not verify_deployment.passes(verify_deployment.verify(cfg, TEACHER, frames=3))


def test_calibration_carries_the_state_of_a_drive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, model = world[0].clone(), world[1]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST

    class Recording(TorchGraph):
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(cfg, model, (64, 176))

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.fed = dict(feeds)
            self.outputs = super().run(feeds)
            return self.outputs

    monkeypatch.setattr(calibration, "RecordingGraph", Recording)
    feeds = list(calibration.calibration_feeds(calibration.calibration_samples(cfg, 6), Path("x.onnx")))
    assert [fed["has_previous"].tolist() for fed in feeds] == [[False], [True], [True]] * 2
    bevs = [fed["previous_bev"] for fed in feeds]
    assert not bevs[0].any() and bevs[1].any() and (bevs[1] != bevs[2]).any()
