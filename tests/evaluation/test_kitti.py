from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.evaluation import KittiEvaluator
from bevkd2.evaluation.kitti import to_kitti
from bevkd2.kitti.calibration import read_cam2img
from bevkd2.kitti.labels import read_detections, read_labels
from bevkd2.structures import CameraBoxes3D, project_boxes
from tests.data import kitti_fixture

CLASSES = ("Pedestrian", "Cyclist", "Car")
HEIGHT, WIDTH = kitti_fixture.IMAGE_SIZE


def labelled_boxes(labels) -> CameraBoxes3D:
    height, width, length = labels.sizes.T
    columns = [*labels.location.T, length, height, width, labels.rotation_y]
    return CameraBoxes3D.from_bottom(torch.from_numpy(np.stack(columns, axis=1)))


def model_output(root: Path, frame: str, scale: float = 1.0, shift: float = 0.0):
    """What a model that finds all labels returns, having seen an image scaled and moved."""
    labels = read_labels(root / "training" / "label_2" / f"{frame}.txt")
    labels = labels[np.isin(labels.types, CLASSES)]
    augment = torch.tensor([[scale, 0, shift], [0, scale, 0], [0, 0, 1]], dtype=torch.float64)
    cam2img = torch.from_numpy(read_cam2img(root / "training" / "calib" / f"{frame}.txt")).clone()
    cam2img[:3] = augment @ cam2img[:3]
    sample = {
        "image_id": frame,
        "cam2img": cam2img.float(),
        "image_to_original": augment.inverse().float(),
        "height": HEIGHT,
        "width": WIDTH,
    }
    found = {
        "boxes": CameraBoxes3D(labelled_boxes(labels).tensor.float()),
        "scores": torch.linspace(0.9, 0.5, len(labels)),
        "labels": torch.tensor([CLASSES.index(name) for name in labels.types], dtype=torch.int64),
    }
    return sample, found


def label_of(root: Path, frame: str) -> Path:
    return root / "training" / "label_2" / f"{frame}.txt"


def evaluator(root: Path, output_dir: Path, split: str = "val") -> KittiEvaluator:
    out = KittiEvaluator(root=root, split=split, classes=CLASSES, output_dir=output_dir)
    out.reset()
    return out


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 12.0)])
def test_finding_all_labels_matches_all_labels(kitti_world: Path, tmp_path: Path, scale, shift):
    frames = kitti_fixture.TRAIN
    out = evaluator(kitti_world, tmp_path, "train")
    for frame in frames:
        sample, found = model_output(kitti_world, frame, scale, shift)
        out.process([sample], [found])
    scores = out.evaluate()["bbox"]
    assert len(scores) == 3 * (3 * 3 + 3)
    report = json.loads((tmp_path / "kitti_scores.json").read_text())
    for name in CLASSES:
        for metric, key in (("2D", "bbox"), ("BEV", "bev"), ("3D", "3d")):
            ours, listed = scores[f"{name}_{metric}_moderate_R40"], report["AP_R40"]
            recorded = listed.get(f"{name.lower()}/{key}/moderate", float("nan"))
            assert ours == recorded or (math.isnan(ours) and math.isnan(recorded))
    assert {"AP_R11", "AOS_R40", "not_evaluated", "by_distance"} <= set(report)
    assert [entry["high"] for entry in report["by_distance"]] == [20, 40, None]
    assert set(report["precision"]) == set(report["AP_R40"])
    for key, ap in report["AP_R40"].items():
        assert len(report["precision"][key]) == 41
        if ap is not None:
            assert 100 * np.mean(report["precision"][key][1:]) == pytest.approx(ap)
    written = {path.stem: read_detections(path) for path in (tmp_path / "data").iterdir()}
    assert set(written) == set(frames)
    for frame, dets in written.items():
        labels = read_labels(kitti_world / "training" / "label_2" / f"{frame}.txt")
        labels = labels[np.isin(labels.types, CLASSES)]
        assert dets.types.tolist() == labels.types.tolist()
        np.testing.assert_allclose(dets.location, labels.location, atol=1e-4)
        np.testing.assert_allclose(dets.sizes, labels.sizes, atol=1e-4)
        np.testing.assert_allclose(np.cos(dets.rotation_y - labels.rotation_y), 1, atol=1e-6)
        np.testing.assert_allclose(np.cos(dets.alpha - labels.alpha), 1, atol=1e-3)
        # The world's image-plane boxes surround the projected corners, too.
        np.testing.assert_allclose(dets.boxes2d, labels.boxes2d, atol=1.0)


