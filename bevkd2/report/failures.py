"""The page of ``bevkd2 visualize failures``: frames that are sorted and filtered, beside their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bevkd2.evaluation.failures import SORT_KEYS
from bevkd2.experiments.report import Table, number
from bevkd2.report.template import fill, read_style
from bevkd2.structures.matches import DETECTION_STATES, FALSE, OBJECT_STATES
from bevkd2.visualization.comparison_view import FALSE_COLOR, STATE_COLORS

_COUNTS = ("objects", "found", "far", "missed", "false")


def render_failures(table: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> str:
    """Returns the page, to be written into the folder of the pictures.

    Args:
        table: the content of ``failures.json``: :func:`bevkd2.evaluation.failures.failure_table`, and how the
            frames were compared.
        sizes: width and height in pixels of every picture that ``table`` names.
    """
    reference, models = table["reference"], table["models"]
    frames = []
    for entry in table["frames"]:
        kept = {key: entry[key] for key in ("frame", "place", "losses")}
        if "picture" in entry:
            width, height = sizes[entry["picture"]]
            kept |= {"picture": entry["picture"], "width": width, "height": height}
        frames.append(kept)
    lost = {name for entry in frames for loss in entry["losses"].values() for name in loss["per_class"]}
    classes = list(dict.fromkeys(name for of in models.values() for name in of["per_class"]))
    match = "that of the data set's evaluation" if table["match"] is None else f"{table['match']:g}"
    colors: dict[str, Sequence[int]] = dict(zip(OBJECT_STATES, STATE_COLORS.tolist(), strict=True))
    colors[DETECTION_STATES[FALSE]] = FALSE_COLOR
    palette = "".join(
        f".key.{name} {{ --key: rgb({' '.join(map(str, color))}); }}\n" for name, color in colors.items()
    )
    return fill(
        "failures.html",
        "failures.js",
        [read_style("failures.css"), palette],
        title=f"What models lose against {reference}: {table['split']}",
        settings=(
            f"Detections of score {table['score_threshold']:g} or more. Match: {match}. An object is far "
            f"where a false detection of its class is less than {table['far']:g} m away."
        ),
        models=_counts_table("All classes", models),
        classes=_counts_table(
            "By class",
            {
                f"{name}, {model}": of["per_class"][name]
                for name in classes
                for model, of in models.items()
                if name in of["per_class"]
            },
        ),
        sort_keys=SORT_KEYS,
        colors=list(colors),
        data={
            "reference": reference,
            "compared": table["compared"],
            "sorted_by": table["sorted_by"],
            "models": [name for name in models if name != reference],
            "classes": [name for name in classes if name in lost],
            "frames": frames,
        },
    )


def _counts_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    cells = [[name, *(str(of[key]) for key in _COUNTS), number(of["error"])] for name, of in rows.items()]
    return Table(title, ["", *_COUNTS, "error (m)"], cells)
