"""Writes the tables of measurements into the pages that have a place for them.

python docs/make_benchmark_tables.py

The name of a place (page_tables.py) is ``TABLE FILE``: one of ``TABLES``, and the result file in
benchmarks/results, without its suffix. Several machines are several places; a table of several files, such as
``overhead``, has one in each row.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from page_tables import RESULTS, ROOT, Places, markdown_table, percent, three_digits

from bevkd2.experiments.statistics import paired_difference

sys.path.append(str(ROOT))  # of the package benchmarks, which is not installed

PLACES = Places("measured")
PAIRS = ("BEVFormer", "PGD")
"""Of bench_training_options.py."""
ATTENTION = ("spatial", "temporal", "tiny", "decoder")
Row = dict[str, Any]


def attention(found: Row) -> str:
    """Returns ms of deformable attention with local offsets in float32, and the baselines' ratios."""
    rows = _rows(found, "Deformable attention", dtype="float32")
    baselines = _baselines(row for row in rows if row["ratio"])
    cells = []
    for case in ATTENTION:
        line = [case]
        for part in ("forward", "backward"):
            own = [row for row in rows if row["case"] == f"{case}, local" and row["part"] == part]
            line += [three_digits(own[0]["ours_ms"]), *(_ratio(own, name) for name in baselines)]
        cells.append(line)
    return markdown_table(cells, ["deformable attention", "forward", *baselines, "backward", *baselines])


def threads(found: Row) -> str:
    """Returns how many times as fast two threads are as one."""
    rows = _rows(found, "Threads")
    cases = list(dict.fromkeys(row["case"].split(",")[0] for row in rows))
    parts = ("forward", "backward")
    ratios = {(row["case"].split(",")[0], row["part"]): f"{row['ratio']:.2f} x" for row in rows}
    return markdown_table(
        [[case, *(ratios[case, part] for part in parts)] for case in cases], ["two threads", *parts]
    )


def capabilities(found: Row) -> str:
    """Returns ms of deformable attention with AVX2 and with AVX-512, and the speed-up with its quartiles."""
    cells = []
    for case in (case for case in ATTENTION if case in found["cases"]):
        line = [case]
        for part in ("forward", "backward"):
            one = found["cases"][case][part]
            low, high = one["quartiles"]
            line += [three_digits(one["avx2_ms"]), three_digits(one["avx512_ms"])]
            line.append(f"{one['speedup']:.2f} ({low:.2f} to {high:.2f})")
        cells.append(line)
    columns = [[f"{part}, AVX2", "AVX-512", "speed-up"] for part in ("forward", "backward")]
    return markdown_table(cells, ["ms", *columns[0], *columns[1]])


def ragged(found: Row) -> str:
    """Returns ms and memory of spatial cross-attention over visible pairs, and those of the padded form."""
    rows = _rows(found, "Spatial cross-attention, ragged")
    cells = []
    for case in dict.fromkeys(row["case"] for row in rows):
        by_part = {row["part"]: row for row in rows if row["case"] == case}
        forward, backward = by_part["forward"], by_part["backward"]
        memory = (forward["memory_mib"], forward["baseline_memory_mib"])
        times = [text for row in (forward, backward) for text in (three_digits(row["ours_ms"]), _times(row))]
        cells.append([case, *times, *map(three_digits, memory)])
    return markdown_table(
        cells, ["spatial attention", "forward", "padded", "backward", "padded", "memory (MiB)", "padded"]
    )


def losses(found: Row) -> str:
    """Returns ms and memory of the distillation losses and their gradients, and eager torch's ratios."""
    rows = _rows(found, "Distillation losses")
    cells = []
    for case in dict.fromkeys(row["case"] for row in rows):
        by_type = {row["dtype"]: row for row in rows if row["case"] == case}
        single, half = by_type["float32"], by_type["bfloat16"]
        memory = (single["memory_mib"], single["baseline_memory_mib"])
        cells.append(
            [
                case,
                *(three_digits(single["ours_ms"]), _times(single)),
                *map(three_digits, memory),
                *(three_digits(half["ours_ms"]), _times(half)),
            ]
        )
    header = ["loss", "float32", "eager", "memory (MiB)", "eager", "bfloat16", "eager under autocast"]
    return markdown_table(cells, header)


def boxes(found: Row) -> str:
    """Returns ms of the ops of rotated boxes, and the ratios of the baselines."""
    rows = _rows(found, "Rotated boxes")
    baselines = _baselines(rows)
    cells = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        cells.append([case, three_digits(own[0]["ours_ms"]), *(_ratio(own, name) for name in baselines)])
    return markdown_table(cells, ["rotated boxes", "ms", *baselines])


