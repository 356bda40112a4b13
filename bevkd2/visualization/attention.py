"""Pictures of spatial cross-attention: the points that a BEV cell samples (BEVFormer, Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.camera_view import mosaic
from bevkd2.visualization.canvas import heat_map, resize
from bevkd2.visualization.objects import Array, Image


def sampling_pixels(
    reference_points: Array,
    offsets: Array,
    spatial_shapes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
) -> Array:
    """Computes the pixels that one BEV cell samples in every camera.

    Args:
        reference_points: (N, Z, 2) pillar points of the cell: x, y as fractions of the padded image.
        offsets: (M, L, P, 2) x, y in cells of each feature level; point p belongs to pillar point p % Z.
        spatial_shapes: (h, w) of every level.
        image_size: height and width in pixels of the padded image.

    Returns:
        (N, M, L, P, 2) x, y in pixels.
    """
    levels = np.array([(w, h) for h, w in spatial_shapes], dtype=np.float64)
    num_points, num_heights = offsets.shape[2], reference_points.shape[1]
    anchors = reference_points[:, np.arange(num_points) % num_heights]
    locations = anchors[:, None, None] + offsets / levels[:, None]
    pixels: Array = locations * np.array([image_size[1], image_size[0]])
    return pixels


def draw_samples(image: Image, pixels: Array, weights: Array, scale: float = 1.0) -> Image:
    """Draws sampling points; the larger the weight, the larger and brighter the point.

    Args:
        image: (H, W, 3) RGB, drawn darker so that the points stand out.
        pixels: (K, 2) x, y; points outside the image are not drawn.
        weights: (K,) attention weights, not negative.
        scale: the image is resized by this factor.

    Returns:
        A new image, (scale * H, scale * W, 3).
    """
    canvas = (0.6 * resize(image, scale)).astype(np.uint8)
    heaviest = float(weights.max(initial=0.0))
    if heaviest == 0:
        return canvas
    share = weights / heaviest
    colors = heat_map(share[None], 0.0, 1.0)[0]
    inside = ((pixels >= 0) & (pixels < [image.shape[1], image.shape[0]])).all(axis=1)
    for i in np.argsort(share):
        if inside[i]:
            x, y = np.rint(pixels[i] * scale - 0.5).astype(int).tolist()
            cv2.circle(canvas, (x, y), 1 + round(4 * float(share[i])), colors[i].tolist(), -1, cv2.LINE_AA)
    return canvas


def draw_cell_attention(
    images: Mapping[str, Image],
    pixels: Array,
    weights: Array,
    seen: npt.NDArray[np.bool_],
    scale: float = 1.0,
) -> Image:
    """Draws the points that one BEV cell samples in all cameras.

    Args:
        images: camera name -> (H, W, 3) RGB, in the order of the N cameras.
        pixels: (N, M, L, P, 2) of ``sampling_pixels``.
        weights: (M, L, P) attention weights of the cell, the same for every camera.
        seen: (N,) whether the camera sees the cell; others are drawn without points.
        scale: images are resized by this factor.

    Returns:
        The mosaic of the cameras.
    """
    flat = weights.ravel()
    drawn = {}
    for n, (name, image) in enumerate(images.items()):
        shown = flat if seen[n] else np.zeros(0)
        points = pixels[n].reshape(-1, 2) if seen[n] else np.zeros((0, 2))
        drawn[name] = draw_samples(image, points, shown, scale)
    return mosaic(drawn)


def attention_entropy(weights: npt.NDArray[np.floating[Any]]) -> Array:
    """Computes the entropy of attention weights, averaged over the heads: low if few points have the weight.

    Args:
        weights: (Q, M, ...) softmax weights that sum to 1 over the dimensions after the heads.

    Returns:
        (Q,) nats, between 0 and the logarithm of the number of points.
    """
    flat = weights.reshape(*weights.shape[:2], -1).astype(np.float64)
    entropy: Array = -(flat * np.log(np.maximum(flat, np.finfo(np.float64).tiny))).sum(axis=2).mean(axis=1)
    return entropy
