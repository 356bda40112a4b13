"""Every published key of FCOS3D and PGD has one place here, and the way back leads to the same keys."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevkd2.checkpoint import StateDictMismatchError
from bevkd2.checkpoint.import_fcos3d import from_published, to_published
from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.modeling import FCOS3D
from tests.modeling.mono.pgd_model import small_cfg

CONFIGS = Path(__file__).parents[2] / "configs" / "pgd"
# Config, listing of the published state dict. Fine-tuning changes no key.
LISTINGS = [
    ("pgd_r101_kitti", "pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d"),
    ("pgd_r101_nuscenes", "pgd_r101-caffe_fpn_head-gn_16xb2-2x_nus-mono3d"),
    ("pgd_r101_nuscenes", "pgd_r101-caffe_fpn_head-gn_16xb2-2x_nus-mono3d_finetune"),
    ("fcos3d_r101_nuscenes", "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"),
]
# Parameters of the published models, and those of them that learn.
COUNTS = {
    "pgd_r101_kitti": (54838709, 54723957),
    "pgd_r101_nuscenes": (56133746, 55806002),
    "fcos3d_r101_nuscenes": (54949986, 54622242),
}


def published_model(name: str) -> FCOS3D:
    cfg = load_config(CONFIGS / f"{name}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def small_model(architecture: str = "PGD", nuscenes: bool = False) -> FCOS3D:
    return build_model(small_cfg(architecture, nuscenes=nuscenes))


def published_keys(shared_dir: Path, name: str) -> dict[str, Tensor]:
    """Names and shapes of the published state dict, recorded as lines ``key<TAB>shape<TAB>...``."""
    path = shared_dir / "golden" / "mono" / "state_dicts" / f"{name}.txt"
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape, *_ in lines}


@pytest.mark.parametrize(("config", "listing"), LISTINGS)
def test_published_keys_and_ours_are_the_same_both_ways(shared_dir: Path, config: str, listing: str):
    published, state = published_keys(shared_dir, listing), published_model(config).state_dict()
    report = from_published(published).check(state, listing)
    assert set(report.mapped) == set(published)
    assert set(report.state) == set(state)
    assert not report.dropped
    back = to_published(state)
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in published.items()}


@pytest.mark.parametrize("config", COUNTS)
def test_parameter_counts_are_the_published_ones(config: str):
    parameters = list(published_model(config).parameters())
    learning = sum(p.numel() for p in parameters if p.requires_grad)
    assert (sum(p.numel() for p in parameters), learning) == COUNTS[config]


@pytest.mark.parametrize(("architecture", "nuscenes"), [("PGD", False), ("PGD", True), ("FCOS3D", True)])
def test_round_trip_keeps_every_tensor(architecture: str, nuscenes: bool):
    cfg = small_cfg(architecture, nuscenes=nuscenes)
    # The published layouts number keypoints and velocity alike.
    cfg.MODEL.PGD.KEYPOINTS = not nuscenes
    state = build_model(cfg).state_dict()
    published = to_published(state)
    assert len(published) == len(state)
    assert all(key.split(".")[0] in ("backbone", "neck", "bbox_head") for key in published)
    back = from_published({f"module.{key}": value for key, value in published.items()})
    assert set(back.check(state, "round trip").state) == set(state)
    assert all(torch.equal(back.state[key], state[key]) for key in state)


def test_numbered_factors_go_to_what_they_scale():
    state = small_model().state_dict()
    for name, value in {"keypoints": 3.0, "boxes2d": 4.0}.items():
        state[f"head.scales.1.{name}"].fill_(value)
    published = to_published(state)
    assert [float(published[f"bbox_head.scales.1.{i}.scale"]) for i in range(5)] == [1, 1, 1, 3, 4]


def test_unknown_missing_and_misshapen_keys_are_named():
    state = small_model().state_dict()
    published = to_published(state)
    with pytest.raises(KeyError, match=r"bbox_head\.surprise"):
        from_published({**published, "bbox_head.surprise": torch.zeros(1)})
    with pytest.raises(KeyError, match=r"adapter\.weight"):
        to_published({**state, "adapter.weight": torch.zeros(1)})
    lacking = {k: v for k, v in published.items() if k != "bbox_head.fuse_lambda"}
    with pytest.raises(StateDictMismatchError, match=r"missing from it: head\.fuse_lambda"):
        from_published(lacking).check(state, "file")
    wrong = {**published, "bbox_head.conv_cls.weight": torch.zeros(10, 16, 1, 1)}
    with pytest.raises(
        StateDictMismatchError, match=r"out\.weight \(10, 16, 1, 1\) instead of \(3, 16, 1, 1\)"
    ):
        from_published(wrong).check(state, "file")


def test_another_detectors_weights_do_not_fit():
    published = to_published(small_model().state_dict())
    with pytest.raises(StateDictMismatchError, match="unknown to the model"):
        from_published(published).check(small_model("FCOS3D").state_dict(), "a PGD")
