"""Fixtures of a tiny distillation of BEVFormer."""

import pytest
import torch

from bevkd2.checkpoint import save_file
from bevkd2.distill import resolve_teacher
from tests.distill.frames import make_frames, tiny_bevformer_cfg
from tests.distill.pairs import METHODS, build


@pytest.fixture
def tiny_cfg():
    """Returns a function that makes the config of a tiny BEVFormer with overrides."""
    return tiny_bevformer_cfg


@pytest.fixture
def samples():
    """Returns a function that makes a batch: one training sample per seed, the first without history."""
    return make_frames


@pytest.fixture
def teacher_files(tmp_path, tiny_cfg):
    """Writes a teacher's YAML and checkpoint; returns a function that makes a Distiller config."""
    torch.manual_seed(0)
    teacher = build(tiny_cfg())
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if ".attention_weights." in name:  # zero at the start, which makes all attention uniform
                parameter.normal_()
    save_file({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "teacher.yaml").write_text(tiny_cfg().dump())

    def make(*options, mode="freeze"):
        cfg = tiny_cfg()
        cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Distiller"])
        cfg.DISTILL.TEACHER.CONFIG = str(tmp_path / "teacher.yaml")
        cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
        cfg.DISTILL.METHODS = METHODS
        cfg.DISTILL.INHERIT.MODE = mode
        cfg.merge_from_list(options)
        resolve_teacher(cfg)
        return cfg

    return make
