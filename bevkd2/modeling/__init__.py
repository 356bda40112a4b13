"""Detectors and their parts; importing this package registers backbones and meta-architectures."""

from bevkd2.modeling.bev import BEVFormer
from bevkd2.modeling.knowledge import WANTS, BEVKnowledge, Knowledge, TemporalState
from bevkd2.modeling.mono import FCOS3D, PGD, SMOKE

__all__ = ["FCOS3D", "PGD", "SMOKE", "WANTS", "BEVFormer", "BEVKnowledge", "Knowledge", "TemporalState"]
