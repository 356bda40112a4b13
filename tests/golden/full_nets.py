"""Whole PGD detectors with weights of a recipe: backbone, pyramid and head in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bevkd2.checkpoint.import_fcos3d import from_published
from bevkd2.config import load_config
from bevkd2.modeling import FCOS3D, PGD
from tests.golden.pgd_case import load_arrays
from tests.golden.pgd_heads import published_maps
from tests.golden.recipe import listed_shapes, recipe_state, recorded_tag
from tests.golden.report import Differences, Row, uncompared

_CONFIGS = Path(__file__).parents[2] / "configs" / "pgd"
_BACKBONE = ["res2", "res3", "res4", "res5"]
# Beginning of the recording's name, config, listing of the published state dict.
_NETS = {
    "pgd_kitti": ("pgd_r101_kitti.yaml", "pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d.txt"),
    "pgd_nus": ("pgd_r101_nuscenes.yaml", "pgd_r101-caffe_fpn_head-gn_16xb2-2x_nus-mono3d.txt"),
}
_DOUBLE = 1e-9
# Large maps are stored in float32, and the published head rounds boxes to it.
_SINGLE = 1e-6
_TOLERANCES = {
    "sums of weights": _DOUBLE,
    "backbone": _DOUBLE,
    "backbone, stored in float32": _SINGLE,
    "pyramid": _DOUBLE,
    "pyramid, stored in float32": _SINGLE,
    "head but for boxes": _DOUBLE,
    "boxes": _SINGLE,
}


def compare(directory: Path) -> list[Row]:
    """Rows of full_nets/pgd_*.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity and detector.

    Raises:
        FileNotFoundError: a recording or a listing is missing.
    """
    rows = []
    for name, (config, listing) in _NETS.items():
        shapes = listed_shapes(directory / "state_dicts" / listing)
        for path in recordings(directory, name):
            golden = load_arrays(path)
            tag = recorded_tag(path, golden["input"])
            found = _compare(_CONFIGS / config, recipe_state(tag, shapes), golden, source=listing)
            rows += [dataclasses.replace(row, quantity=f"{path.stem}: {row.quantity}") for row in found]
    return rows


def recordings(directory: Path, name: str) -> list[Path]:
    """The recordings of a detector.

    Args:
        directory: golden/mono.
        name: how their names begin.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted((directory / "full_nets").glob(f"{name}*.npz"))
    if not found:
        raise FileNotFoundError(f"{directory / 'full_nets'} has no recording {name}*.npz")
    return found


@torch.no_grad()
def _compare(
    config: Path, published: Mapping[str, Tensor], golden: Mapping[str, Tensor], source: str
) -> list[Row]:
    # Which maps are stored in float32 is a matter of their size: that each is compared is seen to below.
    stored = {name for name in _TOLERANCES if name.startswith(("backbone", "pyramid"))}
    differences = Differences(_TOLERANCES, required=_TOLERANCES.keys() - stored)
    compared = {key for key in golden if key.startswith("check_weight_sum/")} | {"input"}
    for key, total in golden.items():
        if key.startswith("check_weight_sum/"):
            ours = published[key.removeprefix("check_weight_sum/")].sum()
            differences.add_close("sums of weights", ours, total, atol=_DOUBLE)
    model = _build(config, published, source)
    features = model.image_backbone(golden["input"])
    levels = model.neck(features)
    for part, maps in (("backbone", [features[name] for name in _BACKBONE]), ("pyramid", levels)):
        prefix = {"backbone": "backbone", "pyramid": "neck"}[part]
        for index, ours in enumerate(maps):
            recorded = golden[f"{prefix}/{index}"]
            compared.add(f"{prefix}/{index}")
            rounded = "" if recorded.dtype == torch.float64 else ", stored in float32"
            differences.add_close(part + rounded, ours, recorded, atol=_TOLERANCES[part + rounded])
    for name, maps in published_maps(model.head(levels), model.neck.strides, training=False).items():
        part = "boxes" if name == "bbox" else "head but for boxes"
        for level, ours in enumerate(maps):
            recorded = golden[f"head/{name}/{level}"]
            compared.add(f"head/{name}/{level}")
            differences.add_close(part, ours, recorded, atol=_TOLERANCES[part])
    uncompared(golden, compared)
    return differences.rows()


def _build(config: Path, published: Mapping[str, Tensor], source: str) -> FCOS3D:
    cfg = load_config(config, ["MODEL.RESNETS.OUT_FEATURES", _BACKBONE])
    model = PGD(cfg).double().eval()
    model.load_state_dict(from_published(published).check(model.state_dict(), source).state)
    return model
