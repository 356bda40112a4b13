"""Monocular detectors; importing this package registers them."""

from bevkd2.modeling.mono.fcos3d import FCOS3D, PGD
from bevkd2.modeling.mono.smoke import SMOKE

__all__ = ["FCOS3D", "PGD", "SMOKE"]
