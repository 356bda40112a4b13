"""Settings of the synthetic world in nuScenes v1.0 layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from bevkd2.data.synthetic.world import SyntheticWorld


@dataclasses.dataclass(frozen=True)
class WorldConfig(SyntheticWorld):
    """Settings of a world in nuScenes layout.

    Attributes:
        num_train_scenes: scenes of the split ``synthetic_train``.
        num_val_scenes: scenes of the split ``synthetic_val``.
        frames_per_scene: key frames of a scene, 0.5 s apart; at least 2, as velocities are differences of
            positions.
        objects_per_scene: annotated boxes of a scene, all classes equally frequent.
        distractors: grey boxes of a scene that belong to no class and are not annotated.
        hue_sigma: standard deviation of an object's hue about that of its class; hues lie on a circle of
            length 1 and those of neighbouring classes are 0.1 apart.
        world_radius: metres; boxes are at most this far, in x and in y, from the position of the ego at some
            time of the scene.
        lidar_range: a box whose centre is farther than this in |x| or |y| of LIDAR_TOP (metres) gets no lidar
            points, so that neither training nor the official evaluation counts it.
        min_visible_pixels: a box with fewer visible pixels over all cameras gets no lidar points either.
        jpeg_quality: 1 to 100.
        version: name of the folder of the tables.
    """

    layout: ClassVar = "nuscenes"
    generator_version: ClassVar = 1
    # The difficulties differ in the number of boxes and in the variance of their hues.
    presets: ClassVar = {
        "easy": {"objects_per_scene": 18, "distractors": 6, "hue_sigma": 0.03},
        "medium": {"objects_per_scene": 20, "distractors": 8, "hue_sigma": 0.07},
        "hard": {"objects_per_scene": 22, "distractors": 10, "hue_sigma": 0.12},
    }
    options: ClassVar = {
        "--train-scenes": ("num_train_scenes", "scenes of synthetic_train"),
        "--val-scenes": ("num_val_scenes", "scenes of synthetic_val"),
        "--frames": ("frames_per_scene", "key frames of a scene"),
        "--objects": ("objects_per_scene", "boxes of a scene"),
        "--world-radius": ("world_radius", "metres"),
        "--lidar-range": ("lidar_range", "metres"),
        "--jpeg-quality": ("jpeg_quality", "1 to 100"),
        "--version": ("version", "name of the folder of tables"),
    }

    seed: int = 0
    num_train_scenes: int = 240
    num_val_scenes: int = 24
    frames_per_scene: int = 8
    image_size: tuple[int, int] = (176, 64)
    objects_per_scene: int = 18
    distractors: int = 6
    hue_sigma: float = 0.03
    world_radius: float = 32.0
    lidar_range: float = 32.0
    min_visible_pixels: int = 6
    jpeg_quality: int = 95
    version: str = "v1.0-synthetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train_scenes + self.num_val_scenes == 0:
            raise ValueError(
                "WorldConfig: num_train_scenes and num_val_scenes are both 0, expected at least 1 scene"
            )
        if not self.version or "/" in self.version:
            raise ValueError(f"WorldConfig.version is {self.version!r}, expected the name of a folder")

    def limits(self) -> dict[str, tuple[float, float]]:
        """Returns the smallest and the largest value of each numeric field."""
        return {
            "seed": (0, 2**63 - 1),
            "num_train_scenes": (0, 100_000),
            "num_val_scenes": (0, 100_000),
            "frames_per_scene": (2, 1000),
            "objects_per_scene": (0, 200),
            "distractors": (0, 200),
            "hue_sigma": (0.0, 1.0),
            "world_radius": (10.0, 200.0),
            "lidar_range": (0.0, 200.0),
            "min_visible_pixels": (1, 1_000_000),
            "jpeg_quality": (1, 100),
        }

    @property
    def num_scenes(self) -> int:
        """Number of scenes of both splits; those of the training split come first."""
        return self.num_train_scenes + self.num_val_scenes

    def scene_name(self, index: int) -> str:
        """Returns the name of a scene in the table ``scene`` and in splits.json.

        Args:
            index: of the scene, from 0.
        """
        return f"synthetic-{index:04d}"

    def splits(self) -> dict[str, list[str]]:
        """Returns the scene names of each split.

        The devkit reserves ``train`` and ``val`` for the scenes of nuScenes, so these splits have other
        names.
        """
        names = [self.scene_name(i) for i in range(self.num_scenes)]
        return {
            "synthetic_train": names[: self.num_train_scenes],
            "synthetic_val": names[self.num_train_scenes :],
        }

    def describe(self) -> str:
        """Returns version and splits."""
        return f"version {self.version}, splits {', '.join(self.splits())}"

    def fill(self, workers: int, progress: bool, root: Path) -> None:
        """Writes images and tables."""
        from bevkd2.data.synthetic.nuscenes.world import fill  # which imports this module

        fill(self, workers, progress, root)
