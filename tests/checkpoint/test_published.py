"""What a published file states beside its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bevkd2.checkpoint import CheckpointFileError
from bevkd2.checkpoint.inert import Ignored
from bevkd2.checkpoint.published import published_classes, published_state

NAMES = ["truck", "car"]


@pytest.mark.parametrize(
    ("beside", "place"),
    [
        ({"meta": {"CLASSES": NAMES, "config": "classes = []"}}, "meta.CLASSES"),
        ({"meta": {"dataset_meta": {"classes": tuple(NAMES)}}}, "meta.dataset_meta.classes"),
        ({"meta": {"dataset_meta": {"CLASSES": NAMES, "palette": None}}}, "meta.dataset_meta.CLASSES"),
        (
            {"meta": {"dataset_meta": [{"classes": None}, {"classes": NAMES}]}},
            "meta.dataset_meta[1].classes",
        ),
        ({"meta": {"data": {"Class_Names": {"truck": 0, "car": 1}}}}, "meta.data.Class_Names"),
        ({"CLASSES": NAMES}, "CLASSES"),
        ({"classes": {1: "car", 0: "truck"}}, "classes"),
    ],
)
def test_classes_are_found_in_every_place(beside: dict[str, Any], place: str) -> None:
    weights = {"state_dict": {"classes.weight": torch.zeros(1)}}
    assert published_classes({**weights, **beside}, "x.pth") == {place: NAMES}


def test_classes_in_two_places_are_both_returned_and_a_loop_ends() -> None:
    meta: dict[str, Any] = {"CLASSES": NAMES, "dataset_meta": {"classes": ["bus"]}}
    meta["self"] = meta
    found = published_classes({"meta": meta}, "x.pth")
    assert found == {"meta.CLASSES": NAMES, "meta.dataset_meta.classes": ["bus"]}


@pytest.mark.parametrize("classes", ["car", [1, 2], 5, {"car": "truck"}, Ignored("numpy.array")])
def test_classes_that_are_no_names_are_an_error(classes: Any) -> None:
    with pytest.raises(CheckpointFileError, match=r"x\.pth: meta\.CLASSES is .*, expected the names"):
        published_classes({"meta": {"CLASSES": classes}}, "x.pth")


@pytest.mark.parametrize(
    "content",
    [{"state_dict": Ignored("a.B")}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"meta": {}}, {}],
)
def test_files_without_a_state_dict_are_an_error(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointFileError, match=r"x\.pth holds no state dict"):
        published_state(content, "x.pth")
