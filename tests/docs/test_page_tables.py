"""Places in pages get what their script writes, and nothing else changes."""

from __future__ import annotations

import pytest
from page_tables import Places, markdown_table, percent, three_digits

PAGE = (
    "a\n<!-- kind one x -->\nold\n<!-- end of kind one x -->\nb\n"
    "<!-- kind two -->\n<!-- end of kind two -->\n"
)


def test_places_get_their_content() -> None:
    places = Places("kind")
    assert places.names(PAGE) == ["one x", "two"]
    current = places.filled(PAGE, lambda name: f"({name})")
    assert current == (
        "a\n<!-- kind one x -->\n\n(one x)\n\n<!-- end of kind one x -->\nb\n"
        "<!-- kind two -->\n\n(two)\n\n<!-- end of kind two -->\n"
    )
    assert places.filled(current, lambda name: f"({name})") == current
    assert places.filled(current, lambda name: "other") != current


def test_a_kind_with_one_place_needs_no_name() -> None:
    page = "<!-- kind -->\nold\n<!-- end of kind -->\n"
    assert Places("kind").filled(page, lambda name: f"new{name}") == (
        "<!-- kind -->\n\nnew\n\n<!-- end of kind -->\n"
    )


def test_other_kinds_stay_as_they_are() -> None:
    assert Places("other").names(PAGE) == [] and Places("other").filled(PAGE, str.upper) == PAGE


@pytest.mark.parametrize("end", ["", "<!-- end of kind other -->", "<!-- end of kind -->"])
def test_a_place_without_its_end_is_an_error(end: str) -> None:
    with pytest.raises(ValueError, match=r"<!-- kind one -->, and only \[\] end"):
        Places("kind").filled(f"<!-- kind one -->\n{end}\n", str)


def test_a_table_is_padded_and_its_bars_are_escaped() -> None:
    assert markdown_table([["a|b", 1.5], ["", "long cell"]], ["x", "y"]).splitlines() == [
        "| x    | y         |",
        "| ---- | --------- |",
        r"| a\|b | 1.5       |",
        "|      | long cell |",
    ]


def test_numbers() -> None:
    assert [three_digits(value) for value in (0.07171, 9.8, 26.02, 99.6, 1302.7)] == [
        *("0.0717", "9.80", "26.0", "100", "1,303")
    ]
    assert percent(0.5036) == "50 %" and percent(0.00038, 2) == "0.04 %"
