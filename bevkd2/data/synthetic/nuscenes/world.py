"""Writes the world in nuScenes layout: scenes in parallel, then the tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.nuscenes.scene import FRAME_INTERVAL, make_scene
from bevkd2.data.synthetic.nuscenes.tables import MAP_FILE, SceneTables, Tables, image_path, write_tables
from bevkd2.data.synthetic.parallel import map_indices, write_image
from bevkd2.data.synthetic.render import SceneRenderer
from bevkd2.structures import CAMERA_NAMES


def fill(config: WorldConfig, workers: int, progress: bool, root: Path) -> None:
    """Writes all files of a world but ``synthetic.json``.

    Args:
        config: what is in the world.
        workers: number of processes, at least 1; the files do not depend on it.
        progress: show a progress bar.
        root: an empty folder.
    """
    for camera in CAMERA_NAMES:
        (root / "samples" / camera).mkdir(parents=True)
    write_image(root / MAP_FILE, np.zeros((16, 16, 3), dtype=np.uint8), [])
    make = partial(write_scene, config, root)
    write_tables(config, map_indices(make, config.num_scenes, workers, "scene", progress), root)


def write_scene(config: WorldConfig, root: Path, index: int) -> Tables:
    """Renders the images of a scene below ``root``.

    Args:
        config: the world.
        root: the root of the data set; the folders of the cameras exist.
        index: index of the scene.

    Returns:
        The records of the scene, by table.
    """
    scene = make_scene(config, index)
    renderer = SceneRenderer(scene, config.image_size)
    records = SceneTables(config, scene, index)
    quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    for frame in range(config.frames_per_scene):
        visible, unoccluded = np.zeros(len(scene.objects)), np.zeros(len(scene.objects))
        for camera in scene.rig[1:]:
            view = renderer.render(camera, frame * FRAME_INTERVAL + camera.delay * 1e-6)
            write_image(root / image_path(config, index, frame, camera), view.image, quality)
            visible += view.visible
            unoccluded += view.unoccluded
        records.add_frame(frame, visible, unoccluded)
    return records.tables
