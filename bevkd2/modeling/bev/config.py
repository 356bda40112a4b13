"""The only place that reads MODEL.BEVFORMER."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bevkd2.config import CfgNode
from bevkd2.d2 import build_backbone
from bevkd2.modeling.bev.criterion import SetCriterion
from bevkd2.modeling.bev.decoder import ObjectDecoder
from bevkd2.modeling.bev.encoder import BEVEncoder
from bevkd2.modeling.bev.geometry import BEVGeometry, PublishedFaults
from bevkd2.modeling.bev.grid_mask import GridMask
from bevkd2.modeling.bev.matcher import HungarianMatcher
from bevkd2.modeling.necks.fpn import FPN


def bevformer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Builds the parts of a BEVFormer.

    Args:
        cfg: the whole config.

    Returns:
        The keyword arguments of its constructor.

    Raises:
        ValueError: keys that contradict each other.
    """
    _check(cfg)
    model, bev = cfg.MODEL, cfg.MODEL.BEVFORMER
    backbone = build_backbone(cfg)
    mask = model.GRID_MASK
    return {
        "image_backbone": backbone,
        "neck": FPN(
            backbone.output_shape(),
            in_features=model.FPN.IN_FEATURES,
            out_channels=model.FPN.OUT_CHANNELS,
            num_outs=model.FPN.NUM_OUTS,
            norm=model.FPN.NORM,
        ),
        "encoder": _encoder(cfg),
        "decoder": _decoder(cfg),
        "criterion": _criterion(bev),
        "geometry": _geometry(cfg),
        "grid_mask": GridMask(prob=mask.PROB, ratio=mask.RATIO, mode=mask.MODE) if mask.ENABLED else None,
        "embed_dim": bev.EMBED_DIM,
        "num_classes": bev.NUM_CLASSES,
        "num_cameras": bev.NUM_CAMERAS,
        "num_queries": bev.NUM_QUERIES,
        "query_init": bev.QUERY_INIT,
        "use_can_bus": bev.USE_CAN_BUS,
        "pixel_mean": model.PIXEL_MEAN,
        "pixel_std": model.PIXEL_STD,
        "pixel_format": model.PIXEL_FORMAT,
        "size_divisibility": model.SIZE_DIVISIBILITY,
        "max_detections": bev.MAX_DETECTIONS,
        "score_threshold": bev.SCORE_THRESHOLD,
        "post_center_range": bev.POST_CENTER_RANGE,
        "bev_heatmap_weight": bev.AUX.BEV_HEATMAP_WEIGHT,
        "image_heatmap_weight": bev.AUX.IMAGE_HEATMAP_WEIGHT,
    }


def _encoder(cfg: CfgNode) -> BEVEncoder:
    bev = cfg.MODEL.BEVFORMER
    return BEVEncoder(
        embed_dim=bev.EMBED_DIM,
        num_layers=bev.ENCODER_LAYERS,
        num_heads=bev.NUM_HEADS,
        ffn_dim=bev.FFN_DIM,
        dropout=bev.DROPOUT,
        bev_shape=tuple(bev.BEV_SHAPE),
        num_cameras=bev.NUM_CAMERAS,
        num_levels=cfg.MODEL.FPN.NUM_OUTS,
        num_level_embeddings=bev.NUM_FEATURE_LEVELS,
        temporal_points=bev.TEMPORAL_POINTS,
        spatial_points=bev.SPATIAL_POINTS,
    )


def _decoder(cfg: CfgNode) -> ObjectDecoder:
    bev = cfg.MODEL.BEVFORMER
    return ObjectDecoder(
        embed_dim=bev.EMBED_DIM,
        num_layers=bev.DECODER_LAYERS,
        num_heads=bev.NUM_HEADS,
        num_points=bev.DECODER_POINTS,
        ffn_dim=bev.FFN_DIM,
        dropout=bev.DROPOUT,
        num_classes=bev.NUM_CLASSES,
        pc_range=cfg.INPUT.POINT_RANGE,
    )


def _criterion(bev: CfgNode) -> SetCriterion:
    loss = bev.LOSS
    weights = {
        "class_weight": loss.CLS_WEIGHT,
        "box_weight": loss.BOX_WEIGHT,
        "focal_alpha": loss.FOCAL_ALPHA,
        "focal_gamma": loss.FOCAL_GAMMA,
    }
    codes = [weight * (loss.CENTER_WEIGHT if i < 2 else 1.0) for i, weight in enumerate(loss.CODE_WEIGHTS)]
    return SetCriterion(HungarianMatcher(**weights), code_weights=codes, **weights)


