"""Which picture is of which model."""

from __future__ import annotations

from bevkd2.report.pictures import _model_of


def test_the_longest_name_that_ends_a_title_is_the_models() -> None:
    names = ["student", "distilled_student"]
    assert _model_of("detections_student", names) == "student"
    assert _model_of("detections_distilled_student", names) == "distilled_student"
    assert _model_of("perspective", names) == ""
