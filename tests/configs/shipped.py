"""The shipped configs, and what several of their tests do with them."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.distill import is_distillation, resolve_teacher, student_config, teacher_config
from bevkd2.modeling.detector import Detector

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(CONFIGS.rglob("*.yaml"))
SHIPPED = [path for path in ALL if "_base_" not in path.parts]
_LOADED = {path: load_config(path) for path in SHIPPED}
DISTILLATIONS = [path for path in SHIPPED if is_distillation(_LOADED[path])]
MULTI_VIEW = [path for path in SHIPPED if _LOADED[path].DATASETS.FORMAT == "nuscenes"]
MONOCULAR = [path for path in SHIPPED if path not in MULTI_VIEW]


def name_of(path: Path) -> str:
    """A config's name from the folder of configs on, without the suffix."""
    return str(path.relative_to(CONFIGS).with_suffix(""))


def config(name: str) -> CfgNode:
    return load_config(CONFIGS / name)


def on_meta(cfg: CfgNode) -> Detector:
    """The model of a config, without memory for its parameters."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def parameters_m(cfg: CfgNode) -> float:
    """Millions of parameters, counted without memory for them."""
    return sum(p.numel() for p in on_meta(cfg).parameters()) / 1e6


def plain(path: Path) -> CfgNode:
    """The config of the detector that a config trains."""
    cfg = load_config(path)
    return student_config(cfg) if path in DISTILLATIONS else cfg


def pair(path: Path) -> tuple[CfgNode, CfgNode]:
    """Configs of student and teacher."""
    cfg = load_config(path)
    resolve_teacher(cfg)
    return student_config(cfg), teacher_config(cfg)


@functools.cache
def built(path: Path) -> Detector:
    """The detector that a config trains, on the meta device."""
    return on_meta(plain(path))
