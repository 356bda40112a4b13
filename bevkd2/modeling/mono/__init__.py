"""Monocular detectors; importing this package registers them and adds their config keys."""

from bevkd2.modeling.mono.assign import assign_locations
from bevkd2.modeling.mono.detector import MonoDetector
from bevkd2.modeling.mono.fcos3d import FCOS3D, PGD
from bevkd2.modeling.mono.grid import BACKGROUND, DenseGrid, flatten_levels
from bevkd2.modeling.mono.inputs import MonoInputs, MonoTargets
from bevkd2.modeling.mono.smoke import SMOKE

__all__ = [
    "BACKGROUND",
    "FCOS3D",
    "PGD",
    "SMOKE",
    "DenseGrid",
    "MonoDetector",
    "MonoInputs",
    "MonoTargets",
    "assign_locations",
    "flatten_levels",
]
