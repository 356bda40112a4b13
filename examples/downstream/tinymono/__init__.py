"""Importing this package registers its detectors, its distillation method and their config keys."""

from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono
from tinymono.multi_view import TinyBEV

__all__ = ["DepthHint", "TinyBEV", "TinyMono"]
