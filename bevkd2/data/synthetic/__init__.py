"""Seeded synthetic worlds in nuScenes v1.0 and KITTI layout: for tests and demos, not for benchmarks."""

from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.world import SyntheticWorld, generate

__all__ = ["KittiWorldConfig", "SyntheticWorld", "WorldConfig", "generate"]
