"""The whole SMOKE with DLA-34: every published key imported, and the maps of one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import bevkd2.modeling  # noqa: F401  (registers)
from bevkd2.checkpoint.import_smoke import from_published
from bevkd2.config import load_config
from bevkd2.d2 import META_ARCH_REGISTRY
from tests.golden.full_nets import recordings
from tests.golden.pgd_case import load_arrays
from tests.golden.recipe import listed_shapes, recipe_state, recorded_tag
from tests.golden.report import Differences, Row, uncompared

CONFIG = Path(__file__).parents[2] / "configs" / "smoke" / "smoke_dla34_kitti.yaml"
KEYS = "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.txt"
# Relative, with a floor of the same size. The run is in float64; large maps are stored in float32.
TOLERANCES = {
    "sums of weights": 1e-9,
    "backbone": 1e-9,
    "backbone, stored in float32": 1e-6,
    "neck": 1e-9,
    "neck, stored in float32": 1e-6,
    "heat map": 1e-9,
    "box codes": 1e-9,
}


def compare(directory: Path) -> list[Row]:
    """Rows of full_nets/smoke*.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity and recording.

    Raises:
        FileNotFoundError: there is no recording.
        KeyError: a published key without a place.
        ValueError: a key of ours that the published layout does not fill.
    """
    shapes = listed_shapes(directory / "state_dicts" / KEYS)
    rows = []
    for path in recordings(directory, "smoke"):
        golden = load_arrays(path)
        published = recipe_state(recorded_tag(path, golden["input"]), shapes)
        found = _compare(published, golden)
        rows += [dataclasses.replace(row, quantity=f"{path.stem}: {row.quantity}") for row in found]
    return rows


def _compare(published: dict[str, Tensor], golden: Mapping[str, Tensor]) -> list[Row]:
    stored = {name for name in TOLERANCES if name.startswith(("backbone", "neck"))}
    differences = Differences(TOLERANCES, required=TOLERANCES.keys() - stored)
    compared = {key for key in golden if key.startswith("check_weight_sum/")}
    for key in compared:
        total = published[key.split("/", 1)[1]].sum()
        tolerance = TOLERANCES["sums of weights"]
        differences.add_close("sums of weights", total, golden[key], tolerance)
    compared.add("input")
    for name, level, ours in _maps(published, golden["input"]):
        key = f"head/{name}/{level}" if name in ("cls", "bbox") else f"{name}/{level}"
        quantity = {"backbone": "backbone", "neck": "neck", "cls": "heat map", "bbox": "box codes"}[name]
        if golden[key].dtype == torch.float32:
            quantity += ", stored in float32"
        differences.add_close(quantity, ours, golden[key], TOLERANCES[quantity])
        compared.add(key)
    uncompared(golden, compared)
    return differences.rows()


def _maps(published: dict[str, Tensor], images: Tensor) -> list[tuple[str, int, Tensor]]:
    """Name, level and values of every map of our model with the published weights."""
    cfg = load_config(CONFIG)
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_INDICES = [0, 1, 2, 3, 4, 5]  # the two finest are recorded too
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).double().eval()
    report = from_published(published).check(model.state_dict(), KEYS)
    model.load_state_dict(report.state)
    with torch.no_grad():
        backbone = model.image_backbone(images)
        (level,) = model.neck(backbone)
        outputs = model.head(level)
    return [
        *(("backbone", index, feature) for index, feature in enumerate(backbone.values())),
        ("neck", 0, level),
        ("cls", 0, outputs.logits.sigmoid()),
        ("bbox", 0, outputs.codes),
    ]
