"""The keys of MODEL.BEVFORMER and MODEL.GRID_MASK, and the parts that are built from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bevkd2.config import CfgNode, add_config_extension, add_removed_key, check_rules, class_names
from bevkd2.modeling.bev.box_coder import DecodeOptions
from bevkd2.modeling.bev.criterion import SetCriterion, SetWeights
from bevkd2.modeling.bev.decoder import ObjectDecoder
from bevkd2.modeling.bev.dense_boxes import DenseBoxWeights
from bevkd2.modeling.bev.encoder import BEVEncoder
from bevkd2.modeling.bev.geometry import BEVGeometry, LegacyOptions
from bevkd2.modeling.bev.grid_mask import GridMask
from bevkd2.modeling.bev.heatmaps import HeatmapWeights
from bevkd2.modeling.bev.layers import LayerOptions
from bevkd2.modeling.detector import detector_arguments

add_removed_key("MODEL.BEVFORMER.NUM_CAMERAS", "it is the number of INPUT.CAMERAS")
add_removed_key("MODEL.BEVFORMER.EMBED_DIM", "it is MODEL.FPN.OUT_CHANNELS")
add_removed_key("MODEL.BEVFORMER.PC_RANGE", "use INPUT.POINT_RANGE")
add_removed_key(
    "MODEL.BEVFORMER.LOSS.CENTER_WEIGHT", "multiply the first two of MODEL.BEVFORMER.LOSS.CODE_WEIGHTS by it"
)
add_removed_key("MODEL.GRID_MASK.MODE", "the squares between the bars are blanked, as by its default 1")
add_removed_key("MODEL.BEVFORMER.NUM_CLASSES", "it is the number of classes of DATASETS.FORMAT")


@add_config_extension
def add_bevformer_config(cfg: CfgNode) -> None:
    """Adds MODEL.BEVFORMER and MODEL.GRID_MASK.

    The channels of queries and features are MODEL.FPN.OUT_CHANNELS, the cameras are INPUT.CAMERAS, and the
    classes are those of DATASETS.FORMAT.

    Args:
        cfg: the whole config.
    """
    grid_mask = cfg.MODEL.GRID_MASK = CfgNode()
    grid_mask.ENABLED = True  # training only, on the current frame
    grid_mask.PROB = 0.7  # probability that a sample is masked
    grid_mask.RATIO = 0.5  # width of the grid's bars / its period

    bev = cfg.MODEL.BEVFORMER = CfgNode()
    bev.NUM_HEADS = 8  # attention heads
    bev.FFN_DIM = 512  # hidden channels of the feed-forward networks
    bev.DROPOUT = 0.1  # dropout rate of attention outputs and feed-forward networks
    bev.BEV_SHAPE = [50, 50]  # rows (y), columns (x)
    bev.POST_CENTER_RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]  # metres; detections outside are dropped
    bev.ENCODER_LAYERS = 3  # layers of the BEV encoder
    bev.ENCODER_CHECKPOINTING = False  # recompute its layers in the backward pass to save memory
    bev.DECODER_LAYERS = 6  # layers of the object decoder
    bev.NUM_QUERIES = 900  # object queries
    bev.QUERY_INIT = "random"  # "random" (the paper's) | "grid": reference points start on a regular BEV grid
    bev.NUM_FEATURE_LEVELS = 4  # rows of the level embedding (the published models keep 4 even for one level)
    bev.PILLAR_POINTS = 4  # 3D reference points in a pillar
    bev.SPATIAL_POINTS = 8  # sampling points per level; a multiple of PILLAR_POINTS
    bev.TEMPORAL_POINTS = 4  # sampling points per head and BEV of temporal self-attention
    bev.DECODER_POINTS = 4  # sampling points per head of the decoder's cross-attention
    # The box branches predict headings relative to the ray from the origin to the object, as pictures show
    # them, and the model turns them; the paper's predict headings in the frame of LIDAR_TOP (ours)
    bev.RAY_HEADING = False
    # The velocities of the box branches are added to those of the dense BEV head (AUX.BEV_BOX_WEIGHT) at the
    # predicted centre; the paper's stand alone (ours)
    bev.DENSE_VELOCITY = False
    bev.USE_CAN_BUS = True  # add an embedding of the 18-vector to the BEV queries
    bev.USE_SHIFT = True  # shift the temporal reference points by the ego motion
    bev.ROTATE_PREV_BEV = True  # rotate the previous BEV by the change of yaw
    # How the previous BEV comes into the present's pose. "nearest": turned by nearest neighbour, its sampling
    # points shifted, as published | "bilinear": turned and shifted at once by bilinear interpolation (ours)
    bev.PREV_BEV_SAMPLING = "nearest"
    bev.MAX_DETECTIONS = 300  # most detections per sample
    bev.SCORE_THRESHOLD = 0.0  # least score of a detection
    bev.CLEAR_MEMORY = False  # evaluation without history: shows what the history is worth (ours)

    # Faults of the published code that the published weights were trained with (docs/design.md).
    legacy = bev.LEGACY = CfgNode()
    legacy.ALIASED_SHIFT = False  # the current frame's temporal reference points are shifted too
    legacy.ROTATE_CENTER = []  # x, y in cells; []: the centre. Published tiny and small: [100, 100]
    legacy.PADDING_VISIBLE = False  # points that project into the padding count as visible
    legacy.UNWRAPPED_YAW = False  # a change of yaw across north is embedded as nearly 360 degrees

    loss = bev.LOSS = CfgNode()
    loss.CLS_WEIGHT = 2.0  # weight of the focal loss of classes
    loss.FOCAL_ALPHA = 0.25  # alpha of the focal loss
    loss.FOCAL_GAMMA = 2.0  # gamma of the focal loss
    loss.BOX_WEIGHT = 0.25  # weight of the L1 loss of box codes
    # Of cx cy logw logl cz logh sin cos vx vy in the loss; the matching weighs the first eight alike.
    loss.CODE_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
    # m/s below which the loss of vx and vy is quadratic (smooth L1), so that standing objects do not draw all
    # predictions to 0; 0: L1, as in the paper's configs (ours)
    loss.VELOCITY_BETA = 0.0
    loss.MOVING_WEIGHT = 1.0  # multiplies the terms of vx and vy of objects that move (ours)

    # Dense supervision in training only, as BEVFormer v2 and others use; 0: off, as in the paper's configs.
    aux = bev.AUX = CfgNode()
    aux.BEV_HEATMAP_WEIGHT = 0.0  # weight of the loss of the class heat map on the BEV grid
    aux.IMAGE_HEATMAP_WEIGHT = 0.0  # weight of the loss of the class heat map on the finest image features
    # weight of the loss of a dense head on the BEV grid, read at the objects' cells: place in the cell,
    # heading, velocity (ours)
    aux.BEV_BOX_WEIGHT = 0.0
    # weight of the loss of a dense head on the finest image features, read at the objects' projected centres:
    # heading relative to the viewing ray, sizes, scale (ours)
    aux.IMAGE_BOX_WEIGHT = 0.0


def bevformer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Returns the constructor arguments of a BEVFormer, its parts built by the config.

    Raises:
        ValueError: keys that contradict each other.
    """
    num_classes = len(class_names(cfg, single_images=False))
    _check(cfg)
    bev, mask = cfg.MODEL.BEVFORMER, cfg.MODEL.GRID_MASK
    return {
        **detector_arguments(cfg),
        "num_classes": num_classes,
        "num_cameras": len(cfg.INPUT.CAMERAS),
        "encoder": _encoder(cfg),
        "decoder": _decoder(cfg, num_classes),
        "criterion": _criterion(bev),
        "geometry": _geometry(cfg),
        "grid_mask": GridMask(prob=mask.PROB, ratio=mask.RATIO) if mask.ENABLED else None,
        "num_queries": bev.NUM_QUERIES,
        "query_init": bev.QUERY_INIT,
        "use_can_bus": bev.USE_CAN_BUS,
        "decoding": DecodeOptions(
            max_detections=bev.MAX_DETECTIONS,
            post_center_range=list(bev.POST_CENTER_RANGE),
            score_threshold=bev.SCORE_THRESHOLD,
        ),
        "heatmaps": HeatmapWeights(bev=bev.AUX.BEV_HEATMAP_WEIGHT, image=bev.AUX.IMAGE_HEATMAP_WEIGHT),
        "dense_boxes": DenseBoxWeights(bev=bev.AUX.BEV_BOX_WEIGHT, image=bev.AUX.IMAGE_BOX_WEIGHT),
        "dense_velocity": bev.DENSE_VELOCITY,
        "clear_memory": bev.CLEAR_MEMORY,
    }


