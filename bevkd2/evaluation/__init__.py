"""Scores."""

from bevkd2.evaluation.nuscenes import NuScenesEvaluator
from bevkd2.evaluation.nuscenes_mono import NuScenesMonoEvaluator

__all__ = ["NuScenesEvaluator", "NuScenesMonoEvaluator"]
