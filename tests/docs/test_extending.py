"""The package of docs/extending.md and examples/downstream: the page's commands run in an empty folder."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bevkd2.checkpoint import load_file, load_state
from bevkd2.config import get_cfg
from tests.docs.pages import ROOT, blocks, commands
from tests.examples.test_downstream import PACKAGE, run

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

# Detections of two images, scored by the page's evaluator; test_average_precision explains them.
PRECISION = """
import json
from pathlib import Path
import torch
from bevkd2.structures import CameraBoxes3D
from mykd.format import CenterPrecision, Photos

evaluator = CenterPrecision(Photos("precision", "val", ("car", "person")), 2.0)


def process(image, depths, scores, labels):
    rows = torch.tensor([[0.0, 0.0, z, 1.0, 1.0, 1.0, 0.0] for z in depths]).reshape(-1, 7)
    parts = {"scores": torch.tensor(scores), "labels": torch.tensor(labels, dtype=torch.int64)}
    evaluator.process([{"image_id": image}], [{"boxes": CameraBoxes3D(rows), **parts}])


process("a", [5.5, 30.0, 5.2, 21.0, 20.1], [0.9, 0.8, 0.7, 0.6, 0.95], [0, 0, 0, 0, 1])
try:
    evaluator.evaluate()
except ValueError as error:
    results = [str(error)]
process("b", [], [], [])
results.append(evaluator.evaluate()["bbox"])
evaluator.reset()
process("a", [40.0, 20.0, 5.0], [0.1, 0.2, 0.3], [0, 0, 0])
process("b", [7.0, 9.5, 7.5], [0.9, 0.8, 0.7], [1, 1, 1])
results.append(evaluator.evaluate()["bbox"])
Path("precision/results.json").write_text(json.dumps(results))
"""


def objects_of_precision() -> str:
    """Returns the photos.json of two images, with cars at 5, 20 and 40 m and a person at 8 m."""
    intrinsics = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    images = [
        {
            **{"file": name, "width": 9, "height": 9, "intrinsics": intrinsics},
            "boxes": [{"class": kind, "box": [0.0, 0.0, z, 1.0, 1.0, 1.0, 0.0]} for kind, z in objects],
        }
        for name, objects in (("a", [("car", 5), ("car", 20), ("car", 40)]), ("b", [("person", 8)]))
    ]
    return json.dumps({"val": images})


def files() -> dict[str, str]:
    """Returns the text of every file that the page shows, by the path in the block's first line."""
    found = {}
    for language in ("python", "yaml", "toml"):
        for line, text in blocks(PAGE, language):
            path = re.match(r"# (\S+)\n", text)
            assert path is not None, f"{PAGE.name}:{line}: the block has no path in its first line"
            assert path.group(1) not in found, f"{PAGE.name}:{line}: {path.group(1)} is there twice"
            found[path.group(1)] = text[path.end() :]
    return found


def shown_commands() -> list[list[str]]:
    """Returns the words of the page's commands, shortened by options at the end.

    Those of TinyMono on a world in KITTI layout are run by tests/examples/test_downstream.py.
    """
    scripts = []
    for words in (command.words for command in commands(PAGE)):
        if words[0] != "bevkd2":
            scripts.append(words[1:])
        elif words[:2] == ["bevkd2", "train"] and "configs/photos.yaml" in words:
            scripts.append([*words, *CPU, "SEED", "0"])  # as long as shown, because it learns
        elif not any("tinymono" in word for word in words):
            scripts.append([*words, *EXTRA[words[1]]])
    return scripts


