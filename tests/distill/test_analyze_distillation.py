"""The report of losses and gradients: what it prints, at the start and at a checkpoint."""

import itertools
import json

import pytest
import torch

from bevkd2.checkpoint import save_file
from bevkd2.cli import analyze_distillation as tool
from bevkd2.cli.console import run_cli
from bevkd2.distill import gradient_norms, trained_parts
from bevkd2.engine import gradient_report as report_module
from bevkd2.engine.gradient_report import DETECTION, gradient_report
from bevkd2.engine.schedule import resolve_solver
from tests.distill.frames import make_frames
from tests.distill.pairs import build


@pytest.fixture
def cfg(teacher_files, monkeypatch):
    def loader(cfg, start_iter=0):
        return itertools.cycle([make_frames(1)])

    monkeypatch.setattr(report_module, "build_train_loader", loader)
    return teacher_files("DISTILL.FACTOR", 1.0, "SEED", 0, "DISTILL.BEV_RESPONSE.WEIGHT", 2.0)


def test_values_are_weighted_and_norms_are_those_of_each_part(cfg):
    report = gradient_report(cfg, batches=1)
    torch.manual_seed(0)
    model = build(cfg).train()
    losses = model(make_frames(1))
    parts = trained_parts(model.student)
    entry = report["losses"]["loss_distill_bev_response"]
    assert entry["value"] == pytest.approx(losses["loss_distill_bev_response"].item(), rel=1e-5)
    expected = gradient_norms(losses["loss_distill_bev_response"], parts)
    assert entry["gradients"] == pytest.approx(expected, rel=1e-3)
    detection = sum(value for name, value in losses.items() if "distill" not in name)
    whole = report["losses"][DETECTION]
    assert whole["value"] == pytest.approx(detection.item(), rel=1e-5)
    assert whole["gradients"] == pytest.approx(gradient_norms(detection, parts), rel=1e-3)
    share = expected["image_backbone"] / gradient_norms(detection, parts)["image_backbone"]
    assert entry["share"]["image_backbone"] == pytest.approx(share, rel=1e-3)


def test_the_text_names_losses_without_gradient_on_the_backbone(cfg):
    lines = tool.text(gradient_report(cfg, batches=1)).splitlines()
    assert lines[1].split()[:5] == ["loss,", "weighted", "value", "image_backbone", "neck"]
    names = [line.split()[0] for line in lines]
    assert {"loss_cls", "loss_distill_temporal_attention"} <= set(names)
    # attention weights begin as zeros times the query, which stops every gradient
    assert lines[-1].startswith("without any gradient on image_backbone: loss_distill_temporal_attention")


def test_a_checkpoint_is_measured_at_its_iteration(cfg, tmp_path):
    torch.manual_seed(5)
    model = build(cfg)
    save_file(
        {
            "model": model.student.state_dict(),
            "distill": model.methods.state_dict(),
            "classes": [],
            "iteration": 7,
        },
        tmp_path / "model.pth",
    )
    report = gradient_report(cfg, weights=str(tmp_path / "model.pth"), batches=1)
    assert report["iteration"] == 8
    model.train()
    losses = model(make_frames(1))
    values = {name: entry["value"] for name, entry in report["losses"].items() if name in losses}
    assert values == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)


def test_the_schedules_of_a_training_in_epochs_are_those_of_its_iterations(cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(resolve_solver.__globals__, "count_training_samples", lambda cfg: 32)
    torch.manual_seed(5)
    model = build(cfg)
    save_file({"model": model.student.state_dict(), "iteration": 7}, tmp_path / "model.pth")
    cfg.merge_from_list(["SOLVER.EPOCHS", 4.0, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.CHECKPOINT_PERIOD", 1])
    values = []
    for decay in (0.0, 0.25):  # over the last 4 of 16 iterations
        cfg.DISTILL.DECAY = decay
        report = gradient_report(cfg, weights=str(tmp_path / "model.pth"), batches=1)
        values.append(report["losses"]["loss_distill_bev_response"]["value"])
    assert values[0] > 0 and values[1] == pytest.approx(values[0])


def test_a_plain_detector_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="META_ARCHITECTURE is BEVFormer, expected a Distiller"):
        gradient_report(tiny_cfg())


def test_the_command_writes_json(cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "load_args", lambda args: cfg)
    out = tmp_path / "report" / "gradients.json"
    words = ["--config-file", "distill.yaml", "--batches", "2", "--json", str(out)]
    assert run_cli(tool.main, words) == 0
    assert json.loads(out.read_text())["batches"] == 2
    assert "mean of 2 batches" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "x", "--batches", "0"])
