"""Recorded runs of the published BEVFormer: read, rebuilt with this package, and run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevkd2.checkpoint.import_bevformer import from_published
from bevkd2.config import CfgNode, class_names, get_cfg
from bevkd2.modeling import BEVFormer
from bevkd2.modeling.bev.decoder import DecoderOutput
from bevkd2.modeling.bev.encoder import EncoderOutput
from bevkd2.modeling.bev.geometry import VisiblePairs
from bevkd2.modeling.bev.inputs import Frames

PARTS = ("weights", "in", "out", "attn")


@dataclasses.dataclass
class Case:
    """One recorded run."""

    name: str
    meta: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    out: dict[str, Tensor]
    attn: dict[str, Tensor]


def load_case(meta_path: Path) -> Case:
    """Reads a case.

    Raises:
        FileNotFoundError: a part of it is missing.
    """
    name = meta_path.name.removesuffix("_meta.json")
    parts = {}
    for part in PARTS:
        path = meta_path.with_name(f"{name}_{part}.npz")
        if not path.is_file():
            raise FileNotFoundError(f"case {name}: {path} is missing")
        with np.load(path, allow_pickle=False) as arrays:
            parts[part] = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    meta = json.loads(meta_path.read_text(encoding="utf-8"))
    return Case(name, meta, parts["weights"], parts["in"], parts["out"], parts["attn"])


def config_of(case: Case) -> CfgNode:
    """The config of the recorded head, behind a small backbone that is not run."""
    meta, size, flags = case.meta, case.meta["config"], case.meta["flags"]
    if not (flags["use_cams_embeds"] and flags["with_box_refine"] and not flags["as_two_stage"]):
        raise ValueError(
            f"case {case.name}: flags {flags}: this BEVFormer has camera embeddings and refinement"
        )
    cfg = get_cfg()
    if meta["num_classes"] != len(class_names(cfg)):
        raise ValueError(f"case {case.name}: {meta['num_classes']} classes, expected nuScenes' ten")
    resnets, fpn, bev = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.BEVFORMER
    resnets.DEPTH, resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 10, 8, 8
    fpn.NUM_OUTS, fpn.OUT_CHANNELS = len(case.inputs["in/spatial_shapes"]), meta["embed_dims"]
    cfg.INPUT.CAMERAS = [f"camera {n}" for n in range(meta["sca"]["num_cams"])]
    bev.NUM_HEADS, bev.FFN_DIM = meta["num_heads"], size["ffn"]
    bev.BEV_SHAPE, bev.NUM_QUERIES = [size["bev_h"], size["bev_w"]], size["nq"]
    cfg.INPUT.POINT_RANGE = [float(x) for x in size["pc"]]
    bev.ENCODER_LAYERS, bev.DECODER_LAYERS = size["enc"], size["dec"]
    bev.NUM_FEATURE_LEVELS = meta["num_feature_levels_param"]
    bev.PILLAR_POINTS, bev.SPATIAL_POINTS = size["pillar"], meta["sca"]["num_points"]
    bev.TEMPORAL_POINTS = meta["tsa"]["num_points"]
    bev.DECODER_POINTS = meta["decoder_cross_attn"]["num_points"]
    bev.USE_CAN_BUS, bev.USE_SHIFT = flags["use_can_bus"], flags["use_shift"]
    bev.ROTATE_PREV_BEV = flags["rotate_prev_bev"]
    bev.LEGACY.ROTATE_CENTER = [float(x) for x in meta["rotate_center_xy"]]
    bev.LEGACY.PADDING_VISIBLE = True  # the recorded image size is the padded one
    bev.LOSS.CODE_WEIGHTS = [float(x) for x in meta["code_weights"]]
    return cfg


def build(case: Case) -> BEVFormer:
    """The model with the case's weights, imported by the package's importer."""
    model = BEVFormer(config_of(case)).eval()
    report = from_published(case.weights)
    report.check(model.state_dict(), case.name, allow_missing=("image_backbone.", "neck."))
    model.load_state_dict(report.state, strict=False)
    return model


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Records the outputs of every module, and the inputs of the decoder's norms, by module name."""
    seen: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(_recorder(seen, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _recorder(seen: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output
        seen[f"{name}.input"] = args[0] if args else None

    return hook


@dataclasses.dataclass
class FrameRun:
    """What the model made of one frame."""

    frames: Frames
    motion: Tensor
    encoded: EncoderOutput
    pairs: VisiblePairs
    decoded: DecoderOutput
    seen: dict[str, Any]


def run_frame(model: BEVFormer, case: Case, index: int, previous: Tensor | None) -> FrameRun:
    """Runs frame ``index`` of a case from the recorded features."""
    prefix = f"in/f{index}/"
    levels = len(case.inputs["in/spatial_shapes"])
    features = [case.inputs[f"{prefix}feat{level}"] for level in range(levels)]
    batch, cameras = features[0].shape[:2]
    size = case.inputs["in/img_shape"]
    frames = Frames(
        images=torch.zeros(1).expand(batch, cameras, 3, int(size[0]), int(size[1])),
        image_sizes=size.float().expand(batch, cameras, 2),
        lidar2img=case.inputs[f"{prefix}lidar2img"],
        can_bus=case.inputs[f"{prefix}can_bus"].double(),
        scene_tokens=["scene"] * batch,
        timestamps=[index] * batch,
        rows=list(range(batch)),
    )
    wants = frozenset({"temporal_attention", "spatial_attention"})
    with recording(model) as seen:
        encoded, pairs = model.encode_bev(
            features, frames, frames.can_bus, previous, [previous is not None] * batch, wants
        )
        decoded = model.decoder(model.object_queries, encoded.bev_embed, model.bev_shape)
    return FrameRun(frames, frames.can_bus, encoded, pairs, decoded, seen)
