"""A small world in the data format of examples/downstream."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bevkd2.data.kitti import load_kitti
from tests.data.kitti_fixture import TRAIN, VAL

NAMES = {"Car": "car", "Pedestrian": "person", "Cyclist": "cyclist"}
"""KITTI's class -> its name in the files; cyclists are not among the format's default classes."""


def write_world(kitti_world: Path, root: Path) -> Path:
    """Writes the frames of the world in KITTI layout as the example's format has them; returns ``root``."""
    root.mkdir(parents=True)
    (root / "images").symlink_to(kitti_world / "training" / "image_2")
    for split, frames in (("train", TRAIN), ("val", VAL)):
        index = load_kitti(kitti_world, split, tuple(NAMES))
        images = []
        for i, frame in enumerate(frames):
            record = index.record(i)
            intrinsics = record.cam2img[:3, :3]
            # The format has no fourth column, which moves KITTI's camera by centimetres; the boxes move.
            shift = np.linalg.inv(intrinsics) @ record.cam2img[:3, 3]
            rows = zip(record.boxes.tensor.double().tolist(), record.labels.tolist(), strict=True)
            boxes = [
                {
                    "class": list(NAMES.values())[label],
                    "center": (np.array(row[:3]) + shift).tolist(),
                    "size": row[3:6],
                    "yaw": row[6],
                }
                for row, label in rows
            ]
            images.append(
                {
                    "file": f"images/{frame}.png",
                    "width": record.width,
                    "height": record.height,
                    "intrinsics": intrinsics.tolist(),
                    "boxes": boxes,
                }
            )
        (root / f"{split}.json").write_text(json.dumps({"images": images}))
    return root
