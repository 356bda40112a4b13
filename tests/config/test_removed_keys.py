"""Keys and values of earlier versions are errors that name what replaces them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.config import get_cfg
from bevkd2.modeling.backbones.layers import make_norm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {RESNETS: {NORM: FrozenBN}}", r"RESNETS\.NORM.*MODEL\.BACKBONE\.NORM.*FrozenStatsBN"),
        ("MODEL: {BEVFORMER: {NUM_CAMERAS: 6}}", r"NUM_CAMERAS.*the number of INPUT\.CAMERAS"),
        ("MODEL: {BEVFORMER: {EMBED_DIM: 256}}", r"EMBED_DIM.*it is MODEL\.FPN\.OUT_CHANNELS"),
        (
            "MODEL: {BEVFORMER: {LOSS: {CENTER_WEIGHT: 3.0}}}",
            r"CENTER_WEIGHT.*first two of .*CODE_WEIGHTS",
        ),
        ("MODEL: {GRID_MASK: {MODE: 1}}", r"GRID_MASK\.MODE.*the squares between the bars"),
        ("MODEL: {FCOS3D: {BRANCHES: {SIZE: [64]}}}", r"FCOS3D\.BRANCHES.*MODEL\.FCOS3D\.BRANCH_CHANNELS"),
        ("MODEL: {PGD: {BRANCHES: {BOXES2D: [0]}}}", r"PGD\.BRANCHES.*MODEL\.FCOS3D\.BRANCH_CHANNELS"),
        ("MODEL: {FCOS3D: {TEST: {NMS_INCLUSIVE: True}}}", r"NMS_INCLUSIVE.*above NMS_THRESHOLD"),
        ("MODEL: {BEVFORMER: {NUM_CLASSES: 10}}", r"NUM_CLASSES.*the number of classes of DATASETS\.FORMAT"),
    ],
)
def test_a_removed_key_names_its_successor(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(text + "\n")
    with pytest.raises(KeyError, match=message):
        get_cfg().merge_from_file(str(path))


def test_a_removed_key_on_the_command_line_names_its_successor() -> None:
    with pytest.raises(KeyError, match=r"MODEL\.BACKBONE\.NORM"):
        get_cfg().merge_from_list(["MODEL.RESNETS.NORM", "BN"])


def test_a_removed_value_names_its_successor() -> None:
    with pytest.raises(ValueError, match=r"'FixedBN' is unknown.*it is FrozenBN"):
        make_norm("FixedBN", 8)


def test_detectors_keys_are_there_without_importing_them() -> None:
    model = get_cfg().MODEL
    for node in ("BEVFORMER", "GRID_MASK", "FCOS3D", "PGD", "SMOKE", "DLA_UP", "FPN", "TIMM", "TORCHVISION"):
        assert node in model
