"""Matching every key."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bevkd2.checkpoint import StateDictMismatchError, load_strict


def model(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


def test_every_tensor_is_loaded_with_buffers() -> None:
    source, target = model(), model()
    source[1].running_mean.fill_(7)
    load_strict(target, source.state_dict(), "weights.pth")
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_missing_unknown_and_mismatched_keys_are_all_named_and_nothing_is_copied() -> None:
    target = model(classes=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = model(classes=3).state_dict()
    del state["0.bias"]
    state["teacher.head"] = torch.ones(1)
    with pytest.raises(StateDictMismatchError) as error:
        load_strict(target, state, "weights.pth")
    text = str(error.value)
    assert error.value.missing == ["0.bias"] and error.value.unexpected == ["teacher.head"]
    assert "weights.pth does not fit Sequential" in text
    assert "2 keys of another shape: 2.weight (3, 4) instead of (5, 4), 2.bias (3,) instead of (5,)" in text
    assert "1 key missing from it: 0.bias" in text and "1 key unknown to the model: teacher.head" in text
    assert "number of classes" in text and "MODEL.ALLOW_MISSING" in text
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (torch.Tensor.byte, r"torch\.uint8 instead of torch\.float32"),
        (torch.Tensor.cfloat, r"torch\.complex64 instead of torch\.float32"),
        (torch.Tensor.to_sparse, r"torch\.sparse_coo instead of torch\.strided"),
        (lambda value: value.to("meta"), "has no numbers"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    """Weights that are quantised, for example: their integers would be taken for weights."""
    state = model().state_dict()
    state["2.weight"] = change(state["2.weight"])
    with pytest.raises(StateDictMismatchError, match=rf"2\.weight .*{found}"):
        load_strict(model(), state, "weights.pth")


def test_nan_is_told(caplog: pytest.LogCaptureFixture) -> None:
    state = model().state_dict()
    state["2.weight"][1, 1] = torch.nan
    load_strict(model(), state, "weights.pth")
    assert "weights.pth: 1 key with NaN, so that all" in caplog.text and ": 2.weight; use" in caplog.text


def test_half_and_double_are_read() -> None:
    state = {name: value.double() for name, value in model().state_dict().items()}
    state["2.weight"] = state["2.weight"].bfloat16()
    target = model()
    load_strict(target, state, "weights.pth")
    assert target[2].weight.dtype == torch.float32 and torch.equal(
        target[2].weight, state["2.weight"].float()
    )


def test_long_lists_are_cut_and_counted() -> None:
    with pytest.raises(StateDictMismatchError, match=r"14 keys unknown.*: k0, .*k9, and 4 more\."):
        load_strict(nn.Identity(), {f"k{i}": torch.ones(1) for i in range(14)}, "other.pth")


def test_allowed_prefixes_may_be_missing_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    source, target = model(), model()
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("2.")}
    own = target[2].weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        load_strict(target, state, "backbone.pth", allow_missing=["2."])
    assert "2 keys missing from it, as MODEL.ALLOW_MISSING permits: 2.weight, 2.bias" in caplog.text
    assert torch.equal(target[0].weight, source[0].weight) and torch.equal(target[2].weight, own)


def test_allowance_does_not_cover_shapes_or_other_keys() -> None:
    state = model(classes=5).state_dict()
    del state["0.bias"]
    with pytest.raises(StateDictMismatchError) as error:
        load_strict(model(), state, "x.pth", allow_missing=["2."])
    assert error.value.missing == ["0.bias"] and len(error.value.mismatched) == 2


def test_empty_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="ALLOW_MISSING holds an empty prefix"):
        load_strict(model(), {}, "x.pth", allow_missing=[""])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_keys_of_wrapped_models_are_the_models_own(prefix: str) -> None:
    source, target = model(), model()
    load_strict(target, {f"{prefix}{key}": value for key, value in source.state_dict().items()}, "x.pth")
    assert torch.equal(target[0].weight, source[0].weight)


def test_a_compiled_part_of_a_model_is_the_models_own() -> None:
    source, target = model(), model()
    state = {key.replace("0.", "0._orig_mod."): value for key, value in source.state_dict().items()}
    load_strict(target, state, "x.pth")
    assert torch.equal(target[0].weight, source[0].weight)


def test_another_prefix_is_named() -> None:
    state = {f"net.student.{key}": value for key, value in model().state_dict().items()}
    with pytest.raises(
        StateDictMismatchError, match=r"begins with 'net\.student\.', and without that 9 of the model's 9"
    ):
        load_strict(model(), state, "lightning.pth")


def test_two_keys_for_one_tensor_are_not_merged() -> None:
    state = model().state_dict()
    with pytest.raises(StateDictMismatchError, match=r"unknown to the model: module\.0\.weight"):
        load_strict(model(), {**state, "module.0.weight": state["0.weight"]}, "x.pth")


def test_batch_counters_may_be_missing() -> None:
    source, target = model(), model()
    target[1].num_batches_tracked.fill_(7)
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_strict(target, state, "x.pth")
    assert target[1].num_batches_tracked == 0
    norm = nn.BatchNorm2d(3)
    load_strict(norm, {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}, "norm.pth")
    for name in [name for name in state if name.startswith("1.")]:
        del state[name]
    with pytest.raises(StateDictMismatchError, match=r"1\.num_batches_tracked"):  # the whole layer is
        load_strict(target, state, "x.pth")
