"""Importing this package registers its detectors, method, data format and hook, and their config keys."""

from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono
from tinymono.format import BoxesJson
from tinymono.multi_view import TinyBEV
from tinymono.weight_average import WeightAverage

__all__ = ["BoxesJson", "DepthHint", "TinyBEV", "TinyMono", "WeightAverage"]
