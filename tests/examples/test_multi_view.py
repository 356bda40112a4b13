"""A multi-view detector outside of bevkd2 trains, is distilled, is drawn and is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bevkd2.data.synthetic import WorldConfig, generate
from tests.docs.pages import PAGES, ROOT, commands
from tests.examples.test_downstream import CONFIGS, SHORT, keys, logged, run

pytestmark = pytest.mark.slow
LEARNING = ("SOLVER.MAX_ITER", "40", "SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands were run on a small world, made short by options at the end."""
    folder = tmp_path_factory.mktemp("multi_view")
    for name in ("configs", "examples", "tools", "assets"):
        (folder / name).symlink_to(ROOT / name)
    config = WorldConfig(num_train_scenes=1, num_val_scenes=1, frames_per_scene=3, image_size=(96, 32))
    generate(config, folder / "data" / "demo", progress=False)
    version = ("DATASETS.VERSION", config.version)
    learn = ["tools/train_net.py", "--import", "tinymono", "--config-file", f"{CONFIGS}/tinybev.yaml"]
    scripts = [[*command, *version] for command in shown()]
    scripts.append([*learn, *version, *SHORT, *LEARNING, "OUTPUT_DIR", "output/learnt"])
    scripts[3] += ["--json", "counts.json"]
    run(folder, [str(ROOT / "tests/examples/run_scripts.py")], stdin=json.dumps(scripts))
    return folder


def shown() -> list[list[str]]:
    """The commands of the pages that name this detector's configs."""
    words = [command.words[1:] for page in PAGES for command in commands(page) if "--import" in command.words]
    multi_view = [command for command in words if any("bev.yaml" in word for word in command)]
    return [[*command, *(SHORT if "train_net" in command[0] else ())] for command in multi_view]


def test_the_page_shows_the_four_tools_in_order() -> None:
    assert [command[0] for command in shown()] == [
        *("tools/train_net.py", "tools/train_net.py"),
        *("tools/visualize.py", "tools/analyze_model.py"),
    ]


def test_it_trains_and_is_scored(folder: Path) -> None:
    output = folder / "output" / "tinybev"
    assert {"loss_heatmap", "loss_box"} <= set(logged(output)[0])
    assert {key.split(".")[0] for key in keys(output)} == {
        *("image_backbone", "neck", "bev_encoder", "class_head", "box_head"),
    }
    assert (output / "inference" / "metrics_summary.json").is_file()


def test_it_learns(folder: Path) -> None:
    totals = [row["total_loss"] for row in logged(folder / "output" / "learnt") if "total_loss" in row]
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])


def test_it_learns_from_a_bevformer(folder: Path) -> None:
    output = folder / "output" / "tinybev_distilled"
    assert keys(output) == keys(folder / "output" / "tinybev")
    rows = [row for row in logged(output) if "loss_box" in row]
    assert rows and all(0 < row["loss_distill_bev_response"] < 100 for row in rows)


def test_it_is_drawn(folder: Path) -> None:
    kinds = {path.stem.partition("_")[2] for path in (folder / "output" / "tinybev_pictures").iterdir()}
    assert kinds == {"detections_model", "bev_response"}  # it has no attention to draw


def test_it_is_counted(folder: Path) -> None:
    models = json.loads((folder / "counts.json").read_text())["models"]
    student = models["student"]["parameters"]
    parts = {"backbone", "neck", "bev_encoder", "class_head", "box_head", "total"}
    assert models["student"]["architecture"] == "TinyBEV" and set(student) == parts
    assert student["total"] == sum(number for part, number in student.items() if part != "total")
    assert "bev_queries" not in student and models["teacher"]["parameters"]["encoder"] > 0