def _layer_options(cfg: CfgNode) -> LayerOptions:
    bev = cfg.MODEL.BEVFORMER
    return LayerOptions(
        embed_dim=cfg.MODEL.FPN.OUT_CHANNELS,
        num_heads=bev.NUM_HEADS,
        ffn_dim=bev.FFN_DIM,
        dropout=bev.DROPOUT,
    )


def _encoder(cfg: CfgNode) -> BEVEncoder:
    bev = cfg.MODEL.BEVFORMER
    return BEVEncoder(
        _layer_options(cfg),
        num_layers=bev.ENCODER_LAYERS,
        bev_shape=tuple(bev.BEV_SHAPE),
        num_cameras=len(cfg.INPUT.CAMERAS),
        num_levels=cfg.MODEL.FPN.NUM_OUTS,
        num_level_embeddings=bev.NUM_FEATURE_LEVELS,
        temporal_points=bev.TEMPORAL_POINTS,
        spatial_points=bev.SPATIAL_POINTS,
        checkpointing=bev.ENCODER_CHECKPOINTING,
    )


def _decoder(cfg: CfgNode, num_classes: int) -> ObjectDecoder:
    bev = cfg.MODEL.BEVFORMER
    return ObjectDecoder(
        _layer_options(cfg),
        num_layers=bev.DECODER_LAYERS,
        num_points=bev.DECODER_POINTS,
        num_classes=num_classes,
        pc_range=cfg.INPUT.POINT_RANGE,
        ray_heading=bev.RAY_HEADING,
    )


