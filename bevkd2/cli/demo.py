"""The multi-view demo: BEVFormer on a synthetic world in nuScenes layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bevkd2.cli.demo_base import TITLES, Batches, Demo, Models, Outputs, largest_gain, save_pictures
from bevkd2.config import CfgNode, class_names
from bevkd2.data.synthetic import WorldConfig
from bevkd2.nuscenes.layout import TP_ERRORS
from bevkd2.visualization import (
    BEVFrame,
    DrawnObjects,
    bev_response,
    camera_images,
    detection_figure,
    draw_bev_responses,
    draw_found,
)

_SCORE = 0.25  # least score of what is drawn


class MultiViewDemo(Demo):
    """BEVFormer on six cameras of a world in nuScenes layout."""

    name = "demo"
    summary = (
        "Make a synthetic world; train a student plainly, by the paper's method and as recommended; score "
        "all."
    )
    world = WorldConfig
    world_title = "the synthetic world"
    unit = "scenes"
    sizes = (144, 24)
    teacher_world = "the first 720 scenes of world 1"
    columns = ("mAP", "NDS", *TP_ERRORS)
    primary = ("mAP", "mAP")
    score_format = ".3f"
    footnote = "Scored by the official nuScenes devkit on {} held-out synthetic scenes."

    def scores(self, folder: Path) -> dict[str, float | None]:
        """Returns what the official devkit wrote for one model."""
        official = json.loads((folder / "metrics_summary.json").read_text())
        errors = {name: official["tp_errors"][key] for name, key in TP_ERRORS.items()}
        return {"mAP": official["mean_ap"], "NDS": official["nd_score"], **errors}

    @torch.no_grad()
    def draw(
        self, models: Models, batches: Batches, outputs: Mapping[str, Outputs], cfg: CfgNode, output: Path
    ) -> list[Path]:
        """Draws cameras, boxes from above, what is found and BEV responses of a frame.

        It is the one in which the recommended student finds most that the plain one misses.
        """
        chosen = largest_gain(batches, outputs, _SCORE)
        scene = batches[chosen][0]["scene_token"]
        frames = [batch for batch in batches[: chosen + 1] if batch[0]["scene_token"] == scene]
        sample = frames[-1][0]
        truth = DrawnObjects.from_dict({"boxes": sample["boxes"], "labels": sample["labels"]})
        low_x, low_y, _, high_x, high_y, _ = cfg.INPUT.POINT_RANGE
        extent = (low_x, low_y, high_x, high_y)
        cameras = tuple(cfg.INPUT.CAMERAS)
        images = camera_images(sample["images"].numpy(), cameras)
        matrices = dict(zip(cameras, sample["lidar2img"].double().numpy(), strict=True))
        pictures, responses, found = {}, {}, {}
        for name, model in models.items():
            model.train().eval()  # a new stream of frames
            for batch in frames[:-1]:
                model(batch)
            found[TITLES[name]] = DrawnObjects.from_dict(outputs[name].detections[chosen])
            knowledge = model.extract(model.preprocess(frames[-1]))
            embed = knowledge.bev_embed[0].double().numpy()
            responses[TITLES[name]] = bev_response(embed, knowledge.bev_shape)
            pictures[name] = detection_figure(
                images,
                matrices,
                truth,
                found[TITLES[name]],
                title=f"{TITLES[name]}, {sample['sample_id']}",
                class_names=class_names(cfg),
                extent=extent,
                score_threshold=_SCORE,
            )
        pictures["found"] = draw_found(BEVFrame(extent, 360), truth, found, score_threshold=_SCORE)
        pictures["bev_response"] = draw_bev_responses(responses, BEVFrame(extent, 360), truth)
        return save_pictures(pictures, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo from end to end; returns the exit status."""
    return MultiViewDemo().run(argv)
