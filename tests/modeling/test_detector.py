"""The base class of detectors, and the declaration of costly fields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bevkd2.d2 import build_model
from bevkd2.modeling import BEVFormer, BEVKnowledge, Detector, Knowledge, MonoDetector, MonoKnowledge
from tests.modeling.mono.pgd_model import make_image, small_cfg


def test_costly_fields_are_those_of_the_class() -> None:
    assert {"backbone", "fpn"} <= Knowledge.costly_fields() <= MonoKnowledge.costly_fields()
    own = {"temporal_attention", "spatial_attention", "spatial_offsets", "reference_points"}
    assert own <= BEVKnowledge.costly_fields() - Knowledge.costly_fields()
    assert "logits" not in BEVKnowledge.costly_fields() | MonoKnowledge.costly_fields()
    assert (BEVFormer.knowledge, MonoDetector.knowledge) == (BEVKnowledge, MonoKnowledge)


def test_a_monocular_detector_refuses_wants_of_multi_view_detectors() -> None:
    model = build_model(small_cfg()).eval()
    inputs = model.preprocess([make_image(0)])
    with pytest.raises(ValueError, match=r"MonoKnowledge has no field \['temporal_attention'\].*fpn"):
        model.extract(inputs, frozenset({"temporal_attention"}))


def test_a_field_that_is_not_filled_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"BEVKnowledge\.fpn is not filled: name it in the wants"):
        BEVKnowledge().filled("fpn")
    with pytest.raises(ValueError, match=r"bev_mask is not filled: this detector does not fill it"):
        BEVKnowledge().seen_by_any_camera()
    value = torch.zeros(1)
    assert Knowledge(logits=value).filled("logits") is value


def test_a_detector_without_one_of_the_five_methods_cannot_be_built() -> None:
    class Forgetful(Detector[Any, Any, Knowledge]):
        knowledge = Knowledge

        def preprocess(self, batched_inputs: Any) -> Any:
            return batched_inputs

    with pytest.raises(TypeError, match=r"abstract.*extract.*inference.*losses.*targets"):
        Forgetful(image_backbone=nn.Identity(), neck=nn.Identity(), pixels=nn.Identity())


def test_pixel_statistics_are_not_in_the_state_dict_and_move_with_the_model() -> None:
    model = build_model(small_cfg())
    assert not any(key.startswith("pixels") for key in model.state_dict())
    assert model.device == torch.device("cpu") and model.to("meta").device == torch.device("meta")


def test_backbone_parameters_are_those_of_the_image_backbone() -> None:
    model = build_model(small_cfg())
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].startswith("image_backbone.") for p in model.backbone_parameters())
    assert len(model.backbone_parameters()) == len(list(model.image_backbone.parameters()))
