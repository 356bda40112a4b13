"""The sections of the page: what is in them, without HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bevkd2.engine.gradient_report import DETECTION
from bevkd2.experiments.report import Results, Table, compare, not_run, tables, values, with_results
from bevkd2.experiments.spec import Experiment
from bevkd2.experiments.statistics import paired_difference
from bevkd2.report.charts import Chart, Spread, bar_chart, interval_chart, line_chart
from bevkd2.report.pictures import Picture, Pictures
from bevkd2.report.runs import Run, seed_groups
from bevkd2.report.scores import Evaluation, number

_LONGEST = 160  # characters of a setting
_NOT_OF_LEARNING = ("iteration", "time", "data_time", "rank_data_time", "eta_seconds", "max_mem_mb")
_ONE_RUN = "one run"


@dataclass(frozen=True)
class Sliders:
    """Pictures of one frame, of which two at a time are compared.

    Attributes:
        frame: its name.
        pictures: one a model.
    """

    frame: str
    pictures: Sequence[Picture]


@dataclass
class Section:
    """A section of the page.

    Attributes:
        anchor: its id.
        title: its heading.
        text: what a reader must know to read it.
        tables: shown first.
        charts: shown below the tables.
        more: heading -> charts that are shown on request.
        sliders: frames.
        figures: heading -> pictures.
        lacks: what is not there and why, as sentences.
        legend: names in the order of their colours, where they are not the page's runs.
    """

    anchor: str
    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    more: dict[str, list[Chart]] = field(default_factory=dict)
    sliders: list[Sliders] = field(default_factory=list)
    figures: dict[str, list[Picture]] = field(default_factory=dict)
    lacks: list[str] = field(default_factory=list)
    legend: Sequence[str] = ()

    def note(self, runs: Iterable[Run], *keys: str) -> None:
        """Adds to ``lacks`` what runs lack in sections.

        Args:
            runs: their own notes are read.
            keys: names of sections, as :meth:`Run.lack` was given them.
        """
        for run in runs:
            self.lacks += [f"{run.name}: {why}" for key in keys for why in run.lacks.get(key, ())]


def run_sections(runs: Sequence[Run], pictures: Pictures, gains: Sequence[Table | str] = ()) -> list[Section]:
    """Returns the sections of run folders.

    Args:
        runs: at least one.
        pictures: of their models.
        gains: tables of a demo's differences, or why there is none.
    """
    places = {run.name: place for place, run in enumerate(runs)}
    return [
        _scores(runs, gains),
        _curves(runs, places),
        _classes(runs, places),
        _errors(runs, places),
        _precision(runs, places),
        _gradients(runs, places),
        *_pictures(pictures),
        _config(runs),
        _environment(runs),
    ]


def experiment_sections(experiment: Experiment, results: Results) -> list[Section]:
    """Returns the sections of an experiment.

    Args:
        experiment: names rows and metrics.
        results: its finished runs, by row and seed; where there are none, the only section says so.
    """
    name = experiment.name
    scores = Section(
        f"{name}-scores",
        f"Experiment {name}: {experiment.title}",
        "Means over the seeds (n), and differences to the baseline over the seeds that both have. The "
        "interval over seeds is Student's t; that over seeds and scenes is a two-way bootstrap; p values are "
        "adjusted by Holm's method. docs/experiments.md says how to read them.",
    )
    if missing := not_run(experiment, results):
        scores.lacks.append(missing)
    if not results:
        scores.lacks.append("no run is finished")
        return [scores]
    for table in tables(experiment, results):
        cells = [[cell.strip("`") for cell in row] for row in table.rows]  # they are for Markdown
        scores.tables.append(Table(table.title, table.header, cells))
    rows = with_results(experiment, results)
    for metric in experiment.primary:
        single = [row.label for row_name, row in rows if len(values(results, row_name, metric)) == 1]
        if single:
            scores.lacks.append(f"{metric}, {_ONE_RUN}, so no interval: {'; '.join(single)}")
        scores.charts += _spreads(experiment, results, metric)
    places = {row.label: place for place, (_, row) in enumerate(rows)}
    curves = Section(
        f"{name}-curves",
        f"Experiment {name}: scores during training",
        "On the training world's own test split; means over the seeds.",
        legend=tuple(places),
    )
    for metric in dict.fromkeys(metric.partition("@")[0] for metric in experiment.primary):
        lines = {row.label: _mean_curve(results, row_name, metric) for row_name, row in rows}
        if any(lines.values()):
            curves.charts.append(line_chart(metric, lines, places))
        else:
            curves.lacks.append(f"{metric}: no evaluation during training")
    others = Section(
        f"{name}-others",
        f"Experiment {name}: other scores",
        "Differences to the baseline, as above. Of errors (nuScenes' mATE to mAAE) smaller is better: a "
        "difference below 0 is a gain.",
    )
    for metric in experiment.secondary:
        others.charts += _spreads(experiment, results, metric)
    others.lacks.append(
        "no AP and no errors per class, and no precision over recall: results of an experiment do not hold "
        f"them; where the run folders are kept, bevkd2 report output/experiments/{name} shows them"
    )
    machines = Section(f"{name}-environment", f"Experiment {name}: environment")
    cells = []
    for (row_name, seed), result in results.items():
        content, machine = result.content, result.content.get("machine", {})
        versions = [str(content.get(key, "-")) for key in ("version", "commit", "torch", "seconds")]
        where = f"{machine.get('processor', '-')}, {machine.get('threads', '-')} threads"
        cells.append([experiment.rows[row_name].label, str(seed), *versions, where])
    header = ["", "seed", "bevkd2", "commit", "PyTorch", "seconds", "machine"]
    machines.tables = [Table("Where the runs were made", header, cells)]
    return [scores, others, curves, machines]


def _spreads(experiment: Experiment, results: Results, metric: str) -> list[Chart]:
    plain, rows = values(results, experiment.baseline, metric), []
    found = compare(experiment, results, metric)
    for name, row in with_results(experiment, results):
        own = values(results, name, metric)
        single = [own[seed] - plain[seed] for seed in own if seed in plain]
        if name != experiment.baseline and single:
            of = found[name].difference
            ends = (of.mean, of.low, of.high) if of else (None, None, None)
            rows.append(Spread(row.label, single, *ends))
    label = f"difference to {experiment.rows[experiment.baseline].label}"
    return [interval_chart(metric, rows, label, 3)] if rows else []


def _mean_curve(results: Results, row: str, metric: str) -> list[tuple[float, float]]:
    points: dict[int, list[float]] = {}
    for (name, _), result in results.items():
        for entry in result.curve if name == row else ():
            value = number(entry.get(metric))
            if value is not None:
                points.setdefault(entry["iteration"], []).append(value)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(points.items())]


def _evaluations(runs: Sequence[Run]) -> list[tuple[str, Run, Evaluation]]:
    """Returns every evaluation, and its label: that of the run, and what is special about it."""
    return [
        (f"{run.name} ({what})" if what else run.name, run, evaluation)
        for run in runs
        for what, evaluation in run.evaluations.items()
    ]


def _scores(runs: Sequence[Run], gains: Sequence[Table | str]) -> Section:
    section = Section("scores", "Scores")
    evaluations = _evaluations(runs)
    groups = seed_groups(runs)
    section.note(runs, "scores")
    if not evaluations:
        return section
    kinds = {evaluation.kind for _, _, evaluation in evaluations if evaluation.kind}
    section.text = (
        f"By the rules of {', '.join(kinds) or 'their data format'}. A single run has no interval: how much "
        "another seed would change is unknown."
    )
    columns = list(dict.fromkeys(column for _, _, found in evaluations for column in found.scores))
    rows = [
        [label, _ONE_RUN, *(_text(found.scores.get(column), found.digits) for column in columns)]
        for label, _, found in evaluations
    ]
    section.tables.append(Table("Final scores", ["run", "runs", *columns], rows))
    means = [row for group in groups for row in _means(group)]
    if means:
        header = [
            "runs of one setting",
            "n",
            "score",
            "mean",
            "sd",
            "95 % interval of the mean (Student's t)",
        ]
        section.tables.append(Table("Means over seeds", header, means))
    section.tables += [gain for gain in gains if isinstance(gain, Table)]
    section.lacks += [gain for gain in gains if isinstance(gain, str)]
    return section


def _means(group: Sequence[Run]) -> list[list[str]]:
    rows = []
    for what in dict.fromkeys(what for run in group for what in run.own_evaluations):
        found = [run.evaluations[what] for run in group if what in run.evaluations]
        names = ", ".join(run.name for run in group) + (f" ({what})" if what else "")
        for column in found[0].scores:
            scores = [value for evaluation in found if (value := evaluation.scores.get(column)) is not None]
            mean = paired_difference(scores)  # the t interval of any sample's mean
            if mean is not None:
                texts = [_text(value, found[0].digits) for value in (mean.mean, mean.sd, mean.low, mean.high)]
                rows.append([names, str(mean.n), column, *texts[:2], f"{texts[2]} to {texts[3]}"])
    return rows


def _curves(runs: Sequence[Run], places: Mapping[str, int]) -> Section:
    section = Section(
        "curves",
        "Learning curves",
        "As metrics.json has them: losses are medians of 20 iterations. total_loss of a distillation has the "
        "distillation losses in it, so compare single losses between runs.",
    )
    section.note(runs, "curves")
    names = dict.fromkeys(
        name
        for run in runs
        if run.metrics is not None
        for row in run.metrics.rows.values()
        for name in row
        if name not in _NOT_OF_LEARNING and not name.startswith("teacher/")
    )
    best = {str(run.config.get("TEST.BEST_METRIC", "")) for run in runs} | {"bbox/mAP", "bbox/NDS"}
    for name in sorted(names):
        lines = {run.name: _line(run, name) for run in runs}
        chart = line_chart(name, {run: points for run, points in lines.items() if points}, places)
        if name == "total_loss" or name in best:
            section.charts.append(chart)
        else:
            section.more.setdefault(_kind_of_scalar(name), []).append(chart)
    section.charts.sort(key=lambda chart: chart.title != "total_loss")
    return section


def _kind_of_scalar(name: str) -> str:
    if name.startswith(("loss_distill", "distill_raw/")):
        return "Distillation losses"
    if "/" in name:
        return "Other scores"
    return "Detection losses" if name.startswith("loss") else "Learning rate, gradients and others"


def _line(run: Run, name: str) -> list[tuple[float, float]]:
    rows = run.metrics.rows if run.metrics is not None else {}
    pairs = [(iteration, number(row.get(name))) for iteration, row in rows.items()]
    return [(float(iteration), value) for iteration, value in pairs if value is not None]


def _classes(runs: Sequence[Run], places: Mapping[str, int]) -> Section:
    section = Section("classes", "Average precision per class")
    section.note(runs, "classes")
    found = _plain(runs)
    if any(evaluation.kind == "nuScenes" for evaluation in found.values()):
        section.text = "The devkit counts a class without ground truth as 0."
    titles = dict.fromkeys(title for evaluation in found.values() for title in evaluation.classes)
    for title in titles:
        by_run = {run: e.classes[title] for run, e in found.items() if title in e.classes}
        first = next(e for e in found.values() if title in e.classes)
        chart = bar_chart(title, _turned(by_run), places, digits=first.digits, largest=first.full)
        section.charts.append(chart)
        section.tables.append(_class_table(title, by_run, first.digits))
    return section


def _errors(runs: Sequence[Run], places: Mapping[str, int]) -> Section:
    section = Section("errors", "True positive errors")
    found = _plain(runs)
    titles = dict.fromkeys(title for evaluation in found.values() for title in evaluation.errors)
    if not titles:
        section.lacks.append(
            "no run has them: only nuScenes' score defines them (KITTI's measures headings by AOS, above)"
        )
        return section
    section.text = (
        "Of detections within 2 m of an object; smaller is better. The devkit counts a class without one "
        "as 1; some classes have no heading, velocity or attribute (not defined)."
    )
    for title in titles:
        by_run = {run: e.errors[title] for run, e in found.items() if title in e.errors}
        digits = next(e.digits for e in found.values() if title in e.errors)
        section.charts.append(bar_chart(title, _turned(by_run), places, digits=digits, missing="not defined"))
        section.tables.append(_class_table(title, by_run, digits))
    return section


def _precision(runs: Sequence[Run], places: Mapping[str, int]) -> Section:
    section = Section("precision", "Precision over recall")
    section.note(runs, "precision")
    found = {run: evaluation for run, evaluation in _plain(runs).items() if evaluation.curves}
    if any(evaluation.kind == "nuScenes" for evaluation in found.values()):
        section.text = (
            "A detection is right within 2 m of an object. AP is the mean over 0.5, 1, 2 and 4 m of the area "
            "above 10 % precision and recall. Classes that no run finds are left out."
        )
    for title in dict.fromkeys(title for evaluation in found.values() for title in evaluation.curves):
        lines = {run: e.curves[title] for run, e in found.items() if title in e.curves}
        if any(precision > 0 for points in lines.values() for _, precision in points):
            section.charts.append(line_chart(title, lines, places, x_label="recall", unit_square=True))
    if found and not section.charts:
        section.lacks.append("no run finds an object of any class: every precision is 0")
    if not found and not section.lacks:
        section.lacks.append("no run has curves")
    return section


def _gradients(runs: Sequence[Run], places: Mapping[str, int]) -> Section:
    section = Section(
        "gradients",
        "Gradients of the distillation losses",
        "The norm of each loss's gradient on a part of the student, over that of all detection losses: a "
        "loss of 1 % hardly changes what the part learns.",
    )
    section.note(runs, "gradients")
    rows, parts, bars = [], dict[str, None](), dict[str, dict[str, float | None]]()
    for run in runs:
        for name, entry in _dicts(run.gradients.get("losses")):
            shares = dict(_numbers(entry.get("share")))
            if name != DETECTION and shares:
                parts |= dict.fromkeys(shares)
                short = name.removeprefix("loss_distill_")
                rows.append((run.name, short, shares))
                first = next(iter(shares.values()))
                bars.setdefault(short, {})[run.name] = None if first is None else 100 * first
    if not rows:
        if not section.lacks:
            section.lacks.append("no run has a distillation loss with a share")
        return section
    percent = [[run, name, *(_percent(shares.get(part)) for part in parts)] for run, name, shares in rows]
    section.tables.append(Table("Shares by part of the student", ["run", "method", *parts], percent))
    section.charts.append(
        bar_chart(f"{next(iter(parts))}, percent", bars, places, digits=1, missing="not defined")
    )
    return section


def _pictures(pictures: Pictures) -> list[Section]:
    titles = {
        "detections": ("Predictions", "Move the slider to compare two models on the same frame."),
        "attention": (
            "Spatial attention",
            "What the BEV cell of the nearest object samples in the cameras (structured distillation, "
            "Fig. 5).",
        ),
        "temporal": (
            "Temporal attention",
            "Where the same cell samples the previous and the current BEV (Fig. 5).",
        ),
        "bev_response": ("BEV response", "The mean absolute BEV feature (structured distillation, Fig. 6)."),
        "features": (
            "Features",
            "The mean absolute FPN feature (depth-guided distillation, Fig. 8): models share a colour scale.",
        ),
    }
    sections = [
        Section(kind, titles.get(kind, (kind.capitalize(), ""))[0], titles.get(kind, ("", ""))[1])
        for kind in dict.fromkeys(["detections", *pictures.kinds])
    ]
    sections[0].lacks = list(pictures.lacks)
    for section in sections:
        for frame, drawn in pictures.kinds.get(section.anchor, {}).items():
            if section.anchor == "detections":
                section.sliders.append(Sliders(frame, drawn))
            else:
                section.figures[f"frame {frame}"] = drawn
    absent = [title for kind, (title, _) in titles.items() if kind not in pictures.kinds]
    if absent and pictures.kinds:
        sections[0].lacks.append(
            f"these models and this data format have no pictures of: {', '.join(absent)}"
        )
    elif absent and not sections[0].lacks:
        sections[0].lacks.append("the split has no frame")
    return sections


def _config(runs: Sequence[Run]) -> Section:
    section = Section("config", "Settings that differ")
    section.note(runs, "config")
    known = [run for run in runs if run.config]
    if len(known) < 2:
        section.lacks.append("one run, nothing to compare with" if known else "no run has settings")
        return section
    rows = []
    for key in sorted(set().union(*(run.config for run in known))):
        having = [run for run in known if key in run.config]
        # The config of a teacher is a part of a distillation's; runs without one do not differ in it.
        compared = having if ".RESOLVED" in key else known
        texts = {run.name: repr(run.config[key]) if run in having else None for run in known}
        if key != "OUTPUT_DIR" and len({texts[run.name] for run in compared}) > 1:
            rows.append([key, *(_cut(text) for text in texts.values())])
    section.tables.append(
        Table(f"{len(rows)} settings differ", ["setting", *(run.name for run in known)], rows)
    )
    return section


def _environment(runs: Sequence[Run]) -> Section:
    section = Section("environment", "Environment")
    section.note(runs, "environment")
    content: dict[str, dict[str, str]] = {}
    for run in runs:
        told = {**run.environment, **_speed(run)}
        for key in ("SEED", "MODEL.DEVICE"):
            if key in run.config:
                told[key] = str(run.config[key])
        for key, value in told.items():
            content.setdefault(key, {})[run.name] = _cut(value)
    rows = [[key, *(told.get(run.name, "-") for run in runs)] for key, told in content.items()]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    if len(runs) > 1 and same:
        section.tables.append(Table("The same in all runs", ["", "all runs"], same))
        rows = [row for row in rows if row[:2] not in same]
    rows.append(["folder", *(str(run.folder) for run in runs)])
    section.tables.append(Table("By run", ["", *(run.name for run in runs)], rows))
    return section


def _speed(run: Run) -> dict[str, str]:
    rows = run.metrics.rows.values() if run.metrics is not None else ()
    found = {}
    for name, title, digits in (("time", "seconds per iteration", 3), ("max_mem_mb", "peak memory (MiB)", 0)):
        measured = [value for row in rows if (value := number(row.get(name))) is not None]
        if measured:
            found[title] = f"{max(measured) if name == 'max_mem_mb' else median(measured):.{digits}f}"
    return found


def _plain(runs: Sequence[Run]) -> dict[str, Evaluation]:
    """Returns run -> its last evaluation on the first split, not its teacher's."""
    return {run.name: next(iter(run.own_evaluations.values())) for run in runs if run.own_evaluations}


def _turned(by_run: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Returns class -> run -> value."""
    names = dict.fromkeys(name for of in by_run.values() for name in of)
    return {name: {run: of.get(name) for run, of in by_run.items()} for name in names}


def _class_table(title: str, by_run: Mapping[str, Mapping[str, float | None]], digits: int) -> Table:
    rows = [[name, *(_text(v, digits) for v in of.values())] for name, of in _turned(by_run).items()]
    return Table(title, ["class", *by_run], rows)


def _dicts(value: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(k, v) for k, v in value.items() if isinstance(v, dict)] if isinstance(value, dict) else []


def _numbers(value: Any) -> list[tuple[str, float | None]]:
    return [(k, number(v)) for k, v in value.items()] if isinstance(value, dict) else []


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2g} %"


def _cut(text: str | None) -> str:
    if text is None:
        return "-"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
