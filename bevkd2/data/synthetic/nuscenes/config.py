"""Parameters of the synthetic world."""

from __future__ import annotations

import dataclasses
from typing import Any

from bevkd2.data.synthetic.limits import check_difficulty, check_image_size, check_ranges

GENERATOR_VERSION = 1
"""Raised whenever the same configuration would give other files."""

PRESETS: dict[str, dict[str, Any]] = {
    "easy": {"objects_per_scene": 18, "distractors": 6, "hue_sigma": 0.03},
    "medium": {"objects_per_scene": 20, "distractors": 8, "hue_sigma": 0.07},
    "hard": {"objects_per_scene": 22, "distractors": 10, "hue_sigma": 0.12},
}
"""Difficulty: how many boxes there are, and how far their colours stray from the hue of their class."""


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """What a synthetic world is made of. Equal configurations give equal files, byte for byte.

    Attributes:
        seed: every scene draws from a generator of its own, seeded by (seed, index of the scene).
        num_train_scenes: scenes of the split `synthetic_train`.
        num_val_scenes: scenes of the split `synthetic_val`.
        frames_per_scene: key frames of a scene, 0.5 s apart; at least 2, as velocities are differences of
            positions.
        image_size: (width, height) of every image in pixels.
        objects_per_scene: annotated boxes of a scene, all classes equally frequent.
        distractors: grey boxes of a scene that belong to no class and are not annotated.
        hue_sigma: standard deviation of an object's hue about that of its class; hues lie on a circle of
            length 1 and those of neighbouring classes are 0.1 apart.
        world_radius: boxes lie within this many metres, in x and in y, of where the ego is at some time of
            the scene.
        lidar_range: a box whose centre is farther than this in |x| or |y| of LIDAR_TOP (metres) gets no lidar
            points, so that neither training nor the official evaluation counts it.
        min_visible_pixels: a box with fewer visible pixels over all cameras gets no lidar points either.
        jpeg_quality: 1 to 100.
        version: name of the folder with the tables.
    """

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
        limits = {
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
        check_ranges(self, limits)
        check_image_size(self, self.image_size)
        if self.num_train_scenes + self.num_val_scenes == 0:
            raise ValueError(
                "WorldConfig: num_train_scenes and num_val_scenes are both 0, expected one scene at least"
            )
        if not self.version or "/" in self.version:
            raise ValueError(f"WorldConfig.version is {self.version!r}, expected the name of a folder")

    @classmethod
    def preset(cls, difficulty: str, **overrides: Any) -> WorldConfig:
        """The configuration of a difficulty.

        Args:
            difficulty: "easy", "medium" or "hard".
            **overrides: fields that replace the preset's.

        Returns:
            The configuration.

        Raises:
            ValueError: for another difficulty, or a field out of its range.
        """
        check_difficulty(difficulty, PRESETS)
        return cls(**{**PRESETS[difficulty], **overrides})

    @property
    def num_scenes(self) -> int:
        """Scenes of both splits; those of the training split come first."""
        return self.num_train_scenes + self.num_val_scenes

    def scene_name(self, index: int) -> str:
        """Name of a scene in the table `scene` and in splits.json."""
        return f"synthetic-{index:04d}"

    def splits(self) -> dict[str, list[str]]:
        """Scene names of every split.

        The devkit reserves `train` and `val` for nuScenes's own scenes, so custom splits need other names.
        """
        names = [self.scene_name(i) for i in range(self.num_scenes)]
        return {
            "synthetic_train": names[: self.num_train_scenes],
            "synthetic_val": names[self.num_train_scenes :],
        }

    def to_json(self) -> dict[str, Any]:
        """The fields and the generator's version, as they are kept in synthetic.json."""
        fields = {**dataclasses.asdict(self), "image_size": list(self.image_size)}
        return {"generator_version": GENERATOR_VERSION, "config": fields}
