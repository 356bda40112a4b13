"""Classes and splits without an object to learn from are told before the first step."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from bevkd2.config import CfgNode, get_cfg
from bevkd2.data.kitti import KittiIndex
from bevkd2.data.targets import check_targets
from bevkd2.engine import check_datasets
from tests.data.kitti_fixture import TRAIN
from tests.data.nuscenes_fixture import VERSION, FixtureWorld

BOX = "0 0 9 9"
ROW = "{kind} 0.00 0 0.00 {box} 1.50 1.60 3.90 1.00 1.60 {z} 0.30\n"


def config(form: str, root: Path, **data: object) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = form, str(root), VERSION
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("train",) if form == "kitti" else ("first",)
    for key, value in data.items():
        cfg.DATASETS[key] = value
    return cfg


@pytest.fixture
def kitti(kitti_world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kitti_world, tmp_path / "world"))


def label_all(root: Path, *rows: str, frames: list[str] = TRAIN) -> None:
    for frame in frames:
        (root / "training" / "label_2" / f"{frame}.txt").write_text("".join(rows))


def test_classes_without_points_or_labels_are_told(fixture_world: FixtureWorld, caplog) -> None:
    check_targets(config("nuscenes", fixture_world.root))
    assert "no object to learn from in DATASETS.TRAIN: truck: none is labelled; " in caplog.text
    assert "barrier: 3 have no lidar or radar points; " in caplog.text
    assert "car: " not in caplog.text and "pedestrian: " not in caplog.text


def test_frames_whose_objects_are_out_of_range_are_an_error(fixture_world: FixtureWorld) -> None:
    cfg = config("nuscenes", fixture_world.root)
    cfg.INPUT.POINT_RANGE = [-1.0, -1.0, -5.0, 1.0, 1.0, 3.0]
    with pytest.raises(
        ValueError, match=r"TRAIN \['first'\] has no object .*: car: 6 are outside INPUT\.POINT"
    ):
        check_datasets(cfg, training=True)
    check_datasets(cfg, training=False)


@pytest.mark.parametrize(
    ("name", "cameras", "message"),
    [
        ("barrier", ["CAM_FRONT"], r"barrier: 3 have no lidar points \(9 labelled objects are of other"),
        ("pedestrian", ["CAM_FRONT"], r"pedestrian: 3 have no area in an image \(INPUT\.BOXES2D projected"),
        ("bus", ["CAM_FRONT"], r"bus: none is labelled \(12 labelled objects are of other classes\)"),
    ],
)
def test_images_of_key_frames(fixture_world: FixtureWorld, tmp_path: Path, name, cameras, message) -> None:
    cfg = config("nuscenes_mono", fixture_world.root, CLASSES=[name], CACHE_DIR=str(tmp_path))
    cfg.INPUT.CAMERAS = cameras
    with pytest.raises(ValueError, match=message):
        check_targets(cfg)


@pytest.mark.parametrize(
    ("rows", "rule", "message"),
    [
        ((), "projected", "Car: none is labelled"),
        (("Van", 8), "projected", r"Car: none is labelled \(5 labelled objects are of other classes\)"),
        (("DontCare", 8), "projected", r"Car: none is labelled\. Set DATASETS\.CLASSES"),
        (("Car", -8), "projected", "Car: 5 are not in front of the camera"),
        (("Car", 8), "label", r"Car: 5 have no area in an image \(INPUT\.BOXES2D label\)"),
    ],
)
def test_images_of_kitti(kitti: Path, rows, rule: str, message: str) -> None:
    label_all(kitti, ROW.format(kind=rows[0], z=rows[1], box="-1 -1 -1 -1") if rows else "")
    cfg = config("kitti", kitti, CLASSES=["Car"])
    cfg.INPUT.BOXES2D = rule
    with pytest.raises(ValueError, match=rf"TRAIN \['train'\] has no object to learn from: {message}"):
        check_targets(cfg)


def test_one_split_of_several_may_be_empty(kitti: Path, caplog) -> None:
    (kitti / "ImageSets" / "empty.txt").write_text(TRAIN[0])
    label_all(kitti, ROW.format(kind="Car", z=8, box=BOX), frames=TRAIN[1:])
    label_all(kitti, frames=TRAIN[:1])
    with caplog.at_level(logging.WARNING):
        check_targets(config("kitti", kitti, CLASSES=["Car"], TRAIN=("train", "empty")))
    assert [r.getMessage() for r in caplog.records if r.name.endswith("targets")] == [
        "split 'empty' has no object to learn from: Car: none is labelled"
    ]


def test_images_are_looked_at_until_every_class_is_seen(kitti: Path, monkeypatch) -> None:
    label_all(kitti, ROW.format(kind="Car", z=8, box=BOX))
    seen: list[int] = []
    original = KittiIndex.record
    monkeypatch.setattr(KittiIndex, "record", lambda self, i: seen.append(i) or original(self, i))
    check_targets(config("kitti", kitti, CLASSES=["Car", "Tram"]))
    assert seen == [0]
