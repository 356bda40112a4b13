"""A seeded world of driving scenes in nuScenes v1.0 layout: for tests and demonstrations, not a benchmark."""

from bevkd2.data.synthetic.config import PRESETS, WorldConfig
from bevkd2.data.synthetic.world import generate

__all__ = ["PRESETS", "WorldConfig", "generate"]
