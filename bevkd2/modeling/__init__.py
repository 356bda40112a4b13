"""Detectors and their parts; importing this room registers the bodies and the meta-architectures."""

from bevkd2.modeling.knowledge import WANTS, BEVKnowledge, Knowledge, TemporalState
from bevkd2.modeling.meta_arch import FCOS3D, PGD, BEVFormer

__all__ = ["FCOS3D", "PGD", "WANTS", "BEVFormer", "BEVKnowledge", "Knowledge", "TemporalState"]
