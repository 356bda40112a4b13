import numpy as np
import pytest
import torch

from bevkd2.structures import CAMERA_NAMES, Boxes3D
from bevkd2.visualization import DrawnObjects, camera_images, class_palette, detection_figure
from bevkd2.visualization.bev_view import legend
from tests.visualization.pictures import contains

NAMES = ("forklift", "pallet", "worker")
MATRIX = np.eye(4)
MATRIX[:3, :3] = np.array([[88.0, 0, 88], [0, 88, 32], [0, 0, 1]]) @ np.array(
    [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]
)


def objects(scores, labels=(0, 1)):
    boxes = Boxes3D(torch.tensor([[0.0, 10, 0, 4, 2, 1.5, 0.3], [3.0, 15, 0, 4, 2, 1.5, 0.3]]))
    return DrawnObjects(boxes, np.array(labels), scores)


def figure(predictions, width=176, truth=None, class_names=NAMES, **kwargs):
    images = camera_images(np.full((6, 3, 64, width), 90, dtype=np.uint8), CAMERA_NAMES)
    return detection_figure(
        images,
        dict.fromkeys(CAMERA_NAMES, MATRIX),
        objects(None) if truth is None else truth,
        predictions,
        title="one frame",
        class_names=class_names,
        extent=(-32, -32, 32, 32),
        **kwargs,
    )


def count_pixels(picture, color):
    return int((picture == color).all(axis=-1).sum())


def test_camera_images_keep_order_and_pixels():
    batch = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    images = camera_images(batch, ("A", "B"))
    assert list(images) == ["A", "B"]
    assert images["B"][3, 4].tolist() == batch[1, :, 3, 4].tolist()


def test_images_are_resized_to_the_tile_width():
    small = figure(objects(np.array([0.9, 0.9])))
    assert small.shape[1] > 3 * 400 + 300
    # Four rows of cameras, each 400 / 176 * 64 pixels high.
    assert small.shape[0] > 4 * 145
    large = figure(objects(np.array([0.9, 0.9])), width=1600)
    assert large.shape[1] < 3 * 400 + 1000


def test_legend_has_the_names_and_colors_of_the_given_classes():
    picture = figure(objects(np.array([0.9, 0.9])))
    assert contains(picture, legend(NAMES, class_palette(3), 500))
    assert not contains(figure(objects(None), class_names=NAMES[::-1]), legend(NAMES, class_palette(3), 500))


@pytest.mark.parametrize("label", [0, 1, 2])
def test_boxes_have_the_color_of_their_class_in_the_legend(label):
    nothing = objects(np.array([0.0, 0.0]))
    picture = figure(nothing, truth=objects(None, (label, label)))
    in_legend = 100  # pixels: a square of 10 x 10 per class
    found = [count_pixels(picture, color) for color in class_palette(3)]
    assert found[label] > 2 * in_legend
    assert [count for k, count in enumerate(found) if k != label] == [in_legend] * 2
    predicted = figure(objects(np.array([0.9, 0.9]), (label, label)), truth=nothing.above(0.5))
    assert count_pixels(predicted, class_palette(3)[label]) > 2 * in_legend


def test_label_without_a_class_is_an_error():
    with pytest.raises(ValueError, match=r"labels are \[0, 3\], expected 0 to 2: class_names are forklift"):
        figure(objects(np.array([0.9, 0.9]), (0, 3)))


def test_predictions_below_the_score_threshold_are_not_drawn():
    """The upper half with the annotations stays equal; the lower half with the predictions changes."""
    both = figure(objects(np.array([0.9, 0.2])), score_threshold=0.1)
    one = figure(objects(np.array([0.9, 0.2])), score_threshold=0.5)
    assert both.shape == one.shape
    difference = (both != one).any(axis=-1)[:, :1200]
    rows = np.nonzero(difference.any(axis=1))[0]
    assert len(rows) > 0
    assert rows.min() > both.shape[0] / 2
