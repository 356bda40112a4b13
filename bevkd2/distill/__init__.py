"""Knowledge distillation: the Distiller, its methods, weight inheriting, and the configs of the pair."""

from bevkd2.distill.config import (
    TEACHER_KEY,
    is_distillation,
    resolve_teacher,
    student_config,
    teacher_config,
)
from bevkd2.distill.distiller import Distiller, Teaching, build_teacher
from bevkd2.distill.gradients import gradient_norms, trained_parts
from bevkd2.distill.inherit import inherit, verify_inherited
from bevkd2.distill.masks import draw_content, draw_masks
from bevkd2.distill.methods import DISTILL_REGISTRY, DistillMethod, FeatureMethod, register_method
from bevkd2.distill.schedule import Progress, Schedule
from bevkd2.distill.sources import FeaturePair, FeatureSource, resolve_sources

__all__ = [
    "DISTILL_REGISTRY",
    "TEACHER_KEY",
    "DistillMethod",
    "Distiller",
    "FeatureMethod",
    "FeaturePair",
    "FeatureSource",
    "Progress",
    "Schedule",
    "Teaching",
    "build_teacher",
    "draw_content",
    "draw_masks",
    "gradient_norms",
    "inherit",
    "is_distillation",
    "register_method",
    "resolve_sources",
    "resolve_teacher",
    "student_config",
    "teacher_config",
    "trained_parts",
    "verify_inherited",
]
