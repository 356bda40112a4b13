"""Settings of the synthetic world in KITTI object layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from bevkd2.data.synthetic.world import SyntheticWorld


@dataclasses.dataclass(frozen=True)
class KittiWorldConfig(SyntheticWorld):
    """Settings of a world in KITTI layout.

    Attributes:
        num_train_frames: frames of ImageSets/train.txt, numbered from 0; each is a scene of its own.
        num_val_frames: frames of ImageSets/val.txt, numbered on from there.
        horizontal_fov: field of view in degrees, from the left to the right border of the image.
        focal_sigma: standard deviation of a frame's focal length, as a share of it; KITTI's days differ by
            about 0.01.
        min_objects: smallest number of objects that are drawn for a frame, of all classes. An object that
            finds no free place is left out, so a frame may have fewer.
        max_objects: largest number.
        distractors: grey boxes beside the road that belong to no class and have no label.
        nearest: smallest distance in metres from the camera to an object.
        farthest: largest distance in metres from the camera to the centre of an object. The logarithm of the
            distance is drawn uniformly, since near objects are larger in the image.
        overlap: largest share of an object's width in the image that a single nearer object may cover.
        hue_sigma: standard deviation of an object's hue about that of its class, on a circle of length 1.
        size_sigma: standard deviation of the logarithm of an object's length, width and height about its
            class's mean.
        label_range: metres; an object with its centre farther ahead of the camera is labelled DontCare.
        min_visible_pixels: an object with fewer visible pixels is labelled DontCare; one without any has no
            label.
    """

    layout: ClassVar = "kitti"
    generator_version: ClassVar = 1
    # The difficulties differ in the number of objects, their overlap, and the variance of hues and sizes.
    presets: ClassVar = {
        "easy": {"max_objects": 8, "distractors": 4, "hue_sigma": 0.02, "size_sigma": 0.03, "overlap": 0.4},
        "medium": {
            "max_objects": 10,
            "distractors": 6,
            "hue_sigma": 0.05,
            "size_sigma": 0.05,
            "overlap": 0.6,
        },
        "hard": {"max_objects": 12, "distractors": 8, "hue_sigma": 0.1, "size_sigma": 0.08, "overlap": 0.9},
    }
    options: ClassVar = {
        "--train-frames": ("num_train_frames", "frames of train.txt"),
        "--val-frames": ("num_val_frames", "frames of val.txt"),
        "--horizontal-fov": ("horizontal_fov", "degrees"),
        "--focal-sigma": ("focal_sigma", "relative standard deviation of focal lengths"),
        "--min-objects": ("min_objects", "smallest number of objects of a frame"),
        "--max-objects": ("max_objects", "largest number of objects of a frame"),
        "--nearest": ("nearest", "smallest distance of objects in metres"),
        "--farthest": ("farthest", "largest distance of objects in metres"),
        "--overlap": ("overlap", "largest share of an object that another may occlude"),
        "--size-sigma": ("size_sigma", "relative standard deviation of sizes"),
        "--label-range": ("label_range", "metres; farther objects are DontCare"),
        "--min-visible-pixels": ("min_visible_pixels", "objects with fewer visible pixels are DontCare"),
    }

    seed: int = 0
    num_train_frames: int = 480
    num_val_frames: int = 120
    image_size: tuple[int, int] = (416, 128)
    horizontal_fov: float = 65.0
    focal_sigma: float = 0.002
    min_objects: int = 4
    max_objects: int = 8
    distractors: int = 4
    nearest: float = 7.0
    farthest: float = 28.0
    overlap: float = 0.4
    hue_sigma: float = 0.02
    size_sigma: float = 0.03
    label_range: float = 26.0
    min_visible_pixels: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames == 0:
            raise ValueError(
                "KittiWorldConfig: num_train_frames and num_val_frames are both 0, expected at least 1 frame"
            )

    def limits(self) -> dict[str, tuple[float, float]]:
        """Returns the smallest and the largest value of each numeric field."""
        return {
            "seed": (0, 2**63 - 1),
            "num_train_frames": (0, 100_000),
            "num_val_frames": (0, 100_000),
            "horizontal_fov": (20.0, 120.0),
            "focal_sigma": (0.0, 0.1),
            "min_objects": (0, self.max_objects),
            "max_objects": (0, 100),
            "distractors": (0, 100),
            "nearest": (2.0, self.farthest),
            "farthest": (10.0, 200.0),
            "overlap": (0.0, 1.0),
            "hue_sigma": (0.0, 1.0),
            "size_sigma": (0.0, 0.2),
            "label_range": (0.0, 200.0),
            "min_visible_pixels": (1, 1_000_000),
        }

    @property
    def num_frames(self) -> int:
        """Number of frames of both splits; those of the training split come first."""
        return self.num_train_frames + self.num_val_frames

    def splits(self) -> dict[str, list[str]]:
        """Returns the frame names (six digits) of each split, by the name of its file in ImageSets."""
        names = [f"{i:06d}" for i in range(self.num_frames)]
        return {"train": names[: self.num_train_frames], "val": names[self.num_train_frames :]}

    def describe(self) -> str:
        """Returns the splits."""
        return f"KITTI layout, splits {', '.join(self.splits())}"

    def fill(self, workers: int, progress: bool, root: Path) -> None:
        """Writes images, labels, calibrations and frame lists."""
        from bevkd2.data.synthetic.kitti.world import fill  # which imports this module

        fill(self, workers, progress, root)
