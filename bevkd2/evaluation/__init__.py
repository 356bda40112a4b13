"""Evaluators: KITTI's score, and the official nuScenes score for multi-view and monocular detectors."""

from bevkd2.evaluation.kitti import KittiEvaluator
from bevkd2.evaluation.nuscenes import NuScenesEvaluator
from bevkd2.evaluation.nuscenes_mono import NuScenesMonoEvaluator

__all__ = ["KittiEvaluator", "NuScenesEvaluator", "NuScenesMonoEvaluator"]
