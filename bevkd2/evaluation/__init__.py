"""Scores.

Names are imported when they are asked for: KITTI's score itself needs no torch, and tools/kitti_eval.py
should not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevkd2.evaluation.kitti import KittiEvaluator
    from bevkd2.evaluation.kitti_ap import ap_by_distance, kitti_scores
    from bevkd2.evaluation.nuscenes import NuScenesEvaluator
    from bevkd2.evaluation.nuscenes_mono import NuScenesMonoEvaluator

_MODULE_OF = {
    "KittiEvaluator": "kitti",
    "ap_by_distance": "kitti_ap",
    "kitti_scores": "kitti_ap",
    "NuScenesEvaluator": "nuscenes",
    "NuScenesMonoEvaluator": "nuscenes_mono",
}

__all__ = [
    "KittiEvaluator",
    "NuScenesEvaluator",
    "NuScenesMonoEvaluator",
    "ap_by_distance",
    "kitti_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
