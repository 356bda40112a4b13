"""Distillation methods: one file per idea, each registered with its config node in DISTILL_REGISTRY."""

from bevkd2.distill.methods.attention import SpatialAttention, TemporalAttention
from bevkd2.distill.methods.base import DISTILL_REGISTRY, DistillMethod, register_method
from bevkd2.distill.methods.bev_response import BEVResponse
from bevkd2.distill.methods.cross_kd import CrossKD
from bevkd2.distill.methods.d3etr import D3ETR
from bevkd2.distill.methods.depth_guided import DepthGuidedPrediction
from bevkd2.distill.methods.detr_distill import DETRDistill
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.methods.kd_detr import KDDETR
from bevkd2.distill.methods.perspective_feature import PerspectiveFeature
from bevkd2.distill.methods.pkd import PKD
from bevkd2.distill.methods.temp_distiller import TempDistiller

__all__ = [
    "D3ETR",
    "DISTILL_REGISTRY",
    "KDDETR",
    "PKD",
    "BEVResponse",
    "CrossKD",
    "DETRDistill",
    "DepthGuidedPrediction",
    "DistillMethod",
    "FeatureMethod",
    "PerspectiveFeature",
    "SpatialAttention",
    "TempDistiller",
    "TemporalAttention",
    "register_method",
]
