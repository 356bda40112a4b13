"""Recorded runs of PGD's head: inputs, outputs, and the same head of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bevkd2.checkpoint.import_fcos3d import from_published
from bevkd2.modeling.mono.assign import assign_locations
from bevkd2.modeling.mono.fcos3d.head import DenseHead, DenseHeadOptions, DenseOutputs, TowerShape
from bevkd2.modeling.mono.fcos3d.losses import DenseCriterion, DenseLossOptions
from bevkd2.modeling.mono.fcos3d.priors import BoxPrior
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D

# Published settings of configs/pgd: KITTI's, and nuScenes' 1x.
BIN_SIZE = 10.0
DIRECTION_OFFSET = 0.7854
KEYPOINT_RANGE = 16.0
_FIRST_RANGES = {True: (64, 128, 256), False: (48, 96, 192, 384)}
_KITTI_DEPTHS = ((28.01, 16.32),)
_KITTI_SIZES = ((0.8, 1.73, 0.6), (1.76, 1.73, 0.6), (3.9, 1.56, 1.6))
_NUSCENES_DEPTHS = (
    (31.99, 21.12),
    (37.15, 24.63),
    (39.69, 23.97),
    (40.91, 26.34),
    (34.16, 20.11),
    (22.35, 13.70),
    (24.28, 16.05),
    (27.26, 15.50),
    (20.61, 13.68),
    (22.74, 15.01),
)
_NUSCENES_SIZES = (
    (4.62, 1.73, 1.96),
    (6.93, 2.83, 2.51),
    (12.56, 3.89, 2.94),
    (11.22, 3.50, 2.95),
    (6.68, 3.21, 2.85),
    (6.68, 3.21, 2.85),
    (2.11, 1.46, 0.78),
    (0.73, 1.77, 0.67),
    (0.41, 1.08, 0.41),
    (0.50, 0.99, 2.52),
)
MAPS = ("cls", "bbox", "dir_cls", "depth_cls", "weight", "attr", "centerness")
_BRANCHES = {
    "class": "conv_cls_prev",
    "direction": "conv_dir_cls_prev",
    "centerness": "conv_centerness_prev",
    "attributes": "conv_attr_prev",
    "depth_bins": "conv_depth_cls_prev",
    "uncertainty": "conv_weight_prevs.0",
}


@dataclasses.dataclass(frozen=True)
class PGDCase:
    """The recordings of one run.

    Attributes:
        inputs: features, calibration and annotations.
        outputs: the head's maps in training.
        train: targets, losses and gradients.
        weights: of the head, under their published names.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    train: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    def double(self) -> PGDCase:
        """Returns the case with all floating-point arrays in float64."""
        parts = (self.inputs, self.outputs, self.train, self.weights)
        return PGDCase(
            *({k: v.double() if v.is_floating_point() else v for k, v in part.items()} for part in parts)
        )

    @property
    def is_kitti(self) -> bool:
        """Whether it is the setting with an uncertainty and keypoints, and without velocities."""
        return "weight/0" in self.outputs

    @property
    def strides(self) -> list[int]:
        """Pixels to a cell, level by level."""
        return self.inputs["strides"].tolist()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of every level."""
        return [(level.shape[-2], level.shape[-1]) for level in self.levels("cls")]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.outputs["cls/0"].shape[1]

    @property
    def cam2img(self) -> Tensor:
        """(4, 4) of all images."""
        recorded = self.inputs["cam2img"]
        matrix = torch.eye(4)
        matrix[: len(recorded), : len(recorded)] = recorded.float()
        return matrix

    @property
    def scenarios(self) -> list[str]:
        """The sets of annotations.

        Raises:
            KeyError: there is none.
        """
        found = sorted({key.split("/")[0] for key in self.inputs if key.endswith("/img0/gt_labels")})
        if not found:
            raise KeyError("no annotations: expected arrays <scenario>/img0/gt_labels")
        return found

    @property
    def code_weights(self) -> list[str]:
        """Names of the code weights that losses are recorded for; gradients are for the first."""
        return sorted({key.split("/")[1] for key in self.train if key.endswith("/total")})

    @property
    def detailed(self) -> str:
        """The scenario whose positives and gradients are recorded.

        Raises:
            KeyError: it is not one.
        """
        found = {key.split("/")[0] for key in self.train if "/pos/" in key or "_grad" in key}
        if len(found) != 1:
            raise KeyError(f"gradients of scenarios {sorted(found)}, expected those of one")
        return found.pop()

    def levels(self, name: str) -> list[Tensor]:
        """All levels of one recorded output; none where the head has no such output."""
        keys = [f"{name}/{level}" for level in range(len(self.strides))]
        return [self.outputs[key] for key in keys if key in self.outputs]

    def features(self) -> list[Tensor]:
        """The head's input, finest level first."""
        return [self.inputs[f"feat{level}"].float() for level in range(len(self.strides))]

    def targets(self, scenario: str) -> MonoTargets:
        """The annotations of a scenario, assigned by this package."""
        images = len(self.outputs["cls/0"])

        def lists(key: str) -> list[Tensor]:
            return [self.inputs[f"{scenario}/img{image}/{key}"] for image in range(images)]

        targets = MonoTargets(
            boxes=[CameraBoxes3D.from_bottom(boxes) for boxes in lists("gt_bboxes_3d")],
            labels=lists("gt_labels"),
            boxes2d=lists("gt_bboxes"),
            centers2d=lists("gt_centers_2d"),
            depths=lists("gt_depths"),
            attributes=None if self.is_kitti else lists("gt_attr_labels"),
            image_sizes=self.inputs["img_hw"].float().expand(images, 2),
            cam2img=self.cam2img.expand(images, 4, 4),
            affine_augmented=torch.zeros(images, dtype=torch.bool),
            grid=DenseGrid.of_levels(self.shapes, self.strides, self.cam2img.device),
        )
        first = _FIRST_RANGES[self.is_kitti]
        ranges = list(zip((-1, *first), (*first, 1e8), strict=True))
        targets.assigned = assign_locations(targets, ranges)
        return targets

    def criterion(self, code_weights: str) -> DenseCriterion:
        """The published losses, by the recordings' name of the code weights."""
        if self.is_kitti:
            return DenseCriterion(DenseLossOptions([1] * 7, depth_beta=3))
        depth = {"cw_base": 0.2, "cw_finetune": 1.0}[code_weights]
        weights = [1, 1, depth, 1, 1, 1, 1, 0.05, 0.05]
        return DenseCriterion(DenseLossOptions(weights, box2d_weight=0.2, consistency_depth="fused"))

    def head(self) -> DenseHead:
        """This package's head with the recorded weights."""
        names = {"offset": 0, "depth": 1, "size": 2, "rotation": 3, "boxes2d": 5}
        names["keypoints" if self.is_kitti else "velocity"] = 4
        branches = _BRANCHES | {name: f"conv_reg_prevs.{number}" for name, number in names.items()}
        first = self.weights["cls_convs.0.conv.weight"]
        convs = sum(key.endswith("conv.bias") for key in self.weights if key.startswith("cls_convs"))
        deformable = any("conv_offset" in key for key in self.weights)
        head = DenseHead(
            TowerShape(first.shape[1], len(first), convs, deformable),
            num_classes=self.num_classes,
            num_levels=len(self.strides),
            widths={name: self._widths(prefix) for name, prefix in branches.items()},
            prior=BoxPrior(
                self.num_classes,
                _KITTI_DEPTHS if self.is_kitti else _NUSCENES_DEPTHS,
                _KITTI_SIZES if self.is_kitti else _NUSCENES_SIZES,
            ),
            options=DenseHeadOptions(
                num_attributes=0 if self.is_kitti else len(self.weights["conv_attr.bias"]),
                velocity=not self.is_kitti,
                depth_bins=len(self.weights["conv_depth_cls.bias"]),
                uncertainty=self.is_kitti,
                keypoints=self.is_kitti,
                boxes2d=True,
            ),
        )
        imported = from_published({f"bbox_head.{key}": value for key, value in self.weights.items()})
        head.load_state_dict({key.removeprefix("head."): value for key, value in imported.state.items()})
        return head

    def _widths(self, prefix: str) -> list[int]:
        """Channels of a branch's own convolutions."""
        keys = [key for key in self.weights if key.startswith(prefix) and key.endswith("conv.bias")]
        return [len(self.weights[key]) for key in sorted(keys)]


