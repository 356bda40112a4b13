"""Makes the world in KITTI object layout: frames in parallel, all or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.kitti.labels import label_text
from bevkd2.data.synthetic.kitti.scene import make_frame
from bevkd2.data.synthetic.parallel import check_workers, map_indices, write_image
from bevkd2.data.synthetic.render import SceneRenderer
from bevkd2.data.synthetic.staging import write_once


def generate_kitti(
    config: KittiWorldConfig,
    out: str | Path,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a synthetic world in KITTI object layout.

    That is training/{image_2,label_2,calib} and ImageSets/{train,val}.txt. The files depend on the
    configuration alone, not on `workers`. They are written to a temporary folder beside `out` that is renamed
    when all is complete. A world of the same configuration that is already there is kept.

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
    return write_once(out, config.to_json(), overwrite, partial(_fill, config, workers, progress))


def _fill(config: KittiWorldConfig, workers: int, progress: bool, root: Path) -> None:
    for folder in ("image_2", "label_2", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    for split, names in config.splits().items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    map_indices(partial(write_frame, config, root), config.num_frames, workers, "frame", progress)


def write_frame(config: KittiWorldConfig, root: Path, index: int) -> None:
    """Write the image, the labels and the calibration of a frame.

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
