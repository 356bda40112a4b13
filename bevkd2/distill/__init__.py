"""Knowledge distillation: the Distiller, its methods, and weight inheriting."""

from bevkd2.distill.distiller import Distiller, build_teacher
from bevkd2.distill.inherit import inherit, verify_inherited
from bevkd2.distill.methods import DISTILL_REGISTRY, DistillMethod, register_method

__all__ = [
    "DISTILL_REGISTRY",
    "DistillMethod",
    "Distiller",
    "build_teacher",
    "inherit",
    "register_method",
    "verify_inherited",
]
