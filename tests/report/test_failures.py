"""The page of failures: what is in it, and that text stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any

import numpy as np

from bevkd2.evaluation.failures import failure_table
from bevkd2.report.failures import render_failures
from bevkd2.structures.matches import FALSE, FAR, FOUND, MISSED, FrameMatches

HOSTILE = "</script><img src=x onerror=alert(1)>"


def frame(objects: list[int], detections: list[int], errors: list[float]) -> FrameMatches:
    """All objects and detections are of class 0."""
    labels = [np.zeros(len(of), dtype=np.int64) for of in (objects, detections)]
    states = [np.array(of, dtype=np.int64) for of in (objects, detections)]
    return FrameMatches(labels[0], states[0], np.array(errors), labels[1], states[1])


def table(*names: str, **head: Any) -> dict[str, Any]:
    """Two frames; the second model loses two objects in the first, and adds a false detection."""
    nan = float("nan")
    reference = [frame([FOUND, FOUND], [FOUND, FOUND], [0.5, 0.5]), frame([FOUND], [FOUND], [0.25])]
    other = [frame([MISSED, FAR], [FAR, FALSE], [nan, 3.0]), frame([FOUND], [FOUND], [1.0])]
    matches = {names[0]: reference, names[1]: other}
    found = failure_table(matches, ["a/b", names[2]], [names[3], "bus"], [0, 1])
    settings = {"split": "val", "compared": names[1], "sorted_by": "loss", "score_threshold": 0.3}
    return {**settings, "match": None, "far": 4.0, **head, **found}


def data_of(page: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_the_page_has_the_counts_and_the_settings() -> None:
    found = table("teacher", "student", "c", "car")
    found["frames"][0]["picture"] = "000_a_b.png"
    page = render_failures(found, {"000_a_b.png": (1446, 900)})
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert ["teacher", "3", "3", "0", "0", "0", "0.417"] in cells
    assert ["car, student", "3", "1", "1", "1", "1", "1.000"] in cells
    assert "Detections of score 0.3 or more. Match: that of the data set" in page
    assert "less than 4 m away" in page and "<title>What models lose against teacher: val</title>" in page
    data = data_of(page)
    assert data["models"] == ["student"] and data["classes"] == ["car"]
    first, second = data["frames"]
    assert (first["picture"], first["width"], first["height"]) == ("000_a_b.png", 1446, 900)
    assert (first["losses"]["student"]["loss"], second["losses"]["student"]["error"]) == (3, 0.75)
    assert "picture" not in second
    assert "Match: 1.5." in render_failures(table("teacher", "student", "c", "car", match=1.5), {})


def test_only_the_script_of_the_page_may_run_and_nothing_is_loaded_from_elsewhere() -> None:
    page = render_failures(table("teacher", "student", "c", "car"), {})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|//\w", page.partition("<script")[0])


def test_colours_are_those_of_the_pictures() -> None:
    page = render_failures(table("teacher", "student", "c", "car"), {})
    assert ".key.missed { --key: rgb(225 45 45); }" in page
    assert ".key.false { --key: rgb(170 60 215); }" in page


def test_names_stay_text() -> None:
    page = render_failures(table(HOSTILE, f"{HOSTILE}2", HOSTILE, HOSTILE), {})
    assert "<img" not in page and page.count("</script>") == 2
    assert html.escape(HOSTILE) in page
    data = data_of(page)
    assert data["frames"][1]["frame"] == data["classes"][0] == data["reference"] == HOSTILE
