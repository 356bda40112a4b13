"""The README's Python example, run on a small world."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.data.synthetic import WorldConfig, generate
from tests.docs.pages import ROOT, blocks


def test_python_example_trains_and_detects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = WorldConfig(num_train_scenes=2, num_val_scenes=1, frames_per_scene=2)
    generate(world, tmp_path / "data" / "demo", progress=False)
    monkeypatch.chdir(tmp_path)
    (example,) = [text for _, text in blocks(ROOT / "README.md", "python")]
    assert len([line for line in example.splitlines() if line]) <= 12
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert {"loss_cls", "loss_box", "loss_distill_bev_response"} <= set(names["losses"])
    trained = [p for p in names["model"].parameters() if p.requires_grad and p.grad is not None]
    assert trained and len(names["detections"]) == len(names["batch"])
    assert {"boxes", "scores", "labels"} <= set(names["detections"][0])
