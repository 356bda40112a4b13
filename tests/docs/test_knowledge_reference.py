"""docs/knowledge_reference.md, and the docstrings below the fields that it is made of."""

from __future__ import annotations

import dataclasses
import runpy

import pytest

from bevkd2.modeling import BEVKnowledge
from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_knowledge_reference.py"))


def test_page_is_current() -> None:
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](), "run make tables"


@pytest.mark.parametrize("cls", SCRIPT["CLASSES"], ids=lambda cls: cls.__name__)
def test_every_field_has_a_meaning(cls: type) -> None:
    fields = SCRIPT["fields_of"](cls)
    inherited = {field.name for base in cls.__mro__[1:-1] for field in dataclasses.fields(base)}
    assert {field.name for field in fields} == {field.name for field in dataclasses.fields(cls)} - inherited
    assert [field.name for field in fields if not field.meaning] == []


def test_costly_fields_are_marked() -> None:
    fields = {field.name: field for field in SCRIPT["fields_of"](BEVKnowledge)}
    assert fields["spatial_attention"].costly and not fields["bev_embed"].costly
    assert fields["bev_embed"].type == "Tensor"
    assert fields["bev_embed"].meaning == "(B, H*W, C): the encoder's output."
