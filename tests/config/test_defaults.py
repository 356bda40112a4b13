"""The default tree."""

from __future__ import annotations

import fvcore.common.config as fvcore_config

from bevkd2.config import add_bevkd2_config, get_cfg


def test_configs_are_independent() -> None:
    first = get_cfg()
    first.SOLVER.AMP.ENABLED = True
    first.MODEL.ALLOW_MISSING.append("x")
    assert not get_cfg().SOLVER.AMP.ENABLED and get_cfg().MODEL.ALLOW_MISSING == []


def test_merging_into_another_config_keeps_its_keys() -> None:
    cfg = fvcore_config.CfgNode({"MODEL": {"KEYPOINT_ON": True, "DEVICE": "cuda"}, "VIS_PERIOD": 7})
    add_bevkd2_config(cfg)
    assert cfg.MODEL.KEYPOINT_ON and cfg.VIS_PERIOD == 7
    assert cfg.MODEL.DEVICE == "auto" and cfg.MODEL.BEVFORMER.NUM_QUERIES == 900
