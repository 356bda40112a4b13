"""A tiny synthetic world in KITTI layout; every frame has a calibration of its own."""

from __future__ import annotations

from pathlib import Path

from bevkd2.data.synthetic import KittiWorldConfig, generate

IMAGE_SIZE = (96, 320)  # height, width
TRAIN = [f"{i:06d}" for i in range(5)]
VAL = [f"{i:06d}" for i in range(5, 8)]
EMPTY = "000003"  # at this seed, the frame without any label
# Both splits have cars, pedestrians, cyclists, vans and DontCare regions. Focal lengths differ by more than
# KITTI's do, so that a mix-up of frames shows.
CONFIG = KittiWorldConfig(
    seed=90,
    num_train_frames=len(TRAIN),
    num_val_frames=len(VAL),
    image_size=IMAGE_SIZE[::-1],
    focal_sigma=0.03,
    min_objects=0,
    max_objects=10,
)


def write_kitti_world(root: Path) -> Path:
    """Writes the world; returns `root`."""
    return generate(CONFIG, root, progress=False)
