"""SMOKE as a module from tensors to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevkd2.modeling.deployable import Port
from bevkd2.modeling.mono.deployable import BOX_COLUMNS, DeployableMono
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.smoke.decode import best_peaks

if TYPE_CHECKING:
    from bevkd2.modeling.mono.smoke.smoke import SMOKE


class DeployableSmoke(DeployableMono):
    """SMOKE: the highest peaks; the threshold is the runtime's, and there is no suppression."""

    def __init__(self, detector: SMOKE, image_size: tuple[int, int]) -> None:
        """Names the outputs; arguments as the base."""
        super().__init__(detector, image_size)
        ((rows, columns),) = DenseGrid.of_image(self.image_size, detector.neck.strides, "meta").shapes
        found = min(detector.max_detections, detector.num_classes * rows * columns)
        self.outputs: Sequence[Port] = (
            Port("boxes", (found, 7), torch.float32, BOX_COLUMNS),
            Port("scores", (found,), torch.float32, "0 to 1, in descending order"),
            Port("labels", (found,), torch.int64, "index into classes"),
        )

    def forward(self, images: Tensor, image_sizes: Tensor, cam2img: Tensor) -> tuple[Tensor, ...]:
        """Runs the images; see ``inputs`` and ``outputs``."""
        detector = self.detector
        outputs = detector.extract(self.prepare(images, image_sizes, cam2img)).outputs
        return best_peaks(outputs, detector.coder, cam2img, image_sizes, detector.max_detections)

    def description(self) -> dict[str, Any]:
        """Returns the threshold as well."""
        return {**super().description(), "score_threshold": self.detector.score_threshold}
