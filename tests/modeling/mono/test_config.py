"""What monocular detectors read from a config alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.modeling.mono.detector import check_prior_classes
from tests.modeling.mono.pgd_model import small_cfg

CONFIGS = Path(__file__).parents[3] / "configs"
MOVED = ["Car", "Pedestrian", "Cyclist"]
OTHERS = ["Car", "Van", "Pedestrian"]


def pgd() -> CfgNode:
    return small_cfg()


def smoke() -> CfgNode:
    return load_config(CONFIGS / "smoke" / "smoke_dla34_kitti.yaml", ["MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize("classes", [MOVED, OTHERS])
@pytest.mark.parametrize("make", [pgd, smoke])
def test_other_classes_or_another_order_need_priors_of_their_own(make, classes):
    cfg = make()
    cfg.defrost()
    cfg.DATASETS.CLASSES = classes
    node = "SMOKE" if make is smoke else "FCOS3D"
    message = (
        rf"MODEL\.{node}: the rows of the priors are of Pedestrian, Cyclist, Car, but DATASETS\.CLASSES is "
        rf"{', '.join(classes)}; .*set MODEL\.{node}\.PRIOR_CLASSES"
    )
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_rows_that_are_said_to_be_in_that_order_are_taken():
    cfg = pgd()
    cfg.DATASETS.CLASSES = cfg.MODEL.FCOS3D.PRIOR_CLASSES = MOVED
    build_model(cfg)
    cfg.DATASETS.CLASSES = ["Cyclist", "Pedestrian", "Car"]
    with pytest.raises(ValueError, match="rows of the priors are of Car, Pedestrian, Cyclist"):
        build_model(cfg)


@pytest.mark.parametrize("classes", [[], ["Car"], ["Car", "Van", "Pedestrian", "Cyclist"]])
def test_more_or_fewer_classes_have_rows_in_their_own_order(classes: list[str]):
    cfg = pgd()
    cfg.DATASETS.CLASSES = classes
    check_prior_classes(cfg, "FCOS3D")


def test_single_priors_are_independent_of_the_class_order():
    cfg = pgd()
    cfg.DATASETS.CLASSES = MOVED
    cfg.MODEL.FCOS3D.SIZE_PRIORS = []
    build_model(cfg)
