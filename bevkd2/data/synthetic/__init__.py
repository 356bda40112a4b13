"""Seeded worlds in nuScenes v1.0 and in KITTI layout: for tests and demonstrations, not benchmarks."""

from bevkd2.data.synthetic.kitti.config import KITTI_PRESETS, KittiWorldConfig
from bevkd2.data.synthetic.kitti.world import generate_kitti
from bevkd2.data.synthetic.nuscenes.config import PRESETS, WorldConfig
from bevkd2.data.synthetic.nuscenes.world import generate

__all__ = ["KITTI_PRESETS", "PRESETS", "KittiWorldConfig", "WorldConfig", "generate", "generate_kitti"]
