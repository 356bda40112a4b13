"""The package of docs/extending.md: its files are written to an empty folder, and its commands run there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bevkd2.checkpoint import load_file, load_state
from bevkd2.config import get_cfg
from tests.docs.pages import ROOT, blocks, commands
from tests.examples.test_downstream import run

PAGE = ROOT / "docs" / "extending.md"
WORLD = ("--frames", "2", "--image-size", "96x32", "--workers", "1")
CPU = ("MODEL.DEVICE", "cpu")
TRAINING = (
    *CPU,
    "SEED",
    "0",
    "SOLVER.IMS_PER_BATCH",
    "1",
    "SOLVER.BASE_LR",
    "0.005",
    "TEST.PRINT_PERIOD",
    "1",
)
EXTRA = {
    "make-synthetic": WORLD,
    "train": (*TRAINING, "SOLVER.WARMUP_ITERS", "1"),
    "eval": CPU,
    "visualize": CPU,
    "analyze": ("--image-size", "96x32", "--json", "counts.json", *CPU),
    "import-weights": CPU,
}
# What a user would have downloaded: the weights of the page's detector in the layout of its importer.
PUBLISH = """
import torch
weights = torch.load("output/cellbev/model_final.pth", weights_only=True)["model"]
published = {name.replace("image_backbone.", "trunk."): value for name, value in weights.items()}
torch.save({"state_dict": published}, "published.pth")
"""


def files() -> dict[str, str]:
    """Returns the text of every file that the page shows, by the path in its first line."""
    found = {}
    for language in ("python", "yaml", "toml"):
        for line, text in blocks(PAGE, language):
            path = re.match(r"# (\S+)\n", text)
            assert path is not None, f"{PAGE.name}:{line}: the block has no path in its first line"
            assert path.group(1) not in found, f"{PAGE.name}:{line}: {path.group(1)} is there twice"
            found[path.group(1)] = text
    return found


def shown_commands() -> list[list[str]]:
    """Returns the words of the page's commands about its own package, shortened by options at the end."""
    scripts = []
    for words in (command.words for command in commands(PAGE)):
        if words[0] == "bevkd2":
            scripts.append([*words, *EXTRA[words[1]]])
        elif "tinymono" not in words:  # tests/examples/test_downstream.py runs those
            scripts.append(words[1:])
    return scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder that is outside of the repository, after all commands of the page."""
    folder = tmp_path_factory.mktemp("mykd")
    for name, text in {**files(), "publish.py": PUBLISH}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    scripts = shown_commands()
    scripts.insert(next(i for i, words in enumerate(scripts) if "import-weights" in words), ["publish.py"])
    run(folder, [str(ROOT / "tests/examples/run_scripts.py")], package=folder, stdin=json.dumps(scripts))
    return folder


def logged(folder: Path, output: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "output" / output / "metrics.json").read_text().splitlines()
    ]


def keys(folder: Path, output: str) -> set[str]:
    return set(load_state(folder / "output" / output / "model_final.pth"))


def test_the_package_is_small_and_imports_only_what_is_public() -> None:
    lines = {name: len(text.splitlines()) for name, text in files().items()}
    assert lines["mykd/detector.py"] < 140 and sum(lines.values()) < 400
    for name, text in files().items():
        assert name.endswith(".py") or "bevkd2." not in text.replace("bevkd2.plugins", "")
        for node in ast.walk(ast.parse(text if name.endswith(".py") else "")):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bevkd2"):
                assert str(node.module).count(".") == 1, f"{name} imports {node.module}"


def test_the_project_file_names_the_package() -> None:
    assert '[project.entry-points."bevkd2.plugins"]\nmykd = "mykd"\n' in files()["pyproject.toml"]


def test_bevkd2_does_not_know_the_package() -> None:
    assert "CELLBEV" not in get_cfg().MODEL and "CELL_SIMILARITY" not in get_cfg().DISTILL


def test_the_method_and_the_hook_run_in_the_demo_s_distillation(folder: Path) -> None:
    rows = [row for row in logged(folder, "distill") if "total_loss" in row]
    assert len(rows) == 10
    for row in rows:
        assert 0 < row["loss_distill_cell_similarity"] < 100 and 0 < row["loss_distill_bev_response"] < 100
        assert 0 < row["gradient_norm"] < float("inf")
        weighted = 0.01 * 5.0 * row["distill_raw/cell_similarity"]
        assert row["loss_distill_cell_similarity"] == pytest.approx(weighted, rel=1e-4)


def test_the_detector_learns_and_is_scored(folder: Path) -> None:
    losses = [row["loss_class"] + row["loss_box"] for row in logged(folder, "cellbev") if "loss_box" in row]
    assert len(losses) == 10 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert (folder / "output" / "cellbev" / "inference" / "metrics_summary.json").is_file()


def test_the_detector_is_distilled(folder: Path) -> None:
    assert keys(folder, "cellbev_distill") == keys(folder, "cellbev")
    rows = [row for row in logged(folder, "cellbev_distill") if "loss_box" in row]
    assert len(rows) == 10
    for method in ("bev_response", "cell_similarity"):
        assert all(0 < row[f"loss_distill_{method}"] < 100 for row in rows)


def test_the_detector_is_drawn_and_counted(folder: Path) -> None:
    kinds = {path.stem.partition("_")[2] for path in (folder / "output" / "pictures").iterdir()}
    assert kinds == {"detections_model", "bev_response"}  # it has no attention to draw
    models = json.loads((folder / "counts.json").read_text())["models"]
    assert models["student"]["architecture"] == "CellBEV"
    assert set(models["student"]["parameters"]) == {"backbone", "neck", "mix", "head", "total"}
    assert models["teacher"]["parameters"]["encoder"] > 0


def test_the_data_format_is_trained_with_scored_and_drawn(folder: Path) -> None:
    scores = [row["bbox/recall"] for row in logged(folder, "photos") if "bbox/recall" in row]
    assert scores and 0 <= scores[-1] <= 1
    assert "copypaste: recall" in (folder / "output" / "photos_scored" / "log.txt").read_text()
    stored = load_file(folder / "output" / "photos" / "model_final.pth")
    assert stored["classes"] == ["car", "person"]
    assert any("detections" in path.name for path in (folder / "output" / "photos_pictures").iterdir())


def test_the_backbone_is_built(folder: Path) -> None:
    assert {"image_backbone.first.weight", "image_backbone.second.weight"} <= keys(folder, "two_layers")


def test_the_importer_renames_the_backbone(folder: Path) -> None:
    assert set(load_state(folder / "cellbev.safetensors")) == keys(folder, "cellbev")
