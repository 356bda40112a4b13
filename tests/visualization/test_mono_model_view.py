import dataclasses

import numpy as np
import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.d2 import build_model
from bevkd2.structures import CameraBoxes3D
from bevkd2.visualization import mono_figures, see_image
from tests.modeling.mono.pgd_model import HEIGHT, WIDTH, make_image, small_cfg

NAMES = ("Pedestrian", "Cyclist", "Car")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(small_cfg()).eval()


@pytest.fixture
def node():
    import bevkd2.distill  # noqa: F401  (registers the methods)

    return get_cfg().DISTILL.PERSPECTIVE_FEATURE


def test_a_view_holds_what_the_model_computes(model):
    sample = make_image(3)
    view = see_image(model, sample)
    with torch.no_grad():
        inputs = model.preprocess([sample])
        knowledge = model.extract(inputs, frozenset({"fpn"}))
        expected = model.inference(knowledge, inputs)[0]
    assert list(view.responses) == knowledge.fpn_strides == [8, 16]
    for level, response in zip(knowledge.fpn, view.responses.values(), strict=True):
        np.testing.assert_allclose(response, level[0].abs().mean(dim=0).numpy(), atol=1e-6)
    assert torch.equal(view.detections["boxes"].tensor, expected["boxes"].tensor)
    assert torch.equal(view.detections["scores"], expected["scores"])


def test_every_picture_of_two_models(model, node):
    sample = make_image(3)
    views = {"teacher": see_image(model, sample), "student": see_image(model, sample)}
    pictures = mono_figures(sample, views, NAMES, perspective=node)
    assert set(pictures) == {"detections_teacher", "detections_student", "features", "perspective"}
    # Of two levels, tiles are 800 wide: the image, two models and the bar below a title.
    tile = 800 * HEIGHT // WIDTH
    assert pictures["features"].shape[1] == 2 * 800 + 6
    assert pictures["features"].shape[0] > 3 * tile
    assert tile < pictures["perspective"].shape[0] < 2 * tile
    assert "perspective" not in mono_figures(sample, views, NAMES)
    node.PERSPECTIVE = False  # plain feature imitation has no matrix
    assert "perspective" not in mono_figures(sample, views, NAMES, perspective=node)


def test_settings_that_the_method_refuses_are_not_drawn(model, node):
    sample, node.OCCLUSION = make_image(3), "on"
    with pytest.raises(ValueError, match=r"DISTILL\.PERSPECTIVE_FEATURE\.OCCLUSION: 'on'"):
        mono_figures(sample, {"m": see_image(model, sample)}, NAMES, perspective=node)


def test_detections_and_ground_truth_differ_in_the_picture(model):
    """Annotations are drawn differently from detections of the same boxes."""
    sample, view = make_image(3), see_image(model, make_image(3))
    found = {"boxes": sample["boxes"], "labels": sample["labels"], "scores": torch.full((3,), 0.9)}
    nothing = {"boxes": CameraBoxes3D.empty(7), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    pictures = [
        mono_figures(sample, {"m": dataclasses.replace(view, detections=d)}, NAMES)["detections_m"]
        for d in (found, nothing)
    ]
    truth, predictions = (slice(40, 600), slice(800, 1300))
    assert (pictures[0][truth, :1000] == pictures[1][truth, :1000]).all()
    assert (pictures[0][predictions, :1000] != pictures[1][predictions, :1000]).any()


def test_the_occlusion_rule_is_drawn_where_the_config_asks_for_it(model, node):
    sample = make_image(3)
    views = {"m": see_image(model, sample)}
    off = mono_figures(sample, views, NAMES, perspective=node)["perspective"]
    node.OCCLUSION = "near_boxes"
    on = mono_figures(sample, views, NAMES, perspective=node)["perspective"]
    assert on.shape[0] > off.shape[0] + 400
    first_row = slice(40, 500)
    assert (on[first_row] == off[first_row]).all()


def test_an_image_without_annotations_is_drawn_too(model, node):
    sample = {k: v for k, v in make_image(3).items() if k not in ("boxes", "labels", "boxes2d")}
    node.OCCLUSION = "near_boxes"  # without objects there is nothing to lower
    pictures = mono_figures(sample, {"m": see_image(model, sample)}, NAMES, perspective=node)
    annotated = mono_figures(make_image(3), {"m": see_image(model, sample)}, NAMES)
    assert pictures["detections_m"].shape[0] < annotated["detections_m"].shape[0]
    assert set(pictures) == {"detections_m", "features", "perspective"}
