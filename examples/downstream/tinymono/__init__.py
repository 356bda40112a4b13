"""Importing this package registers its detector, its distillation method and their config keys."""

from bevkd2.config.plugins import add_config_extension
from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono, add_tinymono

__all__ = ["DepthHint", "TinyMono"]

add_config_extension(add_tinymono)
