"""Runs exported detectors with numpy and ONNX Runtime alone: nothing here imports torch.

``load("student.onnx")`` returns a :class:`MultiViewRuntime` or a :class:`MonoRuntime`, by what the file says.
"""

from bevkd2.runtime.checksum import seal
from bevkd2.runtime.ego import EgoMotion
from bevkd2.runtime.graph import Detections, Graph, load
from bevkd2.runtime.mono import MonoRuntime
from bevkd2.runtime.multi_view import MultiViewRuntime
from bevkd2.runtime.nms import rotated_iou, rotated_nms

__all__ = [
    "Detections",
    "EgoMotion",
    "Graph",
    "MonoRuntime",
    "MultiViewRuntime",
    "load",
    "rotated_iou",
    "rotated_nms",
    "seal",
]
