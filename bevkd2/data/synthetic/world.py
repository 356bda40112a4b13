"""Makes the world: scenes in parallel, tables in order, all or nothing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from bevkd2.data.synthetic.config import WorldConfig
from bevkd2.data.synthetic.render import SceneRenderer
from bevkd2.data.synthetic.scene import FRAME_INTERVAL, make_scene
from bevkd2.data.synthetic.tables import MAP_FILE, SceneTables, Tables, image_path, write_tables
from bevkd2.structures import CAMERA_NAMES

logger = logging.getLogger(__name__)

MARKER = "synthetic.json"
"""File in the dataset's root that says which configuration and generator made it."""


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
    out = Path(out)
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if _is_up_to_date(config, out, overwrite):
        logger.info("%s already holds this synthetic world; kept", out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(config, staging, workers, progress)
        staging.chmod(0o755)
        _publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _is_up_to_date(config: WorldConfig, out: Path, overwrite: bool) -> bool:
    """Whether `out` holds this world; raises where it holds what must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    marker = out / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f"{out} exists and is not a synthetic world (it has no {MARKER}), so it is never replaced; "
            "name another folder with --out"
        )
    found, wanted = json.loads(marker.read_text()), config.to_json()
    if found == wanted:
        return True
    if not overwrite:
        raise FileExistsError(
            f"{out} holds a synthetic world of another configuration ({_difference(found, wanted)}); "
            "name another folder with --out, or replace it with --overwrite"
        )
    return False


def _difference(found: dict, wanted: dict) -> str:
    if found.get("generator_version") != wanted["generator_version"]:
        return f"generator version {found.get('generator_version')}, now {wanted['generator_version']}"
    old, new = found.get("config", {}), wanted["config"]
    return ", ".join(f"{key}: {old.get(key)}, now {new[key]}" for key in new if old.get(key) != new[key])


def _publish(staging: Path, out: Path) -> None:
    """Put the finished folder in the place of `out`."""
    if out.is_dir() and any(out.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.replace(old)
        staging.replace(out)
        shutil.rmtree(old)
    else:
        staging.replace(out)


def _fill(config: WorldConfig, root: Path, workers: int, progress: bool) -> None:
    for camera in CAMERA_NAMES:
        (root / "samples" / camera).mkdir(parents=True)
    _write_image(root / MAP_FILE, np.zeros((16, 16, 3), dtype=np.uint8), [])
    bar = tqdm(
        _scene_tables(config, root, workers), total=config.num_scenes, unit="scene", disable=not progress
    )
    write_tables(config, list(bar), root)
    (root / MARKER).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def _scene_tables(config: WorldConfig, root: Path, workers: int) -> Iterator[Tables]:
    """The tables of every scene, in order; the images are written on the way."""
    make = partial(write_scene, config, root)
    if workers == 1:
        yield from map(make, range(config.num_scenes))
        return
    # Forking a process that runs threads (torch's, OpenCV's) can deadlock; a fresh interpreter cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.map(make, range(config.num_scenes))


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
            _write_image(root / image_path(config, index, frame, camera), view.image, quality)
            visible += view.visible
            unoccluded += view.unoccluded
        records.add_frame(frame, visible, unoccluded)
    return records.tables


def _write_image(path: Path, image: np.ndarray, options: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