def test_a_class_of_which_no_object_counts_is_told(kitti_world: Path, tmp_path: Path, caplog):
    """A car is found, but does not count, as its image-plane box is unknown."""
    root = tmp_path / "root"
    shutil.copytree(kitti_world, root)
    frame = next(f for f in kitti_fixture.TRAIN if "Car" in label_of(root, f).read_text())
    (root / "ImageSets" / "train.txt").write_text(frame)
    rows = [line.split() for line in label_of(root, frame).read_text().splitlines()]
    label_of(root, frame).write_text("\n".join(" ".join([*r[:4], *["-1"] * 4, *r[8:]]) for r in rows))
    out = evaluator(root, tmp_path, "train")
    out.process(*([part] for part in model_output(root, frame)))
    assert out.evaluate()["bbox"]["Car_3D_hard_R40"] == 0
    assert "score of train: car: no object counts at easy, moderate, hard" in caplog.text
    report = json.loads((tmp_path / "kitti_scores.json").read_text())
    assert report["objects"]["car/hard"]["low"] == report["objects"]["car/hard"]["labelled"] > 0


def test_every_visible_car_counts(kitti_world: Path, tmp_path: Path):
    out = evaluator(kitti_world, tmp_path, "train")
    for frame in kitti_fixture.TRAIN:
        sample, found = model_output(kitti_world, frame)
        out.process([sample], [found])
    perfect = out.evaluate()["bbox"]
    shifted = evaluator(kitti_world, tmp_path, "train")
    for frame in kitti_fixture.TRAIN:
        sample, found = model_output(kitti_world, frame)
        found["boxes"].tensor[:, 2] += 4.0
        shifted.process([sample], [found])
    worse = shifted.evaluate()["bbox"]
    assert perfect["Car_3D_moderate_R40"] > 0
    assert worse["Car_3D_moderate_R40"] == worse["Car_BEV_moderate_R40"] == 0


def one_box(x=0.0, y=1.0, z=20.0, ry=0.5):
    cam2img = torch.eye(4, dtype=torch.float64)
    cam2img[0] = torch.tensor([700.0, 0, 600, 45.0])
    cam2img[1, 1:3] = torch.tensor([700.0, 180])
    sample = {
        "image_id": "000001",
        "cam2img": cam2img,
        "image_to_original": torch.eye(3),
        "height": 375,
        "width": 1242,
    }
    found = {
        "boxes": CameraBoxes3D(torch.tensor([[x, y, z, 3.9, 1.6, 1.5, ry]], dtype=torch.float64)),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([2]),
    }
    return sample, found


def test_a_box_in_kittis_layout():
    sample, found = one_box(x=3.0)
    objects = to_kitti(sample, found, CLASSES)
    assert objects.types.tolist() == ["Car"] and objects.scores.tolist() == [0.5]
    assert objects.sizes.tolist() == [[1.5, 1.6, 3.9]]
    np.testing.assert_allclose(objects.location, [[3.0, 1.75, 20.0]], atol=1e-9)
    assert objects.alpha == pytest.approx(0.5 - math.atan2(3, 20))
    assert (objects.truncated[0], objects.occluded[0]) == (-1, -1)
    uv, _ = project_boxes(found["boxes"], sample["cam2img"])
    expected = torch.cat([uv.amin(dim=1), uv.amax(dim=1)], dim=1)
    np.testing.assert_allclose(objects.boxes2d, expected, atol=1e-3)


def test_angles_are_wrapped():
    objects = to_kitti(*one_box(x=-10.0, z=10.0, ry=3.0), CLASSES)
    assert objects.rotation_y == pytest.approx(3.0)
    assert objects.alpha == pytest.approx(3.0 + math.pi / 4 - 2 * math.pi)


def test_image_boxes_are_clipped_and_what_is_outside_is_dropped():
    objects = to_kitti(*one_box(x=-17.0), CLASSES)  # its left end is beyond the border
    assert objects.boxes2d[0, 0] == 0 and objects.boxes2d[0, 2] > 20
    for where in ({"x": -40.0}, {"y": 40.0}, {"z": -20.0}):
        assert len(to_kitti(*one_box(**where), CLASSES)) == 0


def test_a_diverged_model_is_named():
    for field in ("boxes", "scores"):
        sample, found = one_box()
        (found[field].tensor if field == "boxes" else found[field])[0] = float("nan")
        with pytest.raises(ValueError, match=r"'000001' contain NaN.*diverged"):
            to_kitti(sample, found, CLASSES)


