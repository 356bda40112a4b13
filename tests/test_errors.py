"""The text of a user's error."""

from __future__ import annotations

import pytest

from bevkd2.errors import message_of


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("no key 'a'"), "no key 'a'"),
        (ValueError("first line\nsecond"), "first line\nsecond"),
        (ValueError("a\0b \x1b[31m\ud800"), r"a\x00b \x1b[31m\ud800"),
        (OSError(2, "No such file", "x.pth"), "[Errno 2] No such file: 'x.pth'"),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped(error: BaseException, text: str) -> None:
    assert message_of(error) == text


def test_of_a_long_value_the_middle_is_left_out() -> None:
    text = message_of(ValueError(f"x.yaml: SEED is {'7' * 10**6}, expected a number"))
    assert len(text) < 2100
    assert text.startswith("x.yaml: SEED is 777") and text.endswith("777, expected a number")
    assert " characters left out) ... " in text
