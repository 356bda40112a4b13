import numpy as np
import torch

from bevkd2.structures import CAMERA_NAMES, Boxes3D
from bevkd2.visualization import DrawnObjects, camera_images, detection_figure

MATRIX = np.eye(4)
MATRIX[:3, :3] = np.array([[88.0, 0, 88], [0, 88, 32], [0, 0, 1]]) @ np.array(
    [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]
)


def objects(scores):
    boxes = Boxes3D(torch.tensor([[0.0, 10, 0, 4, 2, 1.5, 0.3], [3.0, 15, 0, 4, 2, 1.5, 0.3]]))
    return DrawnObjects(boxes, np.array([0, 1]), scores)


def figure(predictions, width=176, **kwargs):
    images = camera_images(np.full((6, 3, 64, width), 90, dtype=np.uint8), CAMERA_NAMES)
    matrices = dict.fromkeys(CAMERA_NAMES, MATRIX)
    return detection_figure(
        images, matrices, objects(None), predictions, title="one frame", extent=(-32, -32, 32, 32), **kwargs
    )


def test_camera_images_keep_order_and_pixels():
    batch = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    images = camera_images(batch, ("A", "B"))
    assert list(images) == ["A", "B"]
    assert images["B"][3, 4].tolist() == batch[1, :, 3, 4].tolist()


def test_small_images_grow_and_large_ones_shrink_to_a_readable_picture():
    small = figure(objects(np.array([0.9, 0.9])))
    assert small.shape[1] > 3 * 400 + 300
    # Four rows of cameras, each 400 / 176 * 64 pixels high.
    assert small.shape[0] > 4 * 145
    large = figure(objects(np.array([0.9, 0.9])), width=1600)
    assert large.shape[1] < 3 * 400 + 1000


def test_the_threshold_hides_weak_predictions():
    """The half with the truth stays as it is; the one with the predictions changes."""
    both = figure(objects(np.array([0.9, 0.2])), score_threshold=0.1)
    one = figure(objects(np.array([0.9, 0.2])), score_threshold=0.5)
    assert both.shape == one.shape
    difference = (both != one).any(axis=-1)[:, :1200]
    rows = np.nonzero(difference.any(axis=1))[0]
    assert len(rows) > 0
    assert rows.min() > both.shape[0] / 2
