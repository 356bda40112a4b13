"""Distillation methods: one file per idea, each registered with its config node in DISTILL_REGISTRY."""

from bevkd2.distill.methods.attention import SpatialAttention, TemporalAttention
from bevkd2.distill.methods.attention_transfer import AT
from bevkd2.distill.methods.base import DISTILL_REGISTRY, DistillMethod, register_method
from bevkd2.distill.methods.bev_response import BEVResponse
from bevkd2.distill.methods.defeat import DeFeat
from bevkd2.distill.methods.depth_guided import DepthGuidedPrediction
from bevkd2.distill.methods.fbkd import FBKD
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.methods.fgd import FGD
from bevkd2.distill.methods.fgfi import FGFI
from bevkd2.distill.methods.fitnet import FitNet
from bevkd2.distill.methods.gid import GID
from bevkd2.distill.methods.ofd import OFD
from bevkd2.distill.methods.perspective_feature import PerspectiveFeature
from bevkd2.distill.methods.pkd import PKD
from bevkd2.distill.methods.rkd import RKD
from bevkd2.distill.methods.sp import SP
from bevkd2.distill.methods.tar import TAR
from bevkd2.distill.methods.vid import VID

__all__ = [
    "AT",
    "DISTILL_REGISTRY",
    "FBKD",
    "FGD",
    "FGFI",
    "GID",
    "OFD",
    "PKD",
    "RKD",
    "SP",
    "TAR",
    "VID",
    "BEVResponse",
    "DeFeat",
    "DepthGuidedPrediction",
    "DistillMethod",
    "FeatureMethod",
    "FitNet",
    "PerspectiveFeature",
    "SpatialAttention",
    "TemporalAttention",
    "register_method",
]
