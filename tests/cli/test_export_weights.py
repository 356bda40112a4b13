"""The command that takes the student out of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.checkpoint import Checkpointer, CheckpointFileError, load_state, load_strict, save_file
from bevkd2.cli import export_weights
from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.distill import resolve_teacher, teacher_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "export_weights.py"
CONFIGS = ROOT / "configs" / "demo"


class Progress:
    """Stands for the trainer, whose state is in the checkpoint too."""

    def state_dict(self) -> dict[str, object]:
        return {"iteration": 7, "optimizer": {"moments": torch.ones(1000)}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A distillation's checkpoint, and its student's weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    cfg = load_config(CONFIGS / "distill.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
    resolve_teacher(cfg)
    save_file({"model": build_model(teacher_config(cfg)).state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
    distiller = build_model(cfg)
    Checkpointer(distiller, str(folder), trainer=Progress()).save("model_final")
    return folder / "model_final.pth", distiller.student.state_dict()


def test_a_new_folder_is_made_and_an_empty_path_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.pth")
    export(tmp_path / "w.pth", tmp_path / "new" / "folder" / "student.safetensors")
    assert load_state(tmp_path / "new" / "folder" / "student.safetensors")["w"].tolist() == [1.0, 1.0]
    with pytest.raises(SystemExit):
        export_weights.main([str(tmp_path / "w.pth"), ""])
    assert "argument output: the path is empty" in capsys.readouterr().err


def export(source: Path, target: Path) -> None:
    assert export_weights.main([str(source), str(target)]) == 0


@pytest.mark.parametrize("name", ["student.safetensors", "student.pth"])
def test_exported_weights_are_the_plain_student(
    name: str,
    checkpoint: tuple[Path, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, weights = checkpoint
    export(source, tmp_path / name)
    assert f"{len(weights)} tensors" in capsys.readouterr().out
    student = build_model(load_config(CONFIGS / "student.yaml", ["MODEL.DEVICE", "cpu"]))
    load_strict(student, load_state(tmp_path / name), source=name)
    loaded = student.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_safetensors_hold_nothing_but_the_student(
    checkpoint: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, weights = checkpoint
    export(source, tmp_path / "student.safetensors")
    assert load_safetensors(tmp_path / "student.safetensors").keys() == weights.keys()
    assert (tmp_path / "student.safetensors").stat().st_size < source.stat().st_size


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth"])
def test_the_classes_go_with_the_weights(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    Checkpointer(model, str(tmp_path), classes=("Pedestrian", "Car")).save("model_final")
    export(tmp_path / "model_final.pth", tmp_path / name)
    Checkpointer(model, classes=("Pedestrian", "Car")).load(str(tmp_path / name), checkpointables=[])
    with pytest.raises(ValueError, match="trained with the classes Pedestrian, Car, in this order"):
        Checkpointer(model, classes=("Car", "Pedestrian")).load(str(tmp_path / name), checkpointables=[])


def test_a_checkpoint_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        export(tmp_path / "gone.pth", tmp_path / "out.safetensors")


def test_a_file_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_file({"settings": {"a": 1}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointFileError, match=r"other\.pth"):
        export(tmp_path / "other.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
