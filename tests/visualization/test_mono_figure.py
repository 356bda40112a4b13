import numpy as np
import pytest
import torch

from bevkd2.structures import CameraBoxes3D
from bevkd2.visualization import CLASS_COLORS, DrawnObjects, class_palette, mono_figure

CAM2IMG = np.array([[150.0, 0, 160, 0], [0, 150, 48, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NAMES = ("Pedestrian", "Cyclist", "Car")


def objects(*centers, scores=None, labels=None):
    boxes = torch.tensor([[x, 1.0, z, 4, 2, 1.5, 0.2] for x, z in centers]).reshape(-1, 7)
    labels = np.full(len(centers), 2) if labels is None else np.array(labels)
    record = {"boxes": CameraBoxes3D(boxes), "labels": labels}
    return DrawnObjects.from_dict(record if scores is None else {**record, "scores": np.array(scores)})


def figure(predictions, truth=None, size=(96, 320), **kwargs):
    image = np.full((*size, 3), 90, dtype=np.uint8)
    return mono_figure(image, CAM2IMG, predictions, truth, title="one", class_names=NAMES, **kwargs)


def test_few_classes_have_colors_far_apart():
    np.testing.assert_array_equal(class_palette(3), CLASS_COLORS[[0, 3, 6]])
    np.testing.assert_array_equal(class_palette(10), CLASS_COLORS)
    assert len(class_palette(12)) == 10


def test_image_and_view_from_above_are_side_by_side():
    found = objects((0.0, 10.0), scores=[0.9])
    without, annotated = figure(found), figure(found, objects((0.0, 10.0)))
    assert without.shape[1] > 1000 + 300
    assert annotated.shape[0] >= 2 * 300
    assert figure(found, objects((0.0, 10.0)), size=(900, 1600)).shape[1] < 1000 + 800


def test_the_legends_color_is_that_of_the_boxes():
    picture = figure(objects((0.0, 10.0), scores=[0.9], labels=[2]))
    car = (picture[:, :1000] == CLASS_COLORS[6]).all(axis=-1).sum()
    assert car > 300


def test_predictions_below_the_score_threshold_are_not_drawn():
    found = objects((0.0, 10.0), (4.0, 12.0), scores=[0.9, 0.2])
    one = figure(objects((0.0, 10.0), scores=[0.9]), objects(), score_threshold=0.5)
    assert (figure(found, objects(), score_threshold=0.5) == one).all()
    assert (figure(found, objects(), score_threshold=0.1) != one).any()


def test_the_view_from_above_follows_the_truth_so_that_models_compare():
    truth = objects((0.0, 45.0))
    near, far = (figure(objects((0.0, z), scores=[0.9]), truth) for z in (10.0, 44.0))
    arcs = slice(-200, -150)  # left of the field of view, where no object is
    assert (near[arcs, 1010:1050] == far[arcs, 1010:1050]).all()


def test_objects_out_of_range_are_captioned():
    extent = (-10.0, 0.0, 10.0, 20.0)
    inside = figure(objects((0.0, 30.0), scores=[0.9]), extent=(-10.0, 0.0, 10.0, 40.0))
    outside = figure(objects((0.0, 30.0), scores=[0.9]), extent=extent)
    empty = figure(objects(scores=[]), extent=extent)
    caption = (slice(56, 76), slice(1006, 1200))
    assert (outside[caption] != empty[caption]).any()
    assert inside.shape[0] == outside.shape[0]


def test_an_image_without_objects_is_drawn():
    assert figure(objects(scores=[]), objects()).std() > 10


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(ValueError, match=r"labels are \[3\], expected 0 to 2: class_names are Pedestrian"):
        figure(objects((0.0, 10.0), scores=[0.9], labels=[3]))
