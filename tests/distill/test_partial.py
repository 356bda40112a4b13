"""A teacher computes nothing but what is going to be read, and what it computes is the same."""

import dataclasses

import pytest
import torch

from bevkd2.modeling import BEVKnowledge, MonoKnowledge
from tests.distill.methods.harness import build_detector, make_batch

BEV_FIELDS = sorted(
    {"fpn", "bev_mask", "reference_points", "bev_embed", "spatial_attention", "temporal_offsets"}
    | {"layer_outputs", "logits", "box_codes", "decoder_states", "decoder_reference_points", "backbone"}
    | {"temporal_outputs", "spatial_outputs", "temporal_attention", "spatial_offsets", "object_queries"}
)
MONO_FIELDS = ["fpn", "backbone", "logits", "depth", "direct_depth", "outputs"]


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in flat(item)]
    if dataclasses.is_dataclass(value):
        return flat({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    return [] if value is None else [tensor for item in value for tensor in flat(item)]


def partly_and_whole(detector, field):
    model = build_detector(detector, 8, 0).eval()
    calls = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        inputs = model.preprocess(make_batch(detector, 1, 2))
        whole = model.extract(inputs, frozenset({field}))
        calls.clear()
        part = model.extract_only(inputs, frozenset({field}))
    return part, whole, set(calls)


def assert_same(part, whole):
    pairs = list(zip(flat(part), flat(whole), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("field", BEV_FIELDS)
def test_a_field_of_bevformer_alone_equals_that_of_the_whole_pass(field):
    part, whole, calls = partly_and_whole("BEVFormer", field)
    assert_same(getattr(part, field), getattr(whole, field))
    decoded = field in {"logits", "box_codes", "decoder_states", "decoder_reference_points"}
    assert ("decoder" in calls) == decoded
    before = {"fpn", "backbone", "bev_mask", "reference_points", "object_queries"}
    assert ("encoder" in calls) == (field not in before)


@pytest.mark.parametrize("detector", ["PGD", "SMOKE"])
@pytest.mark.parametrize("field", MONO_FIELDS)
def test_a_field_of_a_dense_detector_alone_equals_that_of_the_whole_pass(detector, field):
    part, whole, calls = partly_and_whole(detector, field)
    assert_same(getattr(part, field), getattr(whole, field))
    if field in ("fpn", "backbone"):
        assert not any(name.startswith("head") for name in calls)
    if field == "logits":
        assert not any("box" in name or "regressors" in name for name in calls)
    if detector == "PGD" and field == "depth":
        assert "head.regressors.depth" in calls and "head.regressors.size" not in calls


def test_an_unknown_want_is_named():
    for known, name in ((BEVKnowledge, "depth"), (MonoKnowledge, "bev_embed")):
        with pytest.raises(ValueError, match=rf"{known.__name__} has no field \['{name}'\]"):
            known.fields_to_fill(frozenset({name}), partial=False)


def test_costly_fields_are_filled_on_request_only():
    wants = frozenset({"fpn"})
    assert MonoKnowledge.fields_to_fill(wants, partial=True) == wants
    filled = MonoKnowledge.fields_to_fill(wants, partial=False)
    assert "fpn" in filled and "logits" in filled and "backbone" not in filled


@pytest.mark.parametrize("detector", ["BEVFormer", "PGD", "SMOKE"])
def test_a_detector_fills_the_fields_that_it_names_and_no_others(detector):
    model = build_detector(detector, 8, 0).eval()
    with torch.no_grad():
        inputs = model.preprocess(make_batch(detector, 1, 2))
        knowledge = model.extract(inputs, type(model).knowledge.costly_fields())
    filled = {f.name for f in dataclasses.fields(knowledge) if getattr(knowledge, f.name) is not None}
    assert filled == model.filled_fields()


def test_the_decoder_runs_on_given_queries_and_reference_points():
    model = build_detector("BEVFormer", 8, 0).eval()
    with torch.no_grad():
        inputs = model.preprocess(make_batch("BEVFormer", 1, 2))
        wants = frozenset({"decoder_states", "decoder_reference_points"})
        known = model.extract(inputs, wants)
        again = model.decode(known, known.object_queries, known.decoder_reference_points[0])
        assert_same(again.class_logits, known.class_logits)
        assert_same(again.states, known.decoder_states)
        each = known.object_queries.expand(2, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None]
        apart = model.decode(known, each)
        assert torch.allclose(apart.box_codes[:, 0], known.box_codes[:, 0], atol=1e-5)
        assert not torch.allclose(apart.box_codes[:, 1], known.box_codes[:, 1], atol=1e-3)
