"""TensorBoard's event files, read back: pictures at evaluations, hyper-parameters with final scores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from bevkd2.d2 import build_model
from bevkd2.engine import build_trainer, train
from bevkd2.engine.tensorboard import EvaluationPictures, draw_samples, pictures_hook
from tests.engine.test_build import toy_evaluate
from tests.engine.toys import build_toy_loader, toy_cfg
from tests.modeling.mono.pgd_model import small_cfg


def run(cfg: Any, **kwargs: Any) -> None:
    train(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate, **kwargs)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def session(folder: Path, tag: str) -> Any:
    content = events(folder).summary_metadata[tag].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_hyper_parameters_and_final_scores_are_written(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    cfg.TEST.TENSORBOARD.HPARAMS = ["SOLVER.BASE_LR", "SEED", "DISTILL.METHODS"]
    run(cfg)
    start = session(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    assert start["SOLVER.BASE_LR"].number_value == pytest.approx(0.05)
    assert start["SEED"].number_value == 3 and start["DISTILL.METHODS"].string_value == "[]"
    experiment = session(tmp_path, "_hparams_/experiment").experiment
    assert {info.name.tag for info in experiment.metric_infos} == {"toy/score", "toy/count"}
    assert events(tmp_path).Scalars("toy/count")[-1].value == 6


def test_by_default_the_common_ones_are_written(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path))
    start = session(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    assert {"SOLVER.MAX_ITER", "MODEL.META_ARCHITECTURE"} <= set(start)


@pytest.mark.parametrize(("key", "message"), [("SOLVER.X", "is no key"), ("SOLVER", "is a node")])
def test_a_parameter_that_is_no_key_is_an_error(tmp_path: Path, key: str, message: str) -> None:
    cfg = toy_cfg(tmp_path)
    cfg.TEST.TENSORBOARD.HPARAMS = [key]
    with pytest.raises(ValueError, match=message):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)


def draw() -> list[tuple[str, dict[str, np.ndarray]]]:
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[1, 2] = (200, 10, 20)
    return [("s0", {"detections": picture}), ("s1", {"detections": picture})]


def test_pictures_are_written_at_every_evaluation(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 2)
    run(cfg, extra_hooks=[EvaluationPictures(2, draw)])
    found = events(tmp_path)
    assert sorted(found.Tags()["images"]) == ["detections/s0", "detections/s1"]
    images = found.Images("detections/s1")
    assert [image.step for image in images] == [1, 3, 6]
    pixels = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)))
    assert pixels.shape == (4, 6, 3) and pixels[1, 2].tolist() == [200, 10, 20]


def test_pictures_of_a_detector_are_those_of_its_format(kitti_world: Path, tmp_path: Path) -> None:
    cfg = small_cfg()
    cfg.DATASETS.ROOT, cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = str(kitti_world), ("val",), 0
    model = build_model(cfg).train()
    assert pictures_hook(cfg, model) is None
    cfg.TEST.TENSORBOARD.PICTURES = 2
    assert isinstance(pictures_hook(cfg, model), EvaluationPictures)
    found = draw_samples(cfg, model, 2)
    assert [name for name, _ in found] == ["000005", "000007"] and model.training
    assert all("detections_model" in pictures for _, pictures in found)


@pytest.mark.parametrize(("num", "message"), [(-1, "is -1"), (1, "ToyDetector is no bevkd2")])
def test_pictures_that_cannot_be_drawn_are_an_error(tmp_path: Path, num: int, message: str) -> None:
    cfg = toy_cfg(tmp_path, "TEST.TENSORBOARD.PICTURES", num)
    with pytest.raises(ValueError, match=message):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
