"""Importing this package registers its detector, method and hook, and their config keys."""

from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono
from tinymono.weight_average import WeightAverage

__all__ = ["DepthHint", "TinyMono", "WeightAverage"]
