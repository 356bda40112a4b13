"""The command that converts published weights, from a file to a file that the model loads."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bevkd2.checkpoint import import_fcos3d, load_file, load_state, load_strict
from bevkd2.checkpoint.import_bevformer import to_published
from bevkd2.cli.console import run_cli
from bevkd2.config import load_config
from bevkd2.modeling import PGD, BEVFormer
from bevkd2.nuscenes.layout import CLASS_NAMES
from tests.modeling.mono.pgd_model import small_cfg

TOOLS = Path(__file__).parents[2] / "tools"
CONFIG = """
MODEL:
  RESNETS: {DEPTH: 10, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}
  FPN: {OUT_CHANNELS: 16}
  BEVFORMER: {NUM_HEADS: 2, FFN_DIM: 32, BEV_SHAPE: [4, 5], NUM_QUERIES: 6}
"""


@pytest.fixture
def import_weights() -> ModuleType:
    from bevkd2.cli import import_weights

    return import_weights


@pytest.fixture
def published(tmp_path: Path) -> tuple[BEVFormer, list[str]]:
    """A model, and the arguments of the command for its published file."""
    config = tmp_path / "model.yaml"
    config.write_text(CONFIG)
    model = BEVFormer(load_config(config))
    state = to_published(model.state_dict(), torch.ones(10))
    torch.save({"meta": {"epoch": 24}, "state_dict": state}, tmp_path / "published.pth")
    return model, ["--arch", "bevformer", "--config-file", str(config), str(tmp_path / "published.pth")]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converted_file_loads_strictly(
    import_weights: ModuleType, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture, suffix: str
):
    model, argv = published
    out = tmp_path / f"ours{suffix}"
    assert import_weights.main([*argv, str(out)]) == 0
    assert "1 dropped, 0 missing" in capsys.readouterr().out
    fresh = BEVFormer(load_config(tmp_path / "model.yaml"))
    load_strict(fresh, load_state(out), str(out))
    assert torch.equal(fresh.bev_queries, model.bev_queries)


def test_another_model_is_an_error(
    import_weights: ModuleType, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
):
    _, argv = published
    out = tmp_path / "ours.pth"
    assert run_cli(import_weights.main, [*argv, str(out), "MODEL.BEVFORMER.BEV_SHAPE", "[5, 5]"]) == 1
    assert "bev_queries (20, 16) instead of (25, 16)" in capsys.readouterr().err
    assert not out.exists()


def test_weights_with_nan_are_named(
    import_weights: ModuleType, published: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model, argv = published
    with torch.no_grad():
        model.bev_queries[0, 0] = float("nan")
    state = to_published(model.state_dict(), torch.ones(10))
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    assert import_weights.main([*argv, str(tmp_path / "ours.pth")]) == 0
    assert "published.pth: 1 key with NaN" in caplog.text and "bev_queries; use another file" in caplog.text


def test_pickles_are_refused(
    import_weights: ModuleType, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
):
    _, argv = published
    bomb = tmp_path / "weights.pkl"
    bomb.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert run_cli(import_weights.main, [*argv[:-1], str(bomb), str(tmp_path / "ours.pth")]) == 1
    assert ".pkl" in capsys.readouterr().err


def test_output_folder_is_created_and_an_obstacle_is_named(
    import_weights: ModuleType, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
):
    _, argv = published
    out = tmp_path / "new" / "ours.pth"
    assert import_weights.main([*argv, str(out)]) == 0 and out.is_file()
    assert run_cli(import_weights.main, [*argv, str(out / "ours.pth")]) == 1
    assert str(out) in capsys.readouterr().err


def test_pgd_weights_are_converted(import_weights: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
    config, cfg = tmp_path / "pgd.yaml", small_cfg()
    config.write_text(cfg.dump())
    model = PGD(cfg)
    torch.save({"state_dict": import_fcos3d.to_published(model.state_dict())}, tmp_path / "pgd.pth")
    argv = ["--arch", "pgd", "--config-file", str(config), str(tmp_path / "pgd.pth")]
    assert import_weights.main([*argv, str(tmp_path / "ours.pth")]) == 0
    assert "0 dropped, 0 missing" in capsys.readouterr().out
    fresh = PGD(cfg)
    load_strict(fresh, load_state(tmp_path / "ours.pth"), "ours")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


def test_classes_of_a_published_file_must_match_the_config(
    import_weights: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config, cfg = tmp_path / "pgd.yaml", small_cfg()
    config.write_text(cfg.dump())
    state = import_fcos3d.to_published(PGD(cfg).state_dict())
    argv = [
        "--arch",
        "pgd",
        "--config-file",
        str(config),
        str(tmp_path / "pgd.pth"),
        str(tmp_path / "ours.pth"),
    ]
    for meta in ({"CLASSES": ("Car", "Pedestrian", "Cyclist")}, {"dataset_meta": {"classes": ["Car"]}}):
        torch.save({"state_dict": state, "meta": meta}, tmp_path / "pgd.pth")
        assert run_cli(import_weights.main, argv) == 1
        assert "was trained with the classes Car" in capsys.readouterr().err
    torch.save(
        {"state_dict": state, "meta": {"CLASSES": ("Pedestrian", "Cyclist", "Car")}}, tmp_path / "pgd.pth"
    )
    assert import_weights.main(argv) == 0
    assert "labels 0 to 2 are Pedestrian, Cyclist, Car" in capsys.readouterr().out
    assert load_file(tmp_path / "ours.pth")["classes"] == ["Pedestrian", "Cyclist", "Car"]


def test_classes_are_compared_for_every_architecture(
    import_weights: ModuleType, published: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
):
    _, argv = published
    meta = {"dataset_meta": {"CLASSES": ["truck", "car"]}}
    torch.save({"state_dict": load_file(argv[-1])["state_dict"], "meta": meta}, argv[-1])
    assert run_cli(import_weights.main, [*argv, str(tmp_path / "ours.pth")]) == 1
    error = capsys.readouterr().err
    assert "(meta.dataset_meta.CLASSES) was trained with the classes truck, car, in this order" in error
    assert "fixes its own" in error and "car, truck, construction_vehicle" in error


def test_a_file_of_the_right_classes_with_a_history_is_imported(
    import_weights: ModuleType, published: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model, argv = published
    meta = {"dataset_meta": {"CLASSES": CLASS_NAMES}, "iter": np.int64(3)}
    state = {f"module.{key}": value for key, value in load_file(argv[-1])["state_dict"].items()}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({"meta": meta, "message_hub": {"loss": np.float64(1)}, "state_dict": state}, argv[-1])
    assert import_weights.main([*argv, str(tmp_path / "ours.pth")]) == 0
    assert "multiarray.scalar" in caplog.text
    load_strict(model, load_state(tmp_path / "ours.pth"), "ours")


PLUGIN = """
from bevkd2.checkpoint import KeyRules, register_importer

RULES = KeyRules("Prefixed", [("published.{rest}", "{rest}")])


@register_importer("prefixed")
def from_published(published):
    return RULES.from_published(published)
"""


def test_a_plugin_adds_an_architecture(
    import_weights: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "importer_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model.yaml").write_text(CONFIG)
    model = BEVFormer(load_config(tmp_path / "model.yaml"))
    state = {f"published.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    files = [str(tmp_path / name) for name in ("published.pth", "ours.pth")]
    argv = ["--arch", "prefixed", "--config-file", str(tmp_path / "model.yaml"), *files]
    assert run_cli(import_weights.main, argv) == 1
    known = "--arch 'prefixed' is unknown, expected one of bevformer, fcos3d, pgd, smoke"
    assert known in capsys.readouterr().err
    assert run_cli(import_weights.main, ["--import", "importer_plugin", *argv]) == 0
    assert torch.equal(load_state(files[1])["bev_queries"], model.bev_queries)
