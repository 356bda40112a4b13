"""Importing this package registers its detector, its method, its data format and their config keys."""

from bevkd2.config.plugins import add_config_extension
from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono, add_tinymono
from tinymono.format import BoxesJson

__all__ = ["BoxesJson", "DepthHint", "TinyMono"]

add_config_extension(add_tinymono)
