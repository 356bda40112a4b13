"""Exports trained detectors to ONNX and to torch.export packages, with what their numbers mean."""

from bevkd2.export.model import describe, export_detector, image_size_of, load_student

__all__ = ["describe", "export_detector", "image_size_of", "load_student"]
