"""What models lose against a reference, frame by frame: objects missed or found too far away, false boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bevkd2.structures.matches import DETECTION_STATES, FALSE, FAR, FOUND, MISSED, OBJECT_STATES, FrameMatches

SORT_KEYS = ("loss", "missed", "far", "false", "error")
"""What frames may be sorted by; see :class:`Loss`."""


@dataclass(frozen=True)
class Loss:
    """What a model loses against the reference in a frame, of one class or of all.

    Attributes:
        missed: objects that the reference finds and the model misses.
        far: objects that the reference finds and of which the model is too far.
        gained: objects that the model finds and the reference does not.
        false: false detections of the model, less those of the reference; never below 0.
        error: metres: the model's centre errors less the reference's, summed over the objects that both find.
        both: objects that both find.
    """

    missed: int
    far: int
    gained: int
    false: int
    error: float
    both: int

    @property
    def loss(self) -> int:
        """Objects missed and far, and false detections."""
        return self.missed + self.far + self.false

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and ``loss``; the error in millimetres' precision."""
        return {"loss": self.loss, **asdict(self), "error": round(self.error, 3)}


def loss_of(reference: FrameMatches, model: FrameMatches, label: int | None = None) -> Loss:
    """Compares two models in a frame.

    Args:
        reference: of the model that is compared with.
        model: of the other one, on the same objects.
        label: only objects and detections of this class; None: of all.
    """
    wanted = np.ones(len(model.labels), dtype=np.bool_) if label is None else model.labels == label
    found = (reference.objects == FOUND) & wanted
    both = found & (model.objects == FOUND)
    false = [_count_false(matches, label) for matches in (reference, model)]
    return Loss(
        missed=int((found & (model.objects == MISSED)).sum()),
        far=int((found & (model.objects == FAR)).sum()),
        gained=int((wanted & (model.objects == FOUND) & (reference.objects != FOUND)).sum()),
        false=max(0, false[1] - false[0]),
        error=float((model.errors - reference.errors)[both].sum()),
        both=int(both.sum()),
    )


def _count_false(matches: FrameMatches, label: int | None) -> int:
    chosen = matches.detections == FALSE
    return int((chosen if label is None else chosen & (matches.detection_labels == label)).sum())


def counts_of(matches: Sequence[FrameMatches], label: int | None = None) -> dict[str, Any]:
    """Counts what a model finds in frames.

    Args:
        matches: of the frames.
        label: only objects and detections of this class; None: of all.

    Returns:
        "objects" (those that count), "found", "far", "missed", "false", and "error", the mean distance in
        metres between the centres of the objects found and their detections; None where none is found.
    """
    counts = {"objects": 0, "found": 0, "far": 0, "missed": 0, "false": 0}
    errors: list[float] = []
    for frame in matches:
        wanted = np.ones(len(frame.labels), dtype=np.bool_) if label is None else frame.labels == label
        for state in (FOUND, FAR, MISSED):
            number = int((wanted & (frame.objects == state)).sum())
            counts[OBJECT_STATES[state]] += number
            counts["objects"] += number
        counts["false"] += _count_false(frame, label)
        errors += frame.errors[wanted & (frame.objects == FOUND)].tolist()
    return {**counts, "error": round(float(np.mean(errors)), 3) if errors else None}


def rank_frames(matches: Mapping[str, Sequence[FrameMatches]], compared: str, sort: str) -> list[int]:
    """Sorts frames by what a model loses against the first one, most first; of equals the earlier first.

    Args:
        matches: model -> frames; the first model is the reference.
        compared: the model whose losses sort the frames.
        sort: one of SORT_KEYS.

    Returns:
        The places of all frames.
    """
    reference = next(iter(matches.values()))
    losses = [loss_of(*pair) for pair in zip(reference, matches[compared], strict=True)]
    keys = [(-getattr(loss, sort), -loss.loss, -loss.error, i) for i, loss in enumerate(losses)]
    return [key[-1] for key in sorted(keys)]


def failure_table(
    matches: Mapping[str, Sequence[FrameMatches]],
    names: Sequence[str],
    class_names: Sequence[str],
    order: Sequence[int],
) -> dict[str, Any]:
    """Returns what is written as JSON.

    Args:
        matches: model -> frames; the first model is the reference.
        names: of the frames.
        class_names: in the order of the labels.
        order: the frames in the order of the table.

    Returns:
        "models": model -> counts of the split, see :func:`counts_of`, and "per_class" of those classes that
        occur; "frames": for each frame its name, its place in the split, the counts of each model, and
        "losses": what each other model loses against the reference, in all and per class, and the objects
        that it lost.
    """
    reference = next(iter(matches))
    return {
        "reference": reference,
        "models": {
            model: {**counts_of(frames), "per_class": _per_class_counts(frames, class_names)}
            for model, frames in matches.items()
        },
        "frames": [
            {
                "frame": names[i],
                "place": i,
                "models": {model: counts_of([frames[i]]) for model, frames in matches.items()},
                "losses": {
                    model: _losses(matches[reference][i], frames[i], class_names)
                    for model, frames in matches.items()
                    if model != reference
                },
            }
            for i in order
        ],
    }


def _per_class_counts(frames: Sequence[FrameMatches], class_names: Sequence[str]) -> dict[str, Any]:
    counts = {name: counts_of(frames, label) for label, name in enumerate(class_names)}
    return {name: found for name, found in counts.items() if found["objects"] or found["false"]}


def _losses(reference: FrameMatches, model: FrameMatches, class_names: Sequence[str]) -> dict[str, Any]:
    per_class = {name: loss_of(reference, model, label) for label, name in enumerate(class_names)}
    lost = np.flatnonzero((reference.objects == FOUND) & np.isin(model.objects, (FAR, MISSED)))
    return {
        **loss_of(reference, model).to_json(),
        "per_class": {name: loss.to_json() for name, loss in per_class.items() if any(asdict(loss).values())},
        "objects": [
            {
                "object": int(i),
                "class": class_names[model.labels[i]],
                "state": OBJECT_STATES[model.objects[i]],
                "error": None if np.isnan(model.errors[i]) else round(float(model.errors[i]), 3),
            }
            for i in lost
        ],
    }


def summary(matches: FrameMatches) -> str:
    """Returns the counts of a frame as a caption."""
    found = counts_of([matches])
    names = (*OBJECT_STATES[:3], DETECTION_STATES[FALSE])
    counts = ", ".join(f"{found[name]} {name}" for name in names)
    error = "" if found["error"] is None else f", centre error {found['error']:.2f} m"
    return f"{found['objects']} objects: {counts}{error}"
