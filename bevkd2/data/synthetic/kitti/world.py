"""Writes the world in KITTI object layout: frames in parallel."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.kitti.scene import KittiFrame, make_frame
from bevkd2.data.synthetic.parallel import map_indices, write_image
from bevkd2.data.synthetic.render import SceneRenderer, View
from bevkd2.structures import CameraBoxes3D, project_boxes

Array = npt.NDArray[np.float64]

OCCLUSION_LIMITS = (0.8, 0.5, 0.2)
"""Smallest shares of visible pixels for the levels 0 (fully visible), 1 (partly) and 2 (largely occluded);
below is level 3 (unknown)."""

_DONT_CARE = "DontCare -1 -1 -10 {} -1 -1 -1 -1000 -1000 -1000 -10"


def fill(config: KittiWorldConfig, workers: int, progress: bool, root: Path) -> None:
    """Writes all files of a world but ``synthetic.json``.

    Args:
        config: what is in the world.
        workers: number of processes, at least 1; the files do not depend on it.
        progress: show a progress bar.
        root: an empty folder.
    """
    for folder in ("image_2", "label_2", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for split, names in config.splits().items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    map_indices(partial(write_frame, config, root), config.num_frames, workers, "frame", progress)


def write_frame(config: KittiWorldConfig, root: Path, index: int) -> None:
    """Writes the image, the labels and the calibration of a frame.

    Args:
        config: the world.
        root: the root of the data set; its folders exist.
        index: index of the frame.
    """
    frame = make_frame(config, index)
    view = SceneRenderer(frame.scene, config.image_size).render(frame.scene.rig[0], 0.0)
    folder, name = root / "training", f"{index:06d}"
    write_image(folder / "image_2" / f"{name}.png", view.image, [])
    (folder / "label_2" / f"{name}.txt").write_text(label_text(config, frame, view))
    (folder / "calib" / f"{name}.txt").write_text(frame.calibration.to_text())


def label_text(config: KittiWorldConfig, frame: KittiFrame, view: View) -> str:
    """Returns the label file of a frame.

    A line has the 15 columns type, truncated, occluded, alpha, the 2D box (left, top, right, bottom), height,
    width, length, location of the bottom centre, rotation_y. The 2D box encloses the projected corners and is
    clipped to the image (to its width and height, since pixel i covers i to i + 1); ``truncated`` is the
    share of its area outside the image. ``occluded`` follows from the share of visible
    pixels. Objects with fewer visible pixels than ``min_visible_pixels``, or beyond ``label_range``, are
    DontCare regions, which come last; objects without visible pixels have no line.

    Args:
        config: the world.
        frame: the rendered frame.
        view: its image from camera 2.

    Returns:
        The lines, each with a line feed; "" if there is nothing to label.
    """
    boxes = frame.boxes()
    whole = _projected_extents(boxes, frame.calibration.cam2img)
    width, height = config.image_size
    clipped = np.clip(whole, 0.0, [width, height, width, height])
    truncated = 1 - _area(clipped) / _area(whole)
    lines, regions = [], []
    for i, item in enumerate(frame.scene.objects):
        if item.kind is None or view.visible[i] == 0:
            continue
        rectangle = " ".join(f"{side:.2f}" for side in clipped[i])
        if view.visible[i] < config.min_visible_pixels or boxes[i, 2] > config.label_range:
            regions.append(_DONT_CARE.format(rectangle))
            continue
        occluded = occlusion_level(view.visible[i] / view.unoccluded[i])
        x, y, z, length, box_width, box_height, rotation_y = boxes[i]
        alpha = (rotation_y - math.atan2(x, z) + math.pi) % (2 * math.pi) - math.pi
        solid = (box_height, box_width, length, x, y + box_height / 2, z, rotation_y)
        numbers = " ".join(f"{number:.2f}" for number in solid)
        lines.append(f"{item.kind.name} {truncated[i]:.2f} {occluded} {alpha:.2f} {rectangle} {numbers}")
    return "".join(f"{line}\n" for line in lines + regions)


def occlusion_level(visible_share: float) -> int:
    """Returns KITTI's level of occlusion, 0 to 3.

    Args:
        visible_share: visible pixels of the object divided by those without occlusion.

    Returns:
        The level.
    """
    return sum(visible_share < limit for limit in OCCLUSION_LIMITS)


def _projected_extents(boxes: Array, cam2img: Array) -> Array:
    """Returns (n, 4) left, top, right, bottom of the projected corners, not clipped to the image."""
    pixels, depth = project_boxes(CameraBoxes3D(torch.from_numpy(boxes)), torch.from_numpy(cam2img))
    assert bool((depth > 0).all()), "make_frame places every corner in front of the camera"
    extents: Array = torch.cat([pixels.amin(dim=1), pixels.amax(dim=1)], dim=1).numpy()
    return extents


def _area(rectangles: Array) -> Array:
    areas: Array = np.prod(rectangles[:, 2:] - rectangles[:, :2], axis=1)
    return areas
