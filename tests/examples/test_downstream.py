"""The monocular detector of examples/downstream: it trains, distils, resumes and is scored as any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevkd2.checkpoint import load_file
from bevkd2.config import get_cfg
from bevkd2.kitti.labels import KittiObjects, read_detections, read_labels
from bevkd2.ops.box3d import box3d_iou
from bevkd2.structures import CameraBoxes3D
from tests.data.kitti_fixture import TRAIN, VAL
from tests.docs.pages import ROOT, commands
from tests.limits import PROGRAM_SECONDS

PACKAGE = ROOT / "examples" / "downstream"
PAGE = ROOT / "docs" / "extending.md"
SHORT = (
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1"),
    *(
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
        "TEST.PRINT_PERIOD",
        "1",
        "DATALOADER.CACHE_IMAGES",
        "False",
        "SEED",
        "1",
    ),
)
FEW = TRAIN[:3]  # seven objects; the centre of one lies outside of its image, and so is not in the heat map


def command(name: str, config: str, *options: str) -> list[str]:
    return ["bevkd2", name, "--import", "mykd", "--config-file", f"configs/{config}", *options, *SHORT]


def shown_commands() -> list[list[str]]:
    """Returns the commands of the page about this detector, shortened by options at the end."""
    found = [shown.words for shown in commands(PAGE)]
    return [[*words, *SHORT] for words in found if any("tinymono" in word for word in words)]


def run(folder: Path, command: Sequence[str], package: Path = PACKAGE, stdin: str = "") -> str:
    path = os.pathsep.join([str(package), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(kitti_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands are run: a world where the configs expect it, and what the runs left."""
    folder = tmp_path_factory.mktemp("downstream")
    shutil.copytree(PACKAGE / "configs", folder / "configs")
    world = folder / "data" / "synthetic_kitti"
    (world / "ImageSets").mkdir(parents=True)
    (world / "training").symlink_to(kitti_world / "training")
    for split, frames in (("train", TRAIN), ("val", VAL), ("few", FEW)):
        (world / "ImageSets" / f"{split}.txt").write_text("\n".join(frames) + "\n")
    few = ["DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "('few',)", "OUTPUT_DIR", "output/few"]
    learn = ["SOLVER.MAX_ITER", "150", "SOLVER.IMS_PER_BATCH", "3", "SOLVER.BASE_LR", "0.005"]
    learn += ["SOLVER.CHECKPOINT_PERIOD", "150", "SOLVER.WARMUP_ITERS", "20", "INPUT.FLIP_PROB", "0"]
    longer = ["SOLVER.MAX_ITER", "3"]
    exported = ["MODEL.WEIGHTS", "student.safetensors", "OUTPUT_DIR", "output/exported"]
    scripts = [
        *shown_commands(),
        [*command("train", "tinymono_distill.yaml", "--resume"), *longer],
        ["bevkd2", "export-weights", "output/tinymono_distill/model_final.pth", "student.safetensors"],
        command("eval", "tinymono.yaml", *exported),
        [*command("train", "tinymono.yaml", *few), *learn],
    ]
    run(folder, [str(ROOT / "tests/examples/run_scripts.py")], stdin=json.dumps(scripts))
    return folder


def logged(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def keys(output: Path) -> set[str]:
    return set(load_file(output / "model_final.pth")["model"])


def test_bevkd2_does_not_know_the_package() -> None:
    assert "TINYMONO" not in get_cfg().MODEL and "DEPTH_HINT" not in get_cfg().DISTILL


def test_page_has_commands_of_every_kind() -> None:
    names = [(words[1], words[5].removeprefix("configs/")) for words in shown_commands()]
    distillations = ["tinymono_distill.yaml", "tinymono_distill_pgd.yaml"]
    trained = [("train", config) for config in ("tinymono.yaml", "tinymono_large.yaml", *distillations)]
    assert sorted(names) == sorted([*trained, ("eval", "tinymono.yaml")])


@pytest.mark.slow
def test_plain_training_is_scored(folder: Path) -> None:
    output = folder / "output" / "tinymono"
    assert {"loss_heatmap", "loss_depth", "loss_box"} <= set(logged(output)[0])
    assert {path.stem for path in (output / "inference" / "data").iterdir()} == set(VAL)
    assert any(key.endswith("Car_3D_moderate_R40") for key in logged(output)[-1])
    parts = {key.split(".")[0] for key in keys(output)}
    assert parts == {"image_backbone", "neck", "class_head", "box_head"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("tinymono_distill", {"depth_hint", "depth_guided", "perspective_feature"}),
        ("tinymono_distill_pgd", {"depth_hint", "perspective_feature"}),
    ],
)
def test_distilled_student_is_the_plain_one(folder: Path, name: str, methods: set[str]) -> None:
    output = folder / "output" / name
    assert keys(output) == keys(folder / "output" / "tinymono")
    for row in (row for row in logged(output) if "loss_box" in row):
        terms = {key: value for key, value in row.items() if key.startswith("loss_distill_")}
        assert set(terms) == {f"loss_distill_{method}" for method in methods}
        assert all(0 < value < 100 for value in terms.values())


@pytest.mark.slow
def test_training_is_resumed(folder: Path) -> None:
    iterations = [row["iteration"] for row in logged(folder / "output" / "tinymono_distill")]
    assert iterations[0] == 0 and max(iterations) == 3 and iterations.count(1) == 1
    assert (folder / "output" / "tinymono_distill" / "model_0000002.pth").is_file()


@pytest.mark.slow
def test_exported_weights_score_as_the_checkpoint(folder: Path) -> None:
    found, again = (folder / "output" / name / "inference/data" for name in ("tinymono_distill", "exported"))
    for frame in VAL:
        assert (found / f"{frame}.txt").read_bytes() == (again / f"{frame}.txt").read_bytes()


def boxes_of(objects: KittiObjects) -> torch.Tensor:
    sizes = objects.sizes[:, [2, 0, 1]]  # bottom layout: length, height, width
    columns = np.concatenate([objects.location, sizes, objects.rotation_y[:, None]], axis=1)
    return CameraBoxes3D.from_bottom(torch.from_numpy(columns)).upright().tensor


@pytest.mark.slow
def test_it_overfits_three_frames(folder: Path) -> None:
    output = folder / "output" / "few"
    totals = [row["total_loss"] for row in logged(output) if "total_loss" in row]
    assert totals[-1] < totals[0] / 10
    overlaps = []
    for frame in FEW:
        truth = read_labels(folder / "data/synthetic_kitti/training/label_2" / f"{frame}.txt")
        truth = truth[np.isin(truth.types, ["Car", "Pedestrian", "Cyclist"])]
        found = read_detections(output / "inference" / "data" / f"{frame}.txt")
        found = found[found.scores > 0.3]
        assert len(found) <= len(truth)
        same = torch.from_numpy(truth.types[:, None] == found.types[None])
        overlaps += (box3d_iou(boxes_of(truth), boxes_of(found)) * same).amax(1).tolist()
    assert len(overlaps) == 7 and sum(overlap > 0.3 for overlap in overlaps) >= 6, overlaps


@pytest.mark.slow
def test_entry_point_of_the_installed_package_makes_import_needless(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=PROGRAM_SECONDS)
    program = (
        "import bevkd2.modeling\n"
        "from bevkd2.config import load_config\n"
        "from bevkd2.d2 import META_ARCH_REGISTRY\n"
        f"print(load_config({str(PACKAGE / 'configs/tinymono_distill.yaml')!r}).DISTILL.DEPTH_HINT.WEIGHT)\n"
        "print('TinyMono' in META_ARCH_REGISTRY)\n"
        "import mykd\nprint(mykd.__file__)\n"
    )
    weight, registered, file = run(tmp_path, ["-c", program], package=target).splitlines()[-3:]
    assert (float(weight), registered) == (1.0, "True") and Path(file).is_relative_to(target)
