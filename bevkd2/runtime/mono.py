"""Runs an exported monocular detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.runtime.graph import (
    RUNTIMES,
    Detections,
    Fields,
    Graph,
    check_fields,
    check_ports,
    check_scores,
)
from bevkd2.runtime.nms import rotated_nms

Array = npt.NDArray[Any]

_FIELDS: dict[str, Fields] = {"score_threshold": (int, float)}
_INPUTS, _OUTPUTS = ("images", "image_sizes", "cam2img"), ("boxes", "scores")
_NMS_FIELDS: dict[str, Fields] = {"nms_threshold": (int, float), "nms_inclusive": bool, "max_detections": int}


class MonoRuntime:
    """Detects objects in single images of any size up to the graph's."""

    def __init__(self, graph: Graph) -> None:
        """Wraps a graph of the kind ``mono``; :func:`bevkd2.runtime.load` calls it."""
        self.graph, self.description = graph, graph.description
        check_fields(self.description, _FIELDS, graph.path)
        check_ports(self.description, _INPUTS, _OUTPUTS, graph.path)
        (scores,) = (port for port in self.description["outputs"] if port["name"] == "scores")
        self._suppresses = len(scores["shape"]) == 2  # objects by classes: one location may have several
        if self._suppresses:
            check_fields(self.description, _NMS_FIELDS, graph.path)

    def detect(self, image: Array, cam2img: Array) -> Detections:
        """Runs one image.

        Args:
            image: uint8 (3, h, w), RGB, of the size that the model was trained on; at most the graph's.
            cam2img: (4, 4) or (3, 4), metres in the camera's frame to (u * depth, v * depth, depth, 1),
                pixels of ``image``; KITTI's P2.

        Returns:
            The objects in the camera's frame.

        Raises:
            ValueError: an input of another shape or type, or scores that are NaN.
        """
        feeds = self.feeds(image, cam2img)
        found = {name: values[0] for name, values in self.graph.run(feeds).items()}
        check_scores(found["scores"], self.graph.path)
        return self.decode(found)

    def feeds(self, image: Array, cam2img: Array) -> dict[str, Array]:
        """Pads an image to the graph's size.

        Args:
            image: uint8 (3, h, w), RGB, at most as large as the graph's.
            cam2img: (4, 4) or (3, 4) projection, as for :meth:`detect`.

        Returns:
            The graph's inputs by name, a batch of one: ``images`` uint8 (1, 3, H, W), zero right of
            and below the image; ``image_sizes`` float32 (1, 2), its height and width; ``cam2img``
            float32 (1, 4, 4).

        Raises:
            ValueError: the image has another shape or type, or is larger than the graph's.
        """
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 (3, h, w) in RGB")
        height, width = self.graph.image_size
        if image.shape[1] > height or image.shape[2] > width:
            raise ValueError(
                f"image is {image.shape[1]} x {image.shape[2]}, the graph reads {height} x {width} (height x "
                "width) at most; resize the image and its cam2img, or export with a larger --image-size"
            )
        padded = np.zeros((1, 3, height, width), dtype=np.uint8)
        padded[0, :, : image.shape[1], : image.shape[2]] = image
        matrix = np.eye(4, dtype=np.float32)
        matrix[: len(cam2img)] = cam2img
        sizes = np.array([image.shape[1:]], dtype=np.float32)
        return {"images": padded, "image_sizes": sizes, "cam2img": matrix[None]}

    def decode(self, found: dict[str, Array]) -> Detections:
        """Applies the threshold of the scores, and suppression, to the outputs of one image.

        Args:
            found: the graph's outputs by name, without their batch dimension: ``boxes`` (Q, 7 or
                9), ``scores`` (Q, K) where suppression follows, otherwise (Q,) with ``labels``
                (Q,), and what else the model predicts, (Q, ...).

        Returns:
            The detections, in the order of falling scores where suppression ran, otherwise of the
            graph.
        """
        settings = self.description
        if not self._suppresses:
            above = found["scores"] > np.float32(settings["score_threshold"])
            return Detections(**{name: values[above] for name, values in found.items()})
        rows, labels = np.nonzero(found["scores"] > np.float32(settings["score_threshold"]))
        scores = found["scores"][rows, labels]
        x, z, length, width, heading = found["boxes"][rows][:, [0, 2, 3, 4, 6]].T
        kept = rotated_nms(
            np.stack([x, z, length, width, -heading], axis=1),
            scores,
            labels,
            settings["nms_threshold"],
            inclusive=settings["nms_inclusive"],
        )[: settings["max_detections"]]
        others = {name: found[name][rows[kept]] for name in ("boxes2d", "attributes") if name in found}
        return Detections(found["boxes"][rows[kept]], scores[kept], labels[kept], **others)


RUNTIMES["mono"] = MonoRuntime
