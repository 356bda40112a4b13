"""Importing this package registers its detectors, its method, its data format and their config keys."""

from tinymono.depth_hint import DepthHint
from tinymono.detector import TinyMono
from tinymono.format import BoxesJson
from tinymono.multi_view import TinyBEV

__all__ = ["BoxesJson", "DepthHint", "TinyBEV", "TinyMono"]
