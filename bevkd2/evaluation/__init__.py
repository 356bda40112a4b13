"""Scores."""

from bevkd2.evaluation.kitti import KittiEvaluator
from bevkd2.evaluation.kitti_ap import ap_by_distance, kitti_scores
from bevkd2.evaluation.nuscenes import NuScenesEvaluator
from bevkd2.evaluation.nuscenes_mono import NuScenesMonoEvaluator

__all__ = ["KittiEvaluator", "NuScenesEvaluator", "NuScenesMonoEvaluator", "ap_by_distance", "kitti_scores"]
