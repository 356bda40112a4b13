"""Multi-view detectors; importing this package registers them and adds their config keys."""

from bevkd2.modeling.bev.bevformer import BEVFormer
from bevkd2.modeling.bev.detector import MultiViewDetector
from bevkd2.modeling.bev.geometry import pillar_points, project_pillars
from bevkd2.modeling.bev.inputs import BEVInputs, BEVTargets, Frames

__all__ = [
    "BEVFormer",
    "BEVInputs",
    "BEVTargets",
    "Frames",
    "MultiViewDetector",
    "pillar_points",
    "project_pillars",
]
