"""Distillation methods: one file an idea, each registered with its config node in DISTILL_REGISTRY."""

from bevkd2.distill.methods.attention import SpatialAttention, TemporalAttention
from bevkd2.distill.methods.base import DISTILL_REGISTRY, DistillMethod, register_method
from bevkd2.distill.methods.bev_response import BEVResponse

__all__ = [
    "DISTILL_REGISTRY",
    "BEVResponse",
    "DistillMethod",
    "SpatialAttention",
    "TemporalAttention",
    "register_method",
]
