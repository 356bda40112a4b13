"""The monocular demo: PGD on a synthetic world in KITTI layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bevkd2.cli.demo_base import TITLES, Batches, Demo, Models, Outputs, largest_gain, save_pictures
from bevkd2.config import CfgNode, class_names, load_config
from bevkd2.data.synthetic import KittiWorldConfig
from bevkd2.kitti import ap_by_distance
from bevkd2.kitti.files import find_frames, read_frame_list
from bevkd2.visualization import (
    BEVFrame,
    DrawnObjects,
    draw_ap_by_distance,
    draw_found,
    fitting_extent,
    mono_figures,
    scores_by_distance,
    see_image,
)

# Column of the table -> key of AP_R40 in kitti_scores.json.
CAR_SCORES = {
    f"{title}_{difficulty}": f"car/{metric}/{difficulty}"
    for title, metric in (("3D", "3d"), ("BEV", "bev"))
    for difficulty in ("easy", "moderate", "hard")
}
_SCORE = 0.3  # least score of what is drawn
DISTANCES = (0, 12, 16, 20, math.inf)  # metres; the world's objects are 7 to 26 m away


class MonocularDemo(Demo):
    """Monocular detectors on a world in KITTI layout."""

    name = "demo_mono"
    summary = (
        "The monocular story on a synthetic world in KITTI layout: "
        "make it, train plainly, by the paper's method and as recommended, score."
    )
    world = KittiWorldConfig
    world_title = "the synthetic world in KITTI layout"
    unit = "frames"
    sizes = (480, 120)
    teacher_world = "the first 480 frames of world 0"
    columns = tuple(CAR_SCORES)
    primary = ("3D_moderate", "Car_3D_moderate_R40")
    score_format = ".2f"
    footnote = "Cars, AP|R40 at IoU 0.7 in percent, by KITTI's rules, on {} held-out synthetic frames."

    def scores(self, folder: Path) -> dict[str, float | None]:
        """Returns the cars' AP|R40 (percent) that the evaluation wrote for one model."""
        ap = json.loads((folder / "kitti_scores.json").read_text())["AP_R40"]
        return {name: ap.get(key) for name, key in CAR_SCORES.items()}

    def draw(
        self, models: Models, batches: Batches, outputs: Mapping[str, Outputs], cfg: CfgNode, output: Path
    ) -> list[Path]:
        """Draws a frame, and the cars' AP by distance.

        The frame is the one in which the recommended student finds most that the plain one misses; of it:
        boxes, what is found, FPN features and the perspective matrix.
        """
        distillation = load_config(self.config_file("distill"))
        classes = class_names(distillation)
        chosen = largest_gain(batches, outputs, _SCORE)
        sample = batches[chosen][0]
        views = {TITLES[name]: see_image(model, sample) for name, model in models.items()}
        figures = mono_figures(sample, views, classes, perspective=distillation.DISTILL.PERSPECTIVE_FEATURE)
        short = {f"detections_{TITLES[name]}": f"detections_{name}" for name in models}
        pictures = {short.get(name, name): figure for name, figure in figures.items()}
        truth = DrawnObjects.from_dict(sample)
        found = {TITLES[name]: DrawnObjects.from_dict(outputs[name].detections[chosen]) for name in models}
        frame = BEVFrame(fitting_extent(truth), 420)
        pictures["found"] = draw_found(frame, truth, found, score_threshold=_SCORE)

        data = Path(cfg.DATASETS.ROOT)
        split = read_frame_list(data / "ImageSets" / "val.txt")
        bars = {}
        for name, title in TITLES.items():
            frames = find_frames(data / "training", output / name / "inference", split)
            bars[title] = scores_by_distance(ap_by_distance(*frames.read(), DISTANCES))
        pictures["ap_by_distance"] = draw_ap_by_distance(bars, "Cars, 3D IoU 0.7, moderate")
        return save_pictures(pictures, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo from end to end; returns the exit status."""
    return MonocularDemo().run(argv)