def learn(name: str, steps: str) -> list[str]:
    """Returns a training of one of the page's configs with another number of steps."""
    command = ["bevkd2", "train", "--import", "mykd", "--config-file", f"configs/{name}.yaml"]
    options = ["SOLVER.MAX_ITER", steps, "OUTPUT_DIR", f"output/{name}_{steps}"]
    return [*command, *EXTRA["train"], *options]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder that is outside of the repository, after all commands of the page."""
    folder = tmp_path_factory.mktemp("mykd")
    extra = {"publish.py": PUBLISH, "precision.py": PRECISION}
    extra["precision/photos.json"] = objects_of_precision()
    for name, text in {**files(), **extra}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    scripts = [*shown_commands(), learn("cellbev", "40"), learn("photos", "1"), ["precision.py"]]
    scripts.insert(next(i for i, words in enumerate(scripts) if "import-weights" in words), ["publish.py"])
    run(folder, [str(ROOT / "tests/examples/run_scripts.py")], package=folder, stdin=json.dumps(scripts))
    return folder


def logged(folder: Path, output: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "output" / output / "metrics.json").read_text().splitlines()
    ]


def keys(folder: Path, output: str) -> set[str]:
    return set(load_state(folder / "output" / output / "model_final.pth"))


def test_page_and_examples_show_the_same_files() -> None:
    paths = [path for pattern in ("*.toml", "*.py", "*/*.py", "*/*.yaml") for path in PACKAGE.glob(pattern)]
    assert files() == {str(path.relative_to(PACKAGE)): path.read_text() for path in paths}


def test_the_files_are_short() -> None:
    lines = {name: len(text.splitlines()) for name, text in files().items()}
    assert lines["mykd/cell_similarity.py"] < 40 and lines["mykd/depth_hint.py"] < 40
    assert lines["mykd/multi_view.py"] < 200 and lines["mykd/monocular.py"] < 130
    assert lines["mykd/format.py"] <= 150


def test_the_package_imports_only_what_is_public() -> None:
    for name, text in files().items():
        for node in ast.walk(ast.parse(text if name.endswith(".py") else "")):
            assert not (isinstance(node, ast.Import) and any("bevkd2" in each.name for each in node.names))
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bevkd2"):
                package = importlib.import_module(str(node.module))
                assert str(node.module).count(".") == 1, f"{name} imports {node.module}"
                assert {each.name for each in node.names} <= set(package.__all__), f"{name}: {node.module}"


def test_the_project_file_names_the_package() -> None:
    assert '[project.entry-points."bevkd2.plugins"]\nmykd = "mykd"\n' in files()["pyproject.toml"]


def test_bevkd2_does_not_know_the_package() -> None:
    assert "CELLBEV" not in get_cfg().MODEL and "CELL_SIMILARITY" not in get_cfg().DISTILL


@pytest.mark.slow
def test_the_method_and_the_hook_run_in_the_demo_s_distillation(folder: Path) -> None:
    rows = [row for row in logged(folder, "similarity") if "total_loss" in row]
    assert len(rows) == 10
    for row in rows:
        assert 0 < row["loss_distill_cell_similarity"] < 100 and 0 < row["loss_distill_bev_response"] < 100
        assert 0 < row["gradient_norm"] < float("inf")
        weighted = 0.01 * 5.0 * row["distill_raw/cell_similarity"]
        assert row["loss_distill_cell_similarity"] == pytest.approx(weighted, rel=1e-4)


@pytest.mark.slow
def test_the_detector_is_scored(folder: Path) -> None:
    assert (folder / "output" / "cellbev" / "inference" / "metrics_summary.json").is_file()


@pytest.mark.slow
def test_the_detector_learns(folder: Path) -> None:
    rows = [row for row in logged(folder, "cellbev_40") if "loss_box" in row]
    losses = [row["loss_class"] + row["loss_box"] for row in rows]
    assert len(losses) == 40 and sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses


@pytest.mark.slow
def test_the_detector_is_distilled(folder: Path) -> None:
    assert keys(folder, "cellbev_distill") == keys(folder, "cellbev")
    rows = [row for row in logged(folder, "cellbev_distill") if "loss_box" in row]
    assert len(rows) == 10
    for method in ("bev_response", "cell_similarity"):
        assert all(0 < row[f"loss_distill_{method}"] < 100 for row in rows)


@pytest.mark.slow
def test_the_detector_is_drawn_and_counted(folder: Path) -> None:
    kinds = {path.stem.partition("_")[2] for path in (folder / "output" / "pictures").iterdir()}
    assert kinds == {"detections_model", "bev_response", "features"}  # it has no attention to draw
    models = json.loads((folder / "counts.json").read_text())["models"]
    assert models["student"]["architecture"] == "CellBEV"
    assert set(models["student"]["parameters"]) == {"backbone", "neck", "mix", "head", "total"}
    assert models["teacher"]["parameters"]["encoder"] > 0


@pytest.mark.slow
def test_a_detector_learns_the_photos(folder: Path) -> None:
    trained, untrained = (
        next(row for row in reversed(logged(folder, name)) if "bbox/mAP" in row)
        for name in ("photos", "photos_1")
    )
    assert untrained["bbox/mAP"] < 0.3 and trained["bbox/mAP"] > 0.6, (untrained, trained)
    assert {key for key in trained if key.startswith("bbox/")} == {
        *("bbox/AP_car", "bbox/AP_person", "bbox/mAP"),
    }


@pytest.mark.slow
def test_the_data_format_is_scored_and_drawn(folder: Path) -> None:
    assert "copypaste: AP_car,AP_person,mAP" in (folder / "output/photos_scored/log.txt").read_text()
    stored = load_file(folder / "output" / "photos" / "model_final.pth")
    assert stored["classes"] == ["car", "person"]
    assert any("detections" in path.name for path in (folder / "output" / "photos_pictures").iterdir())


@pytest.mark.slow
def test_average_precision(folder: Path) -> None:
    """Image a has cars at 5, 20 and 40 m, image b a person at 8 m.

    First, one car is found by the highest score, one by the lowest, after a wrong and a repeated detection,
    and one not at all; a person is found only in image a, where there is none. Then all objects are found,
    the person with the highest score of three.
    """
    missing, first, second = json.loads((folder / "precision" / "results.json").read_text())
    assert missing == "1 of 2 images were not evaluated, such as 'b'"
    car = (1 / 1 + 2 / 4) / 3
    assert first == pytest.approx({"AP_car": car, "AP_person": 0.0, "mAP": car / 2})
    assert second == pytest.approx({"AP_car": 1.0, "AP_person": 1.0, "mAP": 1.0})


@pytest.mark.slow
def test_the_backbone_is_built(folder: Path) -> None:
    assert {"image_backbone.first.weight", "image_backbone.second.weight"} <= keys(folder, "two_layers")


@pytest.mark.slow
def test_the_importer_renames_the_backbone(folder: Path) -> None:
    assert set(load_state(folder / "cellbev.safetensors")) == keys(folder, "cellbev")
