"""The page as HTML: one file, without anything that is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bevkd2.experiments.report import Results, Table
from bevkd2.experiments.spec import Experiment
from bevkd2.report.charts import color_class
from bevkd2.report.pictures import Pictures
from bevkd2.report.runs import Run
from bevkd2.report.scores import number, read_json
from bevkd2.report.sections import Section, experiment_sections, run_sections
from bevkd2.report.template import fill

SUMMARY = "summary.json"
"""What a demo writes beside its runs."""


@dataclass(frozen=True)
class Source:
    """What a page is about.

    Attributes:
        runs: from run folders.
        experiments: with the results of their finished runs.
        summaries: ``summary.json`` of demos.
    """

    runs: Sequence[Run]
    experiments: Sequence[tuple[Experiment, Results]] = ()
    summaries: Sequence[Path] = ()


def render(source: Source, draw: Callable[[Sequence[Run]], Pictures], *, title: str) -> str:
    """Returns the page.

    Args:
        source: what it is about.
        draw: makes the pictures of the runs.
        title: of the page.

    Raises:
        ValueError: there is nothing to report on, or scores follow different rules.
    """
    if not source.runs and not source.experiments:
        raise ValueError("there is no run and no experiment to report on")
    _check_one_family(source.runs)
    sections: list[Section] = []
    for experiment, results in source.experiments:
        sections += experiment_sections(experiment, results)
    if source.runs:
        sections += run_sections(source.runs, draw(source.runs), [_gains(path) for path in source.summaries])
    return fill(
        "page.html",
        "page.js",
        title=title,
        sections=sections,
        legend=[run.name for run in source.runs],
        color_class=color_class,
    )


def _check_one_family(runs: Sequence[Run]) -> None:
    """Refuses runs whose scores cannot be in one table."""
    kinds: dict[str, str] = {}
    for run in runs:
        for evaluation in run.evaluations.values():
            if evaluation.kind:
                kinds.setdefault(evaluation.kind, run.name)
    if len(kinds) > 1:
        told = "; ".join(f"{name} by the rules of {kind}" for kind, name in kinds.items())
        raise ValueError(
            f"the runs are scored by different rules ({told}), and cannot be compared; write a page for each"
        )


def _gains(path: Path) -> Table | str:
    """Returns by how much a demo's distilled students are better, and the noise of that; or why not."""
    rows = []
    try:
        for name, gain in read_json(path)["gain"].items():
            values = [number(gain[key]) for key in ("difference", "standard_error")]
            texts = ("-" if value is None else f"{value:+.3f}" for value in values)
            rows.append([f"{name} - student", *texts])
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return f"{path} is not the summary of a demo ({error!r})"
    header = ["difference of the headline score", "difference", "standard error over held-out parts"]
    return Table(
        f"Differences, one run each: another seed's change is not in the error ({path.parent.name})",
        header,
        rows,
    )
