"""Pictures of frames: what the models of several runs predict, and what is behind it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PillowImage

from bevkd2.checkpoint.checkpointer import PERIODIC_FILES
from bevkd2.config import CfgNode, class_names, find_file, load_config
from bevkd2.data import data_format
from bevkd2.data.loader import first_test_dataset
from bevkd2.distill import is_distillation, teacher_config
from bevkd2.errors import USER_ERRORS, message_of
from bevkd2.modeling import Detector
from bevkd2.report.runs import Run
from bevkd2.visualization.frame_figures import SHARED_PICTURES
from bevkd2.visualization.objects import Image

LoadModel = Callable[[CfgNode, str], Detector[Any, Any, Any]]
"""Builds the model of a config, of a distillation its student, with the weights of a file."""

_MOST_MODELS = 4
# Of a run, the first that is there: what an experiment scored, the end of a training, its last checkpoint.
_WEIGHTS = ("averaged.pth", "model_final.pth", "model_interrupted.pth", PERIODIC_FILES, "model_best.pth")
_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        caption: below it.
        uri: the image itself.
        width, height: in pixels.
    """

    caption: str
    uri: str
    width: int
    height: int


@dataclass
class Pictures:
    """What was drawn.

    Attributes:
        kinds: such as "detections" -> name of the frame -> one picture a model, or one of all.
        lacks: what was not drawn and why, as sentences.
    """

    kinds: dict[str, dict[str, list[Picture]]] = field(default_factory=dict)
    lacks: list[str] = field(default_factory=list)


def draw_frames(
    runs: Sequence[Run],
    num: int,
    load_model: LoadModel,
    *,
    device: str = "auto",
    score_threshold: float = 0.3,
) -> Pictures:
    """Draws frames of the first test split with the models of the runs, and the teacher of a distillation.

    A model or data set that is not there is noted, not raised.

    Args:
        runs: the first ones that have weights are drawn.
        num: frames; 0 draws none and loads nothing.
        load_model: see :data:`LoadModel`.
        device: MODEL.DEVICE of all.
        score_threshold: least score of a drawn detection.
    """
    drawn = Pictures()
    if num == 0:
        drawn.lacks.append("no picture was asked for (--frames 0)")
        return drawn
    configs = _configs(runs, device, drawn.lacks)
    models: dict[str, Detector[Any, Any, Any]] = {}
    for name, (cfg, weights) in configs.items():
        if len(models) == _MOST_MODELS:
            drawn.lacks.append(f"{name}: only {_MOST_MODELS} models are drawn; name those first that matter")
            continue
        try:
            models[name] = load_model(cfg.clone(), weights)
        except (*USER_ERRORS, torch.OutOfMemoryError) as error:
            drawn.lacks.append(f"{name}: {message_of(error)}")
    if not models:
        return drawn
    cfg = configs[next(iter(models))][0]
    try:
        for frame, pictures in _frames(cfg, models, num, score_threshold):
            for title, picture in pictures.items():
                model = "" if title in SHARED_PICTURES else _model_of(title, models)
                kind = title.removesuffix(f"_{model}") if model else title
                caption = model or ", ".join(models)
                drawn.kinds.setdefault(kind, {}).setdefault(frame, []).append(_inlined(picture, caption))
    except (*USER_ERRORS, torch.OutOfMemoryError) as error:
        drawn.lacks.append(f"pictures: {message_of(error)}")
    return drawn


def _model_of(title: str, models: Iterable[str]) -> str:
    """Returns the model whose name ends a picture's title, the longest; "" where it is of all models."""
    return max((name for name in models if title.endswith(f"_{name}")), key=len, default="")


def _configs(runs: Sequence[Run], device: str, lacks: list[str]) -> dict[str, tuple[CfgNode, str]]:
    """Returns name -> config and weights: a teacher first, then the runs that read the first one's data."""
    found: dict[str, tuple[CfgNode, str]] = {}
    teacher: tuple[str, CfgNode] | None = None
    for run in runs:
        if run.config_file is None:
            lacks.append(f"{run.name}: no config.yaml, so its model cannot be built")
            continue
        try:
            cfg = load_config(str(run.config_file), ["MODEL.DEVICE", device])
            found[run.name] = (cfg, _weights(run, cfg))
            if teacher is None and is_distillation(cfg):
                teacher = (f"teacher of {run.name}", teacher_config(cfg))
                teacher[1].MODEL.DEVICE = device
        except USER_ERRORS as error:
            lacks.append(f"{run.name}: {message_of(error)}")
    if teacher is not None and not _has_weights(found, teacher[1].MODEL.WEIGHTS):
        found = {teacher[0]: (teacher[1], teacher[1].MODEL.WEIGHTS), **found}
    first = next((cfg for cfg, _ in found.values()), None)
    for name, (cfg, _) in list(found.items()):
        if first is not None and _data(cfg) != _data(first):
            lacks.append(f"{name}: its samples are {_data(cfg)}, those of {next(iter(found))} {_data(first)}")
            del found[name]
    return found


def _weights(run: Run, cfg: CfgNode) -> str:
    """Returns the file of a run's weights.

    Raises:
        FileNotFoundError: the run has no checkpoint, and its config names none that is there.
    """
    if run.metrics is None:  # an evaluation alone
        named = find_file(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
        if named is not None and named.is_file():
            return str(named)
        raise FileNotFoundError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r}, which it scored, is not there")
    for pattern in _WEIGHTS:
        if found := sorted(run.folder.glob(pattern)):
            return str(found[-1])
    raise FileNotFoundError(f"no checkpoint in {run.folder}")


def _has_weights(found: Mapping[str, tuple[CfgNode, str]], weights: str) -> bool:
    own = {Path(path).resolve() for _, path in found.values()}
    return bool(weights) and find_file(weights).resolve() in own


def _data(cfg: CfgNode) -> str:
    return f"{cfg.DATASETS.FORMAT} ({', '.join(class_names(cfg))})"


def _frames(
    cfg: CfgNode, models: Mapping[str, Detector[Any, Any, Any]], num: int, score_threshold: float
) -> Iterator[tuple[str, dict[str, Image]]]:
    dataset = first_test_dataset(cfg)
    return data_format(cfg).figures(cfg, dataset, models, num=num, score_threshold=score_threshold)


def _inlined(picture: Image, caption: str) -> Picture:
    data = io.BytesIO()
    PillowImage.fromarray(picture).save(data, "WEBP", quality=_QUALITY)
    uri = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Picture(caption, uri, picture.shape[1], picture.shape[0])