def _geometry(cfg: CfgNode) -> BEVGeometry:
    bev = cfg.MODEL.BEVFORMER
    legacy = bev.LEGACY
    return BEVGeometry(
        bev_shape=tuple(bev.BEV_SHAPE),
        pc_range=list(cfg.INPUT.POINT_RANGE),
        num_pillar_points=bev.PILLAR_POINTS,
        use_shift=bev.USE_SHIFT,
        rotate_previous=bev.ROTATE_PREV_BEV,
        faults=PublishedFaults(
            aliased_shift=legacy.ALIASED_SHIFT,
            rotate_center=tuple(legacy.ROTATE_CENTER) or None,
            padding_visible=legacy.PADDING_VISIBLE,
            unwrapped_yaw=legacy.UNWRAPPED_YAW,
        ),
    )


def _check(cfg: CfgNode) -> None:
    bev, fpn = cfg.MODEL.BEVFORMER, cfg.MODEL.FPN
    rules = [
        (
            bev.EMBED_DIM % (2 * bev.NUM_HEADS) == 0,
            f"EMBED_DIM {bev.EMBED_DIM} must be a multiple of 2 * NUM_HEADS ({2 * bev.NUM_HEADS})",
        ),
        (
            bev.SPATIAL_POINTS % bev.PILLAR_POINTS == 0,
            f"SPATIAL_POINTS {bev.SPATIAL_POINTS} must be a multiple of PILLAR_POINTS {bev.PILLAR_POINTS}",
        ),
        (
            bev.NUM_FEATURE_LEVELS >= fpn.NUM_OUTS,
            f"NUM_FEATURE_LEVELS {bev.NUM_FEATURE_LEVELS} must be at least MODEL.FPN.NUM_OUTS {fpn.NUM_OUTS}",
        ),
        (
            bev.EMBED_DIM == fpn.OUT_CHANNELS,
            f"EMBED_DIM {bev.EMBED_DIM} must equal MODEL.FPN.OUT_CHANNELS {fpn.OUT_CHANNELS}",
        ),
        (
            bev.QUERY_INIT in ("random", "grid"),
            f"QUERY_INIT is {bev.QUERY_INIT!r}, expected 'random' or 'grid'",
        ),
        (
            cfg.MODEL.PIXEL_FORMAT in ("RGB", "BGR"),
            f"MODEL.PIXEL_FORMAT is {cfg.MODEL.PIXEL_FORMAT!r}, expected 'RGB' or 'BGR'",
        ),
        (
            len(bev.LEGACY.ROTATE_CENTER) in (0, 2),
            f"LEGACY.ROTATE_CENTER is {list(bev.LEGACY.ROTATE_CENTER)}, expected [] or [x, y] in cells",
        ),
        (
            len(bev.BEV_SHAPE) == 2 and min(bev.BEV_SHAPE) >= 1,
            f"BEV_SHAPE is {list(bev.BEV_SHAPE)}, expected [rows, columns]",
        ),
        (
            _is_range(cfg.INPUT.POINT_RANGE) and _is_range(bev.POST_CENTER_RANGE),
            f"INPUT.POINT_RANGE is {list(cfg.INPUT.POINT_RANGE)}, POST_CENTER_RANGE "
            f"{list(bev.POST_CENTER_RANGE)}, expected x0 y0 z0 x1 y1 z1, each first number below its second",
        ),
        (
            len(cfg.MODEL.PIXEL_MEAN) == len(cfg.MODEL.PIXEL_STD) == 3 and min(cfg.MODEL.PIXEL_STD) > 0,
            f"MODEL.PIXEL_MEAN is {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
            f"{list(cfg.MODEL.PIXEL_STD)}, expected three numbers each, deviations above 0",
        ),
        (
            len(bev.LOSS.CODE_WEIGHTS) == 10,
            f"LOSS.CODE_WEIGHTS has {len(bev.LOSS.CODE_WEIGHTS)} numbers, expected 10",
        ),
    ]
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ValueError(f"MODEL.BEVFORMER: {'; '.join(broken)}")


def _is_range(limits: Sequence[float]) -> bool:
    return len(limits) == 6 and all(low < high for low, high in zip(limits[:3], limits[3:], strict=True))
