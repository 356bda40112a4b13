"""FCOS3D and PGD: config, head, targets, losses and decoding."""

from bevkd2.modeling.mono.fcos3d.fcos3d import FCOS3D, PGD

__all__ = ["FCOS3D", "PGD"]
