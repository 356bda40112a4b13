"""Exports trained detectors to ONNX and to torch.export packages, with what their numbers mean."""

from bevkd2.export.calibration import calibration_feeds, calibration_samples, run_sample
from bevkd2.export.model import describe, export_detector, image_size_of, load_student
from bevkd2.export.precision import to_float16, to_int8

__all__ = [
    "calibration_feeds",
    "calibration_samples",
    "describe",
    "export_detector",
    "image_size_of",
    "load_student",
    "run_sample",
    "to_float16",
    "to_int8",
]
