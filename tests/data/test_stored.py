"""Stored detections of every format, read and matched without a model."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from bevkd2.config import get_cfg
from bevkd2.data import data_format
from bevkd2.data.kitti import load_kitti
from bevkd2.data.stored import MonoStoredFrames
from bevkd2.evaluation.failures import counts_of
from bevkd2.visualization import DrawnObjects
from tests.data.kitti_fixture import VAL
from tests.data.stored_fixture import (
    kitti_config,
    nuscenes_config,
    open_frames,
    store_kitti,
    store_nuscenes,
)

SETTINGS = {"score_threshold": 0.3, "limit": None, "far": 4.0}


def counts(frames, folder, **changes):
    found = frames.read(folder / "inference")
    settings = {**SETTINGS, **changes}
    return counts_of([frames.match(i, there, **settings) for i, there in enumerate(found)])


@pytest.fixture(scope="module")
def kitti(kitti_world):
    return open_frames(kitti_config(kitti_world))


@pytest.fixture(scope="module", params=["nuscenes", "nuscenes_mono"])
def nuscenes(request, fixture_world):
    cfg = nuscenes_config(fixture_world, request.param)
    return cfg, open_frames(cfg)


def test_kittis_labels_as_detections_find_all_that_counts(kitti, kitti_world, tmp_path):
    perfect = counts(kitti, store_kitti(kitti_world, tmp_path / "all"))
    assert perfect["found"] == perfect["objects"] > 0
    assert perfect["false"] == perfect["missed"] == perfect["far"] == 0 and perfect["error"] == 0
    moved = counts(kitti, store_kitti(kitti_world, tmp_path / "moved", shift=2.0))
    assert moved["found"] == 0 and moved["far"] == moved["objects"] == perfect["objects"]
    assert counts(kitti, tmp_path / "moved", far=1.0)["missed"] == perfect["objects"]
    looser = counts(kitti, tmp_path / "moved", limit=0.1)
    assert looser["found"] > 0 and looser["error"] == pytest.approx(2.0, abs=1e-3)
    none = counts(kitti, store_kitti(kitti_world, tmp_path / "none", keep=0))
    assert none["missed"] == perfect["objects"] and none["false"] == 0 and none["error"] is None


def test_kittis_frames_have_images_and_objects(kitti):
    assert list(kitti.names) == VAL and len(kitti) == 3
    (scene,) = kitti.scenes()
    assert (scene.name, scene.frames, scene.rate) == ("all", range(3), None)
    view = kitti.view(0)
    assert view.monocular and view.images["camera"].shape == (96, 320, 3)
    truth = kitti.truth(0)
    assert truth.labels.min() >= 0 and truth.labels.max() < len(kitti.class_names)


def test_kittis_files_must_be_of_the_split(kitti, kitti_world, tmp_path):
    folder = store_kitti(kitti_world, tmp_path / "run") / "inference"
    (folder / "data" / f"{VAL[0]}.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no detection file of 1 frame"):
        kitti.read(folder)


def test_a_split_of_testing_has_nothing_to_miss(kitti_world):
    index = dataclasses.replace(load_kitti(kitti_world, "val", ("Car",)), annotated=False)
    from bevkd2.data.stored.kitti import KittiStoredFrames

    with pytest.raises(ValueError, match="has no labels"):
        KittiStoredFrames(str(kitti_world), index, ("Car",))


def test_nuscenes_objects_as_detections_are_all_found(nuscenes, tmp_path):
    cfg, frames = nuscenes
    perfect = counts(frames, store_nuscenes(cfg, frames, tmp_path / "all"))
    assert perfect["found"] == perfect["objects"] > 0 and perfect["false"] == 0
    assert perfect["error"] == pytest.approx(0, abs=1e-3)
    near = counts(frames, store_nuscenes(cfg, frames, tmp_path / "near", shift=1.5))
    assert near["found"] == perfect["objects"] and near["error"] == pytest.approx(1.5, abs=1e-3)
    assert counts(frames, tmp_path / "near", limit=1.0)["found"] == 0
    far = counts(frames, store_nuscenes(cfg, frames, tmp_path / "far", shift=3.0))
    assert far["found"] == 0 and far["far"] > 0


def test_nuscenes_frames_have_all_cameras_and_the_rate_of_key_frames(nuscenes):
    _, frames = nuscenes
    assert len(frames) == 6 and [scene.name for scene in frames.scenes()] == ["scene-0001", "scene-0002"]
    assert frames.scenes()[1].frames == range(3, 6) and frames.scenes()[0].rate == pytest.approx(2.0)
    view = frames.view(4)
    assert len(view.images) == 6 and view.images.keys() == view.projections.keys() and not view.monocular


def test_nuscenes_results_of_another_split_are_an_error(nuscenes, fixture_world, tmp_path):
    cfg, frames = nuscenes
    folder = store_nuscenes(cfg, frames, tmp_path) / "inference"
    other = open_frames(nuscenes_config(fixture_world, cfg.DATASETS.FORMAT, "first"))
    with pytest.raises(ValueError, match="has 6 samples, the split 'first' 3"):
        other.read(folder)
    with pytest.raises(FileNotFoundError, match="bevkd2 eval"):
        frames.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"results": {"a": [', "is no valid JSON"),
        ('{"meta": {}}', "is no whole results file: it holds {'meta': {}}"),
        ("[]", r"is no whole results file: it holds \[\]"),
        ('{"results": [1]}', "is no whole results file"),
        ('{"results": {"a": 5}}', "sample 'a': results are 5, expected a list"),
        ('{"results": {"a": [5]}}', "sample 'a', detection 0 is 5, expected an object"),
    ],
)
def test_a_nuscenes_results_file_that_is_not_whole_is_named(nuscenes, tmp_path, text, message):
    (tmp_path / "results_nusc.json").write_text(text)
    with pytest.raises(ValueError, match=rf"results_nusc\.json,? {message}.*evaluate the model again"):
        nuscenes[1].read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_token", "other"),
        ("translation", [0.0, math.nan, 0.0]),
        ("size", [1.0, 0.0, 1.0]),
        ("rotation", [2.0, 0.0, 0.0, 0.0]),
        ("velocity", None),
        ("detection_name", "tram"),
        ("detection_score", "0.5"),
        ("attribute_name", 7),
    ],
)
def test_a_nuscenes_detection_that_cannot_be_is_named(nuscenes, tmp_path, field, value):
    cfg, frames = nuscenes
    path = store_nuscenes(cfg, frames, tmp_path) / "inference" / "results_nusc.json"
    content = json.loads(path.read_text())
    token = next(token for token, rows in content["results"].items() if len(rows) > 1)
    content["results"][token][1][field] = value
    path.write_text(json.dumps(content))
    message = rf"sample '{token}', detection 1: {field} is {re.escape(repr(value))}, expected"
    with pytest.raises(ValueError, match=message):
        frames.read(path.parent)


def test_a_nuscenes_model_that_finds_nothing_misses_all(nuscenes, tmp_path):
    _, frames = nuscenes
    content = {"meta": {}, "results": {name: [] for name in frames.names}}
    (tmp_path / "results_nusc.json").write_text(json.dumps(content))
    found = frames.read(tmp_path)
    none = counts_of([frames.match(i, there, **SETTINGS) for i, there in enumerate(found)])
    assert none["missed"] == none["objects"] > 0 and none["false"] == 0


class Lists(MonoStoredFrames):
    """A format of one's own: what it adds is how its files are read."""

    def read(self, folder: Path) -> list[DrawnObjects]:
        kept = int((folder / "kept.txt").read_text())
        return [self._first(i, kept) for i in range(len(self))]

    def _first(self, i, kept):
        truth = self.truth(i)
        first = truth.only(np.arange(len(truth)) < kept)
        return dataclasses.replace(first, scores=np.ones(len(first)))