def steps(found: Row) -> str:
    """Returns the seconds of a distillation step with and without the ops, and the shares of these."""
    cells = [
        [
            size,
            three_digits(step["distillation_step_plain"]["seconds"]),
            percent(step["share_of_plain_forms"]),
            three_digits(step["distillation_step"]["seconds"]),
            percent(step["share_of_ops"]),
        ]
        for size, step in found["steps"].items()
    ]
    reference = "with reference implementations (s)"
    return markdown_table(
        cells, ["a distillation step", reference, "share of these", "with the ops (s)", "share of these"]
    )


def kitti(found: Row) -> str:
    """Returns the seconds of KITTI's score."""
    cells = [
        f"{found['frames']:,}",
        str(found["detections"]),
        *(f"{found[f'{part} seconds']:.2f} s" for part in ("reading", "scoring", "total")),
    ]
    return markdown_table([cells], ["frames", "detections of each", "reading", "scoring", "together"])


def overhead(*files: Row) -> str:
    """Returns what a distillation step costs beside its parts, and how much of the teacher is skipped."""
    cells = []
    for found in files:
        low, high = found["distillation_over_parts_quartiles"]
        parts = ("student_step", "teacher_forward", "teacher_needed", "distillation_step")
        student, whole, needed, step = (f"{found[part]['seconds']:.1f}" for part in parts)
        skipped = percent(found["teacher_skipped"])
        ratio = f"{found['distillation_over_parts']:.2f} ({low:.2f} to {high:.2f})"
        cells.append([f"`{found['config']}`", student, whole, needed, skipped, step, ratio])
    header = ["config", "student's step", "whole teacher", "what is read", "skipped", "distillation step"]
    return markdown_table(cells, [*header, "over student and what is read"])


def bfloat16_losses(found: Row) -> str:
    """Returns by which share a teacher in bfloat16 changes the distillation losses."""
    cells = [
        [pair, f"`{loss}`", percent(change, 4)]
        for pair in PAIRS
        for loss, change in found[pair]["teacher in bfloat16"]["change"].items()
        if loss.startswith("loss_distill_")
    ]
    return markdown_table(cells, ["pair", "loss", "change"])


def options(found: Row) -> str:
    """Returns the time of a step with each option over that of one without it."""
    names = dict.fromkeys(name for pair in PAIRS for name in found[pair] if name != "shares")
    cells = []
    for name in names:
        measured = [found[pair].get(name) for pair in PAIRS]
        ratios = (f"{one['seconds'] / one['plain_seconds']:.2f} x" if one else "" for one in measured)
        cells.append([name, *ratios])
    return markdown_table(cells, ["a step with", *PAIRS])


def shares(found: Row) -> str:
    """Returns the shares of a distillation step that could be saved."""
    work = {"normalising": "the teacher's images normalised", "scaling": "gradients times `FACTOR * WEIGHT`"}
    cells = [
        [text, *(percent(found[pair]["shares"][name], 2) for pair in PAIRS)] for name, text in work.items()
    ]
    return markdown_table(cells, ["share of a step", *PAIRS])


def decoding(found: Row) -> str:
    """Returns what reduced decoding changes and saves, resizing included."""
    measured = {name: one for name, one in found["decoding"].items() if name != "images"}
    cells = [
        [
            name,
            f"{one['mean_difference_grey_levels']:.1f}",
            f"{1000 * one['seconds_whole']:.1f} ms",
            f"{1000 * one['seconds_reduced']:.1f} ms",
            percent(1 - one["seconds_reduced"] / one["seconds_whole"]),
        ]
        for name, one in measured.items()
    ]
    return markdown_table(cells, ["size", "mean difference, of 255", "decoded whole", "reduced", "less time"])


def loader(found: Row) -> str:
    """Returns the images that a loader worker makes per second of processor time."""
    rates = found["images_per_cpu_second"]
    work = {
        "decode": "decoding",
        "decode, half": "decoding and resizing to half",
        "sample": "a training sample at half size, with distortion, without history",
    }
    cells = [
        [text, *(f"{rates[key]:.0f}" if key in rates else "" for key in (name, f"{name}, reduced"))]
        for name, text in work.items()
    ]
    return markdown_table(cells, ["work", "images decoded whole", "with `INPUT.REDUCED_DECODING`"])