def dense_outputs(maps: Mapping[str, list[Tensor]]) -> DenseOutputs:
    """Recorded maps by name as the head's outputs; ``bbox`` holds boxes, keypoints and 2D distances."""
    keypoints = bool(maps["weight"])
    columns = 7 if keypoints else 9
    return DenseOutputs(
        logits=maps["cls"],
        boxes=[level[:, :columns] for level in maps["bbox"]],
        direction=maps["dir_cls"],
        centerness=maps["centerness"],
        depth_bins=maps["depth_cls"],
        uncertainty=maps["weight"] or None,
        keypoints=[level[:, columns:-4] for level in maps["bbox"]] if keypoints else None,
        boxes2d=[level[:, -4:] for level in maps["bbox"]],
        attributes=maps["attr"] or None,
    )


def pgd_cases(directory: Path) -> dict[str, PGDCase]:
    """The cases of a folder, by name.

    Args:
        directory: golden/mono.

    Raises:
        FileNotFoundError: no case, or a case without one of its files.
    """
    found = sorted((directory / "heads").glob("pgd_*_outputs_train.npz"))
    if not found:
        raise FileNotFoundError(f"{directory / 'heads'} has no case: expected pgd_<name>_outputs_train.npz")
    cases = {}
    for path in found:
        name = path.name.removesuffix("_outputs_train.npz")
        parts = ("inputs", "outputs_train", "train", "weights")
        cases[name] = PGDCase(*(load_arrays(path.with_name(f"{name}_{part}.npz")) for part in parts))
    return cases


def load_arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of a file, by name."""
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
