"""Detectors and their parts; importing this room registers the bodies and the meta-architectures."""

from bevkd2.modeling.knowledge import WANTS, BEVKnowledge, Knowledge, TemporalState
from bevkd2.modeling.meta_arch import FCOS3D, PGD, SMOKE, BEVFormer

__all__ = ["FCOS3D", "PGD", "SMOKE", "WANTS", "BEVFormer", "BEVKnowledge", "Knowledge", "TemporalState"]
