"""BEVFormer as a module from tensors to tensors: one key frame and the previous bird's-eye view."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevkd2.modeling.bev.box_coder import best_pairs
from bevkd2.modeling.bev.inputs import Frames
from bevkd2.modeling.deployable import DeployableDetector, Port, example_images
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.runtime.ego import CAN_BUS_SIZE

if TYPE_CHECKING:
    from bevkd2.modeling.bev.bevformer import BEVFormer


class DeployableBEVFormer(DeployableDetector):
    """Runs the detector's own parts on one key frame; the caller keeps the state between frames."""

    kind = "multi_view"

    def __init__(self, detector: BEVFormer, image_size: tuple[int, int]) -> None:
        """Names inputs and outputs.

        Args:
            detector: in eval mode.
            image_size: height and width of the images, before padding.
        """
        super().__init__()
        self.detector, self.image_size = detector, image_size
        cameras, channels = detector.num_cameras, detector.neck.out_channels
        cells = math.prod(detector.bev_shape)
        found = min(detector.decoding.max_detections, len(detector.object_queries) * detector.num_classes)
        self.inputs = (
            Port("images", (cameras, 3, *image_size), torch.uint8, "RGB; the graph normalises and pads"),
            Port(
                "lidar2img",
                (cameras, 4, 4),
                torch.float32,
                "metres in the frame of the boxes to (u * depth, v * depth, depth, 1), pixels of images",
            ),
            Port(
                "can_bus",
                (CAN_BUS_SIZE,),
                torch.float64,
                "of this frame, absolute: ego position (3, m, global frame), ego quaternion (4, w x y z), "
                "acceleration (3, m/s^2), rotation rate (3, rad/s), velocity (3, m/s), yaw (rad), yaw (deg)",
            ),
            Port("previous_can_bus", (CAN_BUS_SIZE,), torch.float64, "of the frame that made previous_bev"),
            Port("previous_bev", (cells, channels), torch.float32, "bev of the scene's frame before"),
            Port(
                "has_previous",
                (),
                torch.bool,
                "False in the first frame of a scene: the two previous inputs are then not read",
            ),
        )
        self.outputs = (
            Port(
                "boxes",
                (found, 9),
                torch.float32,
                "x, y, z of the gravity centre, length, width, height (m), yaw (rad, about z from +x), "
                "vx, vy (m/s)",
            ),
            Port("scores", (found,), torch.float32, "0 to 1, in descending order"),
            Port("labels", (found,), torch.int64, "index into classes"),
            Port("bev", (cells, channels), torch.float32, "previous_bev of the scene's next frame"),
        )

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        can_bus: Tensor,
        previous_can_bus: Tensor,
        previous_bev: Tensor,
        has_previous: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs one frame of each sample; see ``inputs`` and ``outputs``."""
        detector = self.detector
        batch, cameras = images.shape[:2]
        pixels = detector.pixels([images.flatten(0, 1)])[0].unflatten(0, (batch, cameras))
        size = torch.tensor(self.image_size, dtype=torch.float32, device=images.device)
        frames = Frames(
            images=pixels,
            image_sizes=size.expand(batch, cameras, 2),
            lidar2img=lidar2img,
            can_bus=can_bus,
            scene_tokens=[],
            timestamps=[],
            rows=[],
        )
        features, _ = detector.features(frames, frozenset())
        motion = detector.geometry.motion(can_bus, previous_can_bus, has_previous)
        encoded, _ = detector.encode_bev(features, frames, motion, previous_bev, has_previous)
        bev = encoded.bev_embed
        decoded = detector.decode(BEVKnowledge(bev_embed=bev), detector.object_queries)
        boxes, scores, labels = best_pairs(
            decoded.class_logits[-1], decoded.box_codes[-1], detector.decoding.max_detections
        )
        return boxes, scores, labels, bev

    def examples(self, batch: int) -> tuple[Tensor, ...]:
        """Returns noise, seen by cameras that look in all directions, and no past."""
        detector = self.detector
        height, width = self.image_size
        intrinsics = torch.eye(4)
        intrinsics[0, 0] = intrinsics[1, 1] = width / 2
        intrinsics[0, 2], intrinsics[1, 2] = width / 2, height / 2
        matrices = []
        for camera in range(detector.num_cameras):
            angle = torch.tensor(2 * math.pi * camera / detector.num_cameras)
            rig = torch.eye(4)
            rig[0, :2] = torch.stack([angle.sin(), -angle.cos()])
            rig[1, 1], rig[1, 2] = 0.0, -1.0
            rig[2, :3] = torch.stack([angle.cos(), angle.sin(), angle * 0])
            matrices.append(intrinsics @ rig)
        cells, channels = math.prod(detector.bev_shape), detector.neck.out_channels
        motion = torch.zeros(batch, CAN_BUS_SIZE, dtype=torch.float64)
        return (
            example_images(batch, detector.num_cameras, 3, height, width),
            torch.stack(matrices).expand(batch, -1, -1, -1).clone(),
            motion,
            motion.clone(),
            torch.zeros(batch, cells, channels),
            torch.zeros(batch, dtype=torch.bool),
        )

    def description(self) -> dict[str, Any]:
        """Returns the frame, and what is left for the runtime: the range and the threshold of scores."""
        decoding = self.detector.decoding
        return {
            "frame": "LIDAR_TOP at the frame's time: x right, y forward, z up",
            "post_center_range": [float(x) for x in decoding.post_center_range],
            "score_threshold": decoding.score_threshold,
            "bev_shape": list(self.detector.bev_shape),
        }
