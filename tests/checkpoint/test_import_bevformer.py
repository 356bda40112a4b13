"""Every published key has one place here, and the way back leads to the same keys."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevkd2.checkpoint import StateDictMismatchError
from bevkd2.checkpoint.import_bevformer import from_published, to_published
from bevkd2.config import get_cfg
from bevkd2.modeling import BEVFormer

MODELS = ("tiny", "small", "base")


def make_model(name: str, device: str = "meta") -> BEVFormer:
    cfg = get_cfg()
    resnets, fpn, bev = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.BEVFORMER
    bev.BEV_SHAPE = {"tiny": [50, 50], "small": [150, 150], "base": [200, 200]}[name]
    if name != "tiny":
        resnets.DEPTH, resnets.STRIDE_IN_1X1 = 101, True
        resnets.DEFORM_ON_PER_STAGE = [False, False, True, True]
    if name == "base":
        resnets.OUT_FEATURES = fpn.IN_FEATURES = ["res3", "res4", "res5"]
        fpn.NUM_OUTS, bev.ENCODER_LAYERS = 4, 6
    with torch.device(device):
        return BEVFormer(cfg)


def small_model() -> BEVFormer:
    cfg = get_cfg()
    resnets, bev = cfg.MODEL.RESNETS, cfg.MODEL.BEVFORMER
    resnets.DEPTH, resnets.RES2_OUT_CHANNELS, resnets.STEM_OUT_CHANNELS = 50, 16, 8
    resnets.DEFORM_ON_PER_STAGE = [False, False, False, True]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.NUM_OUTS = "BN", 2
    bev.NUM_HEADS, bev.FFN_DIM, bev.BEV_SHAPE, bev.NUM_QUERIES = 2, 32, [4, 5], 6
    return BEVFormer(cfg)


def published_keys(shared_dir: Path, name: str) -> dict[str, Tensor]:
    """Names and shapes of the published state dict, recorded as lines ``key<TAB>shape<TAB>...``."""
    path = shared_dir / "facts" / "state_dicts" / f"state_dict_{name}.txt"
    if not path.is_file():
        pytest.skip(f"{path} is missing: the list of the published {name} model's keys")
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape, *_ in lines}


@pytest.mark.parametrize("name", MODELS)
def test_every_published_key_is_mapped_or_dropped(shared_dir: Path, name: str):
    published = published_keys(shared_dir, name)
    report = from_published(published).check(make_model(name).state_dict(), name)
    assert set(report.mapped) | set(report.dropped) == set(published)
    assert list(report.dropped) == ["pts_bbox_head.code_weights"]
    assert set(to_published(report.state, torch.ones(10))) == set(published)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 33.52), ("small", 59.46), ("base", 69.03)])
def test_parameter_counts_are_the_published_ones(name: str, millions: float):
    # The released models' sizes, derived from the published modules.
    count = sum(p.numel() for p in make_model(name).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_round_trip_keeps_every_tensor():
    state = small_model().state_dict()
    published = to_published(state)
    assert len(published) == len(state)
    assert all(key.split(".")[0] in ("img_backbone", "img_neck", "pts_bbox_head") for key in published)
    back = from_published(published).check(state, "round trip").state
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_row_and_column_tables_are_not_swapped():
    state = small_model().state_dict()
    published = to_published(state)
    assert published["pts_bbox_head.positional_encoding.row_embed.weight"].shape == (4, 8)
    assert published["pts_bbox_head.positional_encoding.col_embed.weight"].shape == (5, 8)


def test_prefix_and_old_offset_names_are_understood():
    state = small_model().state_dict()
    old = {
        "module." + key.replace(".conv2.conv_offset.", ".conv2_offset."): value
        for key, value in to_published(state).items()
    }
    assert any(".conv2_offset." in key for key in old)
    assert set(from_published(old).check(state, "old file").state) == set(state)


def test_two_keys_for_one_tensor_are_an_error():
    published = to_published(small_model().state_dict())
    key = next(iter(published))
    with pytest.raises(ValueError, match=rf"{key} and module\.{key} are both"):
        from_published({**published, f"module.{key}": published[key]})


def test_unknown_missing_and_misshapen_keys_are_named():
    state = small_model().state_dict()
    published = to_published(state)
    with pytest.raises(KeyError, match=r"pts_bbox_head\.surprise"):
        from_published({**published, "pts_bbox_head.surprise": torch.zeros(1)})
    with pytest.raises(KeyError, match=r"bev_heatmap_head\.0\.weight"):
        to_published({**state, "bev_heatmap_head.0.weight": torch.zeros(1)})
    lacking = {k: v for k, v in published.items() if not k.endswith("bev_embedding.weight")}
    with pytest.raises(StateDictMismatchError, match="missing from it: bev_queries"):
        from_published(lacking).check(state, "file")
    wrong = {**published, "pts_bbox_head.bev_embedding.weight": torch.zeros(9, 16)}
    with pytest.raises(StateDictMismatchError, match=r"bev_queries \(9, 16\) instead of \(20, 16\)"):
        from_published(wrong).check(state, "file")
    extra = {**published, "img_backbone.layer5.weight": torch.zeros(1)}
    with pytest.raises(StateDictMismatchError, match=r"unknown to the model: img_backbone\.layer5"):
        from_published(extra).check(state, "file")
