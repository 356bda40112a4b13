"""The data format of examples/downstream: trained with and scored, without a change of bevkd2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.config import get_cfg
from tests.data.kitti_fixture import VAL
from tests.docs.pages import ROOT
from tests.examples.boxes_json import write_world
from tests.examples.test_downstream import PACKAGE, SHORT, TRAIN_NET, run

pytestmark = pytest.mark.slow
CLASSES = ("car", "person")
CONFIG = "examples/downstream/configs/boxes_json.yaml"


def command(*options: str) -> list[str]:
    return [TRAIN_NET, "--import", "tinymono", "--config-file", CONFIG, *options, *SHORT]


@pytest.fixture(scope="module")
def folder(kitti_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a detector learned the training split of the small world, and was scored on it."""
    folder = tmp_path_factory.mktemp("boxes_json")
    for name in ("configs", "examples", "tools"):
        (folder / name).symlink_to(ROOT / name)
    write_world(kitti_world, folder / "data" / "boxes_json")
    learn = ["SOLVER.MAX_ITER", "150", "SOLVER.IMS_PER_BATCH", "3", "SOLVER.BASE_LR", "0.005"]
    learn += ["SOLVER.CHECKPOINT_PERIOD", "150", "SOLVER.WARMUP_ITERS", "20", "INPUT.FLIP_PROB", "0"]
    run(folder, [*command(), *learn, "DATASETS.TEST", "('train',)"])
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    path = folder / "output" / "tinymono_boxes_json" / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_file_is_as_short_as_said() -> None:
    assert len((PACKAGE / "tinymono" / "format.py").read_text().splitlines()) <= 150


def test_bevkd2_does_not_know_the_format() -> None:
    assert "BOXES_JSON" not in get_cfg().TEST


def test_the_detector_learns_the_training_split(folder: Path) -> None:
    rows = logged(folder)
    totals = [row["total_loss"] for row in rows if "total_loss" in row]
    assert len(totals) == 150 and totals[-1] < totals[0] / 5
    scores = {key: value for row in rows for key, value in row.items() if key.startswith("bbox/")}
    assert set(scores) == {*(f"bbox/AP_{name}" for name in CLASSES), "bbox/mAP"}
    assert scores["bbox/AP_car"] > 0.5, scores


def test_the_checkpoint_stores_the_classes_and_is_scored_on_the_other_split(folder: Path) -> None:
    weights = "output/tinymono_boxes_json/model_final.pth"
    assert torch.load(folder / weights, weights_only=True)["classes"] == list(CLASSES)
    printed = run(folder, [*command("--eval-only"), "MODEL.WEIGHTS", weights, "OUTPUT_DIR", "output/scored"])
    assert "AP_car" in printed and "mAP" in printed


def test_the_split_is_drawn(folder: Path) -> None:
    words = ["tools/visualize.py", "--import", "tinymono", "--config-file", CONFIG, "--output", "pictures"]
    words += ["--weights", "output/tinymono_boxes_json/model_final.pth", "--num", "1", "MODEL.DEVICE", "cpu"]
    run(folder, words)
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert any(name.startswith(f"images_{VAL[0]}.png_detections") for name in names), names


PROGRAM = """
import json, sys, torch
from bevkd2.structures import CameraBoxes3D
from tinymono.format import BoxesJsonIndex, CenterDistanceEvaluator
from pathlib import Path

evaluator = CenterDistanceEvaluator(BoxesJsonIndex(Path(sys.argv[1]), "three", ("car", "person")), 2.0)
try:
    evaluator.evaluate()
except ValueError as error:
    print(error)
rows = torch.tensor([[0.0, 0.0, z, 1.0, 1.0, 1.0, 0.0] for z in (5.5, 30.0, 5.2, 21.0)])
scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64)
found = {"boxes": CameraBoxes3D(rows), "scores": scores, "labels": labels}
evaluator.process([{"sample_id": "a"}], [found])
print(json.dumps(evaluator.evaluate()["bbox"]))
"""


def test_average_precision(tmp_path: Path) -> None:
    """Of three objects one is found first, one never, one after a wrong detection and a repeated one."""
    objects = [{"class": "car", "center": [0.0, 0.0, z], "size": [1.0] * 3, "yaw": 0.0} for z in (5, 20, 40)]
    intrinsics = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    image = {"file": "a", "width": 9, "height": 9, "intrinsics": intrinsics, "boxes": objects}
    (tmp_path / "three.json").write_text(json.dumps({"images": [image]}))
    missing, results = run(tmp_path, ["-c", PROGRAM, str(tmp_path)]).splitlines()[-2:]
    assert missing == "1 images were not evaluated, such as 'a'"
    scores = json.loads(results)
    assert scores["AP_car"] == pytest.approx((1 / 1 + 2 / 4) / 3) == scores["mAP"]
    assert math.isnan(scores["AP_person"])
