"""Makes the world in nuScenes layout: scenes in parallel, tables in order, all or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.nuscenes.scene import FRAME_INTERVAL, make_scene
from bevkd2.data.synthetic.nuscenes.tables import MAP_FILE, SceneTables, Tables, image_path, write_tables
from bevkd2.data.synthetic.parallel import check_workers, map_indices, write_image
from bevkd2.data.synthetic.render import SceneRenderer
from bevkd2.data.synthetic.staging import write_once
from bevkd2.structures import CAMERA_NAMES


def generate(
    config: WorldConfig, out: str | Path, workers: int = 1, overwrite: bool = False, progress: bool = True
) -> Path:
    """Write a synthetic world in nuScenes v1.0 layout.

    The files depend on the configuration alone, not on `workers`. They are written to a temporary folder
    beside `out` that is renamed when all is complete. A world of the same configuration that is already there
    is kept.

    Args:
        config: what to make.
        out: root of the dataset.
        workers: processes.
        overwrite: replace a synthetic world of another configuration.
        progress: show a progress bar.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` holds another world and `overwrite` is off, or it holds anything else.
        ValueError: `workers` is not positive.
    """
    check_workers(workers)
    fill = partial(_fill, config, workers, progress)
    return write_once(out, config.to_json(), overwrite, fill)


def _fill(config: WorldConfig, workers: int, progress: bool, root: Path) -> None:
    for camera in CAMERA_NAMES:
        (root / "samples" / camera).mkdir(parents=True)
    write_image(root / MAP_FILE, np.zeros((16, 16, 3), dtype=np.uint8), [])
    make = partial(write_scene, config, root)
    write_tables(config, map_indices(make, config.num_scenes, workers, "scene", progress), root)


def write_scene(config: WorldConfig, root: Path, index: int) -> Tables:
    """Render a scene's images below `root`.

    Args:
        config: the world.
        root: the dataset's root; the folders of the cameras exist.
        index: of the scene.

    Returns:
        The scene's records, by table.
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
