"""KITTI without torch: label files, calibration files, frame lists and the official score."""

from bevkd2.kitti.ap import ap_by_distance, kitti_scores

__all__ = ["ap_by_distance", "kitti_scores"]