def index(found: Row) -> str:
    """Returns processor time and memory of the index of nuScenes' tables."""
    build, start, score = found["build"]["train"], found["start"]["train"], found["score"]["val"]["tables"]
    cells = [
        ["importing the libraries", "", f"{build['import_peak'] / 1024:.2f} GiB"],
        *(
            [text, f"{one['cpu_seconds']:.3g} s", f"{one['peak'] / 1024:.2f} GiB"]
            for text, one in (
                ("making the index of `train`", build),
                ("the next start", start),
                ("reading what scores `val`", score),
            )
        ),
    ]
    return markdown_table(cells, ["step", "processor time", "peak of memory"])


def workers(found: Row) -> str:
    """Returns the memory that loader workers have of their own, by split."""
    cells = []
    for split, one in found["workers"].items():
        own_memory = (_span(one[when]["unique"]) for when in ("first", "last"))
        cells.append([f"`{split}`", f"{one['index_megabytes']:.0f} MB", *own_memory])
    count = found["workers"]["train"]["samples"]
    own = "own memory of a worker"
    return markdown_table(cells, ["split", "index", f"{own}, first samples", f"{own}, {count:,} samples"])


def depth_guided_means(found: Row) -> str:
    """Returns the mean scores over the seeds by row, and the standard deviation of 3D, moderate."""
    metrics = [f"{view} {level}" for view in ("BEV", "3D") for level in ("easy", "moderate", "hard")]
    cells = [["teacher", *(f"{found['teacher'][metric]:.1f}" for metric in metrics), ""]]
    for name, runs in _by_row(found).items():
        means = (statistics.mean(run[metric] for run in runs) for metric in metrics)
        spread = statistics.stdev(run["3D moderate"] for run in runs)
        cells.append([name, *(f"{mean:.1f}" for mean in means), f"{spread:.1f}"])
    return markdown_table(cells, ["", *metrics, "sd"])


def depth_guided_seeds(found: Row) -> str:
    """Returns 3D, moderate, of each row and seed."""
    rows = _by_row(found)
    cells = [[name, *(f"{run['3D moderate']:.1f}" for run in runs)] for name, runs in rows.items()]
    return markdown_table(cells, ["", *(f"seed {run['seed']}" for run in rows["student"])])


def depth_guided_differences(found: Row) -> str:
    """Returns the differences of 3D, moderate, to the plain student of the same seed."""
    rows = _by_row(found)
    plain = rows.pop("student")
    cells = []
    for name, runs in rows.items():
        pairs = zip(runs, plain, strict=True)
        paired = paired_difference([run["3D moderate"] - own["3D moderate"] for run, own in pairs])
        if paired is None:
            raise ValueError(f"{name} has one seed, expected several; leave it out of the file")
        interval = f"{paired.low:.1f} to {paired.high:.1f}"
        cells.append([name, f"{paired.mean:.1f}", f"{paired.sd:.1f}", interval])
    return markdown_table(cells, ["", "mean", "sd", "95 % interval"])


def detectors(found: Row) -> str:
    """Returns parameters and multiply-adds of the detectors."""
    from benchmarks.model_zoo import table  # here: it imports the detectors

    return table(found)


TABLES: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(attention, threads, capabilities, ragged, losses, boxes, steps, kitti, overhead),
        *(bfloat16_losses, options, shares, decoding, loader, index, workers),
        *(depth_guided_means, depth_guided_seeds, depth_guided_differences, detectors),
    )
}


def body(name: str, results: Path = RESULTS) -> str:
    """Returns the table of a place by its name.

    Raises:
        KeyError: the table is not one of ``TABLES``.
        FileNotFoundError: there is no such result file.
    """
    table, *files = name.split()
    if table not in TABLES:
        raise KeyError(f"<!-- measured {name} -->: no table {table!r}; expected one of {', '.join(TABLES)}")
    return TABLES[table](*(json.loads((results / f"{file}.json").read_text()) for file in files))


def _rows(found: Row, family: str, **where: str) -> list[Row]:
    """Returns the rows of a family of bench.py, in the order of the file."""
    return [
        row
        for row in found["rows"]
        if row["family"] == family and all(row[key] == value for key, value in where.items())
    ]


def _baselines(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["baseline"] for row in rows))


def _ratio(rows: Iterable[Row], baseline: str) -> str:
    """Returns how many times as long a baseline took, "" where it was not measured."""
    return next((_times(row) for row in rows if row["baseline"] == baseline and row["ratio"]), "")


def _times(row: Row) -> str:
    return f"{three_digits(row['ratio'])} x"


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f} MiB"


def _by_row(found: Row) -> dict[str, list[Row]]:
    """Returns the runs by row, in the order of the seeds."""
    rows: dict[str, list[Row]] = {}
    for run in sorted(found["runs"], key=lambda run: run["seed"]):
        rows.setdefault(run["row"], []).append(run)
    return rows


if __name__ == "__main__":
    PLACES.write(body)
