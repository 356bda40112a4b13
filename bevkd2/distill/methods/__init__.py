"""Distillation methods: one file per idea, each registered with its config node in DISTILL_REGISTRY."""

from bevkd2.distill.methods.attention import SpatialAttention, TemporalAttention
from bevkd2.distill.methods.attention_transfer import AT
from bevkd2.distill.methods.base import DISTILL_REGISTRY, DistillMethod, register_method
from bevkd2.distill.methods.bev_feature import BEVFeature
from bevkd2.distill.methods.bev_response import BEVResponse
from bevkd2.distill.methods.class_prediction import ClassPredictionMethod
from bevkd2.distill.methods.cross_kd import CrossKD
from bevkd2.distill.methods.cwd import CWD
from bevkd2.distill.methods.d3etr import D3ETR
from bevkd2.distill.methods.defeat import DeFeat
from bevkd2.distill.methods.depth_guided import DepthGuidedPrediction
from bevkd2.distill.methods.detr_distill import DETRDistill
from bevkd2.distill.methods.dist import DIST
from bevkd2.distill.methods.dkd import DKD
from bevkd2.distill.methods.fbkd import FBKD
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.methods.fgd import FGD
from bevkd2.distill.methods.fgfi import FGFI
from bevkd2.distill.methods.fitnet import FitNet
from bevkd2.distill.methods.gid import GID
from bevkd2.distill.methods.heatmap import Heatmap
from bevkd2.distill.methods.hinton_kd import HintonKD
from bevkd2.distill.methods.kd_detr import KDDETR
from bevkd2.distill.methods.mgd import MGD
from bevkd2.distill.methods.ofd import OFD
from bevkd2.distill.methods.perspective_feature import PerspectiveFeature
from bevkd2.distill.methods.pkd import PKD
from bevkd2.distill.methods.review_kd import ReviewKD
from bevkd2.distill.methods.rkd import RKD
from bevkd2.distill.methods.sp import SP
from bevkd2.distill.methods.structured import StructuredMethod
from bevkd2.distill.methods.tar import TAR
from bevkd2.distill.methods.temp_distiller import TempDistiller
from bevkd2.distill.methods.vid import VID

__all__ = [
    "AT",
    "CWD",
    "D3ETR",
    "DIST",
    "DISTILL_REGISTRY",
    "DKD",
    "FBKD",
    "FGD",
    "FGFI",
    "GID",
    "KDDETR",
    "MGD",
    "OFD",
    "PKD",
    "RKD",
    "SP",
    "TAR",
    "VID",
    "BEVFeature",
    "BEVResponse",
    "ClassPredictionMethod",
    "CrossKD",
    "DETRDistill",
    "DeFeat",
    "DepthGuidedPrediction",
    "DistillMethod",
    "FeatureMethod",
    "FitNet",
    "Heatmap",
    "HintonKD",
    "PerspectiveFeature",
    "ReviewKD",
    "SpatialAttention",
    "StructuredMethod",
    "TempDistiller",
    "TemporalAttention",
    "register_method",
]
