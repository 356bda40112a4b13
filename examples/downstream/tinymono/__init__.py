"""Importing this package registers its detector, distillation method and hook, and their config keys."""

from bevkd2.config.plugins import add_config_extension
from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono, add_tinymono
from tinymono.weight_average import WeightAverage, add_weight_average

__all__ = ["DepthHint", "TinyMono", "WeightAverage"]

add_config_extension(add_tinymono)
add_config_extension(add_weight_average)