def test_a_format_of_ones_own_adds_only_the_reading(kitti_world, tmp_path):
    classes = ("Pedestrian", "Cyclist", "Car")
    frames = Lists(load_kitti(kitti_world, "val", classes), classes)
    (tmp_path / "kept.txt").write_text("1")
    found = counts_of([frames.match(i, there, **SETTINGS) for i, there in enumerate(frames.read(tmp_path))])
    assert found["found"] == 3 and found["missed"] == found["objects"] - 3 > 0


def test_a_format_that_reads_what_cannot_be_matched_is_an_error(kitti_world):
    classes = ("Pedestrian", "Cyclist", "Car")
    frames = Lists(load_kitti(kitti_world, "val", classes), classes)
    with pytest.raises(TypeError, match=r"Lists\.read returned a list for a frame.* override Lists\.drawn"):
        frames.match(0, [1.0], **SETTINGS)
    with pytest.raises(ValueError, match=rf"frame {frames.names[0]} have no scores.* in Lists\.read"):
        frames.match(0, frames.truth(0), **SETTINGS)


def test_a_format_without_them_says_what_to_implement(monkeypatch):
    from bevkd2.data.format import DataFormat

    cfg = get_cfg()
    cfg.DATASETS.FORMAT = "kitti"
    form = data_format(cfg)
    with pytest.raises(ValueError, match=r"implement KittiFormat\.stored_frames"):
        DataFormat.stored_frames(form, cfg, "val")
