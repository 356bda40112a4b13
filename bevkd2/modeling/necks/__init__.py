"""Necks: the layers between the image backbone and the detector's own."""

from bevkd2.modeling.necks.dla_up import DLAUp
from bevkd2.modeling.necks.fpn import FPN
from bevkd2.modeling.necks.neck import Neck

__all__ = ["FPN", "DLAUp", "Neck"]
