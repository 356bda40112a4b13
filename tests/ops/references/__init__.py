"""Reference implementations of the ops in plain PyTorch, for tests and benchmarks."""

from .boxes import (
    box3d_iou_reference,
    rotated_intersection_reference,
    rotated_iou_reference,
    rotated_nms_reference,
)
from .deformable_attention import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_ragged_reference,
    ms_deform_attn_reference,
    sampling_locations_reference,
)
from .losses import (
    absolute_means_reference,
    bev_response_l2_reference,
    channel_wise_kl_reference,
    feature_l2_reference,
    masked_l2_reference,
    normalized_l2_reference,
    pixel_wise_kl_reference,
    prediction_loss_reference,
    weighted_l2_reference,
)
from .pixel_weights import draw_weights_reference

__all__ = [
    "absolute_means_reference",
    "bev_response_l2_reference",
    "box3d_iou_reference",
    "channel_wise_kl_reference",
    "draw_weights_reference",
    "feature_l2_reference",
    "masked_l2_reference",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_ragged_reference",
    "ms_deform_attn_reference",
    "normalized_l2_reference",
    "pixel_wise_kl_reference",
    "prediction_loss_reference",
    "rotated_intersection_reference",
    "rotated_iou_reference",
    "rotated_nms_reference",
    "sampling_locations_reference",
    "weighted_l2_reference",
]
