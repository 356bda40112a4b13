"""Compiled ops with their autograd formulas, and the distillation losses. docs/ops.md describes them.

Importing this package loads the compiled library (see :mod:`bevkd2.ops.library`).
"""

from .absolute_means import AbsoluteMeans, absolute_means
from .bev_response import bev_response_l2
from .box3d import batched_rotated_nms, box3d_iou, rotated_intersection, rotated_iou, rotated_nms
from .feature_l2 import feature_l2
from .l2_reductions import Reduction
from .masked_l2 import attention_l2, masked_l2
from .ms_deform_attn import ms_deform_attn
from .ms_deform_attn_fused import ReferenceMode, ms_deform_attn_fused
from .ms_deform_attn_ragged import ms_deform_attn_ragged
from .normalized_l2 import normalized_l2
from .onnx_export import export_onnx, onnx_decompositions
from .perspective import content_mask, occlusion_factor, perspective_matrix
from .pixel_weights import BoxMask, Occlusion, Perspective, PixelWeights, draw_weights, pack_boxes
from .prediction_distill import Distance, Rho, class_distance, depth_guidance
from .prediction_loss import PredictionLoss, logit_distance, prediction_loss
from .softmax_kl import channel_wise_kl, pixel_wise_kl
from .weighted_l2 import weighted_l2
from .weighted_l2_means import DistanceAndMeans, weighted_l2_with_means

__all__ = [
    "AbsoluteMeans",
    "BoxMask",
    "Distance",
    "DistanceAndMeans",
    "Occlusion",
    "Perspective",
    "PixelWeights",
    "PredictionLoss",
    "Reduction",
    "ReferenceMode",
    "Rho",
    "absolute_means",
    "attention_l2",
    "batched_rotated_nms",
    "bev_response_l2",
    "box3d_iou",
    "channel_wise_kl",
    "class_distance",
    "content_mask",
    "depth_guidance",
    "draw_weights",
    "export_onnx",
    "feature_l2",
    "logit_distance",
    "masked_l2",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_ragged",
    "normalized_l2",
    "occlusion_factor",
    "onnx_decompositions",
    "pack_boxes",
    "perspective_matrix",
    "pixel_wise_kl",
    "prediction_loss",
    "rotated_intersection",
    "rotated_iou",
    "rotated_nms",
    "weighted_l2",
    "weighted_l2_with_means",
]
