"""Makes the world in KITTI object layout: frames in parallel, all or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.kitti.labels import label_text
from bevkd2.data.synthetic.kitti.scene import make_frame
from bevkd2.data.synthetic.parallel import map_indices, write_image
from bevkd2.data.synthetic.render import SceneRenderer


def fill(config: KittiWorldConfig, workers: int, progress: bool, root: Path) -> None:
    """Writes the world below ``root``; see ``SyntheticWorld.fill``."""
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
        root: the dataset's root; the folders exist.
        index: of the frame.
    """
    frame = make_frame(config, index)
    view = SceneRenderer(frame.scene, config.image_size).render(frame.scene.rig[0], 0.0)
    folder, name = root / "training", f"{index:06d}"
    write_image(folder / "image_2" / f"{name}.png", view.image, [])
    (folder / "label_2" / f"{name}.txt").write_text(label_text(config, frame, view))
    (folder / "calib" / f"{name}.txt").write_text(frame.calibration.to_text())
