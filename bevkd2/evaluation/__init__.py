"""Scores."""

from bevkd2.evaluation.nuscenes import NuScenesEvaluator

__all__ = ["NuScenesEvaluator"]
