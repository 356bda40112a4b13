"""Knowledge distillation: the Distiller, its methods, weight inheriting, and the configs of the pair."""

from bevkd2.distill.config import (
    is_distillation,
    resolve_teacher,
    student_config,
    teacher_config,
)
from bevkd2.distill.distiller import Distiller, build_teacher
from bevkd2.distill.inherit import inherit, verify_inherited
from bevkd2.distill.methods import DISTILL_REGISTRY, DistillMethod, register_method

__all__ = [
    "DISTILL_REGISTRY",
    "DistillMethod",
    "Distiller",
    "build_teacher",
    "inherit",
    "is_distillation",
    "register_method",
    "resolve_teacher",
    "student_config",
    "teacher_config",
    "verify_inherited",
]
