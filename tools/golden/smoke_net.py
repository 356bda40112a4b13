"""The whole SMOKE with DLA-34: every published key imported, and the maps of one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden.recipe import listed_shapes, noise, recipe_state
from golden.report import Differences, Row
from torch import Tensor

import bevkd2.modeling  # noqa: F401  (registers)
from bevkd2.checkpoint.import_smoke import from_published
from bevkd2.config import load_config
from bevkd2.d2 import META_ARCH_REGISTRY

CONFIG = Path(__file__).parents[2] / "configs" / "smoke" / "smoke_dla34_kitti.yaml"
KEYS = "smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.txt"
TAG = "g1"
# Relative, with a floor. The run is in float64; the two finest maps of the body are stored in float32.
TOLERANCES = {"recipe": 1e-9, "body": 1e-6, "neck": 1e-9, "heat map": 1e-9, "box codes": 1e-9}
_FLOOR = 1e-9


def compare(directory: Path) -> list[Row]:
    """Rows of full_nets/smoke_dla34.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.

    Raises:
        KeyError: a published key without a place.
        ValueError: a key of ours that the published layout does not fill.
    """
    with np.load(directory / "full_nets" / "smoke_dla34.npz", allow_pickle=False) as arrays:
        golden = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    published = recipe_state(TAG, listed_shapes(directory / "state_dicts" / KEYS))
    differences = Differences(TOLERANCES)
    for key, total in golden.items():
        if key.startswith("check_weight_sum/"):
            differences.add_close("recipe", published[key.split("/", 1)[1]].sum(), total, _FLOOR)
    images = golden["input"]
    differences.add("recipe", noise(TAG, "input", images.shape), images)
    for name, level, ours in _maps(published, images):
        quantity = {"backbone": "body", "neck": "neck", "cls": "heat map", "bbox": "box codes"}[name]
        prefix = f"head/{name}" if name in ("cls", "bbox") else name
        differences.add_close(quantity, ours, golden[f"{prefix}/{level}"], _FLOOR)
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
        body = model.image_backbone(images)
        (level,) = model.neck(body)
        outputs = model.head(level)
    return [
        *(("backbone", index, feature) for index, feature in enumerate(body.values())),
        ("neck", 0, level),
        ("cls", 0, outputs.logits.sigmoid()),
        ("bbox", 0, outputs.codes),
    ]