@pytest.mark.parametrize("size", [0.0, -1.0])
def test_a_size_that_is_not_above_zero_is_named(size):
    sample, found = one_box()
    found["boxes"].tensor[0, 4] = size
    with pytest.raises(ValueError, match=rf"'000001' have a box .* 3\.9, {size:g}, 1\.5 m, expected sizes"):
        to_kitti(sample, found, CLASSES)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_beyond_the_classes_is_named(label):
    sample, found = one_box()
    found["labels"][0] = label
    with pytest.raises(ValueError, match=rf"'000001' have the label {label}, expected 0 to 2"):
        to_kitti(sample, found, CLASSES)


def test_the_whole_split_must_be_processed(kitti_world: Path, tmp_path: Path):
    out = evaluator(kitti_world, tmp_path)
    first, *others = kitti_fixture.VAL
    out.process(*([part] for part in model_output(kitti_world, first)))
    with pytest.raises(ValueError, match=rf"2 of them were not evaluated and 0 others were .*{others[0]}"):
        out.evaluate()
    out.reset()
    for frame in [*kitti_fixture.VAL, kitti_fixture.TRAIN[0]]:
        out.process(*([part] for part in model_output(kitti_world, frame)))
    with pytest.raises(ValueError, match="0 of them were not evaluated and 1 others"):
        out.evaluate()


def test_files_of_another_split_are_removed(kitti_world: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "000099.txt").write_text("")
    out = evaluator(kitti_world, tmp_path)
    for frame in kitti_fixture.VAL:
        out.process(*([part] for part in model_output(kitti_world, frame)))
    out.evaluate()
    assert sorted(path.stem for path in (tmp_path / "data").iterdir()) == kitti_fixture.VAL


def test_no_detections_give_nan_scores(kitti_world: Path, tmp_path: Path):
    out = evaluator(kitti_world, tmp_path)
    for frame in kitti_fixture.VAL:
        sample, found = model_output(kitti_world, frame)
        out.process([sample], [{name: value[:0] for name, value in found.items()}])
    scores = out.evaluate()["bbox"]
    assert scores and all(math.isnan(value) for value in scores.values())
    assert [path.read_text() for path in (tmp_path / "data").iterdir()] == [""] * len(kitti_fixture.VAL)


@pytest.mark.parametrize("folder", [None, "testing/label_2"])
def test_a_split_without_labels_is_written_only(tmp_path: Path, caplog, folder: str | None):
    """The split's name decides, not what lies about: labels of some testing frames score nothing."""
    root = tmp_path / "root"
    (root / "ImageSets").mkdir(parents=True)
    (root / "ImageSets" / "test.txt").write_text("000001\n")
    if folder is not None:
        (root / folder).mkdir(parents=True)
    out = evaluator(root, tmp_path / "out", "test")
    out.process(*([part] for part in one_box()))
    assert out.evaluate() == {}
    assert len(read_detections(tmp_path / "out" / "data" / "000001.txt")) == 1
    assert "unscored" in caplog.text


def test_a_split_of_training_without_labels_is_an_error(tmp_path: Path):
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("000001\n")
    out = evaluator(tmp_path, tmp_path / "out")
    out.process(*([part] for part in one_box()))
    with pytest.raises(FileNotFoundError, match=r"training/label_2/000001\.txt"):
        out.evaluate()


def test_it_is_made_from_a_config(kitti_world: Path, tmp_path: Path):
    cfg = get_cfg()
    cfg.DATASETS.FORMAT = "kitti"
    cfg.DATASETS.ROOT = str(kitti_world)
    cfg.DATASETS.CLASSES = ["Car", "Van"]
    out = build_evaluator(cfg, "val", tmp_path)
    out.reset()
    for frame in kitti_fixture.VAL:
        sample, found = model_output(kitti_world, frame)
        found = {name: value[found["labels"] == 2] for name, value in found.items()}
        found["labels"] = torch.zeros_like(found["labels"])
        out.process([sample], [found])
    scores = out.evaluate()["bbox"]
    assert {key.split("_")[0] for key in scores} == {"Car"}  # KITTI scores no vans
    assert len(scores) == 12


def test_processes_are_gathered(kitti_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = []
    for frame in kitti_fixture.VAL:
        out = evaluator(kitti_world, tmp_path)
        out.process(*([part] for part in model_output(kitti_world, frame)))
        parts.append(out._detections)
    monkeypatch.setattr("bevkd2.evaluation.kitti.comm.gather", lambda data, dst: parts)
    assert evaluator(kitti_world, tmp_path).evaluate()["bbox"]
    monkeypatch.setattr("bevkd2.evaluation.kitti.comm.is_main_process", lambda: False)
    assert evaluator(kitti_world, tmp_path).evaluate() is None