def _criterion(bev: CfgNode) -> SetCriterion:
    loss = bev.LOSS
    weights = SetWeights(loss.CLS_WEIGHT, loss.BOX_WEIGHT, loss.FOCAL_ALPHA, loss.FOCAL_GAMMA)
    return SetCriterion(
        weights,
        loss.CODE_WEIGHTS,
        velocity_beta=loss.VELOCITY_BETA,
        moving_weight=loss.MOVING_WEIGHT,
    )


def _geometry(cfg: CfgNode) -> BEVGeometry:
    bev = cfg.MODEL.BEVFORMER
    legacy = bev.LEGACY
    return BEVGeometry(
        bev_shape=tuple(bev.BEV_SHAPE),
        pc_range=list(cfg.INPUT.POINT_RANGE),
        num_pillar_points=bev.PILLAR_POINTS,
        use_shift=bev.USE_SHIFT,
        rotate_previous=bev.ROTATE_PREV_BEV,
        bilinear=bev.PREV_BEV_SAMPLING == "bilinear",
        legacy=LegacyOptions(
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
            fpn.OUT_CHANNELS % (2 * bev.NUM_HEADS) == 0,
            f"MODEL.FPN.OUT_CHANNELS {fpn.OUT_CHANNELS} must be a multiple of 2 * NUM_HEADS "
            f"({2 * bev.NUM_HEADS})",
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
            bev.QUERY_INIT in ("random", "grid"),
            f"QUERY_INIT is {bev.QUERY_INIT!r}, expected 'random' or 'grid'",
        ),
        (
            bev.PREV_BEV_SAMPLING in ("nearest", "bilinear"),
            f"PREV_BEV_SAMPLING is {bev.PREV_BEV_SAMPLING!r}, expected 'nearest' or 'bilinear'",
        ),
        (
            bev.PREV_BEV_SAMPLING != "bilinear" or not bev.LEGACY.ALIASED_SHIFT,
            "PREV_BEV_SAMPLING 'bilinear' shifts no sampling points, which LEGACY.ALIASED_SHIFT is about: "
            "set one of the two back to its default",
        ),
        (
            len(bev.LEGACY.ROTATE_CENTER) in (0, 2),
            f"LEGACY.ROTATE_CENTER is {list(bev.LEGACY.ROTATE_CENTER)}, expected [] or [x, y] in cells",
        ),
        (
            not bev.DENSE_VELOCITY or bev.AUX.BEV_BOX_WEIGHT > 0,
            "DENSE_VELOCITY reads the dense BEV head, which is there where AUX.BEV_BOX_WEIGHT is above 0",
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
            len(bev.LOSS.CODE_WEIGHTS) == 10,
            f"LOSS.CODE_WEIGHTS has {len(bev.LOSS.CODE_WEIGHTS)} numbers, expected 10",
        ),
    ]
    check_rules("MODEL.BEVFORMER", rules)


def _is_range(limits: Sequence[float]) -> bool:
    return len(limits) == 6 and all(low < high for low, high in zip(limits[:3], limits[3:], strict=True))
