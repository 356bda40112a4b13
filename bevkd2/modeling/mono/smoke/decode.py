"""Decodes SMOKE's maps to boxes (Liu et al., arXiv 2002.10111, section 3.2.2, Eqs. 1 to 4)."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bevkd2.modeling.mono.smoke.head import SmokeOutputs
from bevkd2.modeling.scores import check_scores
from bevkd2.structures import CameraBoxes3D, unproject_points, wrap_angle


@dataclasses.dataclass(frozen=True)
class SmokeCoder:
    """Converts codes to metres and radians."""

    depth_prior: tuple[float, float]
    """Mean and deviation of depths, metres."""
    size_priors: tuple[tuple[float, float, float], ...]
    """Typical length, height, width of every class, metres."""
    stride: int
    """Stride of the map in pixels."""

    def depth(self, code: Tensor) -> Tensor:
        """Decodes depths (Eq. 1).

        Args:
            code: of any shape, the first numbers of box codes.

        Returns:
            Metres, as the projection defines depth, of the same shape.
        """
        mean, deviation = self.depth_prior
        return mean + deviation * code

    def decode(
        self,
        codes: Tensor,
        cells: Tensor,
        labels: Tensor,
        cam2img: Tensor,
        heading_centers: Tensor | None = None,
    ) -> CameraBoxes3D:
        """Lifts cells into the camera's frame.

        ``cam2img`` is right for the network's input, shifted or scaled as that may be. So the location is the
        inverse projection of the pixel, and equals the published code's, which first maps the pixel back to
        the original image by the affine and then unprojects with the original calibration.

        Args:
            codes: (P, 8), as in :class:`SmokeOutputs`.
            cells: (P, 2) int64 x, y.
            labels: (P,) int64, which choose the typical size.
            cam2img: (P, 4, 4).
            heading_centers: (P, 3) centres whose azimuth turns a local heading into rotation_y (Eq. 4); None:
                the decoded ones. The published training takes the annotated ones.

        Returns:
            P boxes, seven columns, differentiable; rotation_y in [-pi, pi).
        """
        pixels = (cells + codes[:, 1:3]) * self.stride
        depth = self.depth(codes[:, :1])
        centers = unproject_points(pixels[:, None], depth, cam2img)[:, 0]
        sizes = codes.new_tensor(self.size_priors)[labels] * codes[:, 3:6].exp()
        x, _, z = (centers if heading_centers is None else heading_centers).unbind(dim=1)
        # The published code adds or takes a quarter turn by the cosine's sign, which is atan2 of both.
        local = torch.atan2(codes[:, 6], codes[:, 7]) - math.pi / 2
        # Behind the camera, where no object is, this too is as published: the arc tangent of x / z.
        azimuth = torch.atan2(x.where(z >= 0, -x), z.abs())
        heading = wrap_angle(local + azimuth)
        return CameraBoxes3D(torch.cat([centers, sizes[:, [0, 2, 1]], heading[:, None]], dim=1))


def boxes_of_all(outputs: SmokeOutputs, coder: SmokeCoder, cam2img: Tensor) -> Tensor:
    """Lifts all cells into the camera's frame, each with the size of its most likely class.

    Args:
        outputs: of the head.
        coder: of the model.
        cam2img: (B, 4, 4).

    Returns:
        (B, cells, 7) in the layout of CameraBoxes3D, differentiable.
    """
    images, _, rows, columns = outputs.codes.shape
    y, x = torch.meshgrid(
        torch.arange(rows, device=cam2img.device),
        torch.arange(columns, device=cam2img.device),
        indexing="ij",
    )
    cells = torch.stack([x.flatten(), y.flatten()], dim=1)
    labels = outputs.logits.argmax(dim=1).flatten(1)
    boxes = coder.decode(
        outputs.codes.flatten(2).transpose(1, 2).flatten(0, 1),
        cells.repeat(images, 1),
        labels.flatten(),
        cam2img.repeat_interleave(len(cells), dim=0),
    )
    return boxes.tensor.view(images, len(cells), -1)


def detect(
    outputs: SmokeOutputs,
    coder: SmokeCoder,
    *,
    cam2img: Tensor,
    image_sizes: Tensor,
    max_detections: int,
    score_threshold: float,
) -> list[dict[str, Tensor | CameraBoxes3D]]:
    """Returns the highest peaks of the heat map, lifted; only cells that are not peaks are suppressed.

    Args:
        outputs: of the head.
        coder: of the model.
        cam2img: (B, 4, 4).
        image_sizes: (B, 2) height and width in pixels before padding; cells in the padding are no peaks.
        max_detections: most detections per image.
        score_threshold: detections must be above it.

    Returns:
        One entry per image: ``boxes`` (k of them), ``scores`` (k,) in descending order, ``labels`` (k,).

    Raises:
        ValueError: a score is NaN.
    """
    check_scores(outputs.logits)
    boxes, scores, labels = best_peaks(outputs, coder, cam2img, image_sizes, max_detections)
    return [
        {"boxes": CameraBoxes3D(boxes[row, kept]), "scores": scores[row, kept], "labels": labels[row, kept]}
        for row, kept in enumerate(scores > score_threshold)
    ]


def best_peaks(
    outputs: SmokeOutputs, coder: SmokeCoder, cam2img: Tensor, image_sizes: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the ``count`` highest peaks of each heat map, or all cells where there are fewer, lifted.

    Args:
        outputs, coder, cam2img, image_sizes: of :func:`detect`.
        count: M.

    Returns:
        Boxes (B, M, 7) in the layout of CameraBoxes3D, scores (B, M) in descending order, and labels (B, M)
        int64. The score of what is no peak is 0.
    """
    peaks = _peaks(outputs.logits.sigmoid(), image_sizes, coder.stride)
    height, width = peaks.shape[2:]
    flat = peaks.flatten(1)
    scores, index = flat.topk(min(count, flat.shape[1]))
    labels, cells = index // (height * width), index % (height * width)
    codes = outputs.codes.flatten(2).transpose(1, 2)
    codes = codes.gather(1, cells[..., None].expand(-1, -1, codes.shape[2]))
    places = torch.stack([cells % width, cells // width], dim=-1)
    calibration = cam2img[:, None].expand(-1, cells.shape[1], -1, -1)
    boxes = coder.decode(
        codes.flatten(0, 1), places.flatten(0, 1), labels.flatten(), calibration.flatten(0, 1)
    )
    return boxes.tensor.unflatten(0, index.shape), scores, labels


def _peaks(scores: Tensor, image_sizes: Tensor, stride: int) -> Tensor:
    """Returns the scores of the cells that are the largest of their 3 x 3 neighbours, and 0 elsewhere."""
    y, x = (torch.arange(n, device=scores.device) * stride for n in scores.shape[2:])
    inside = (y < image_sizes[:, :1])[:, None, :, None] & (x < image_sizes[:, 1:])[:, None, None, :]
    scores = scores.where(inside, 0)
    return scores.where(F.max_pool2d(scores, 3, stride=1, padding=1) == scores, 0)
