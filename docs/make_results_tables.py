"""Writes the tables of experiments into the pages that have a place for them, and their pictures.

python docs/make_results_tables.py

The name of a place (page_tables.py) is that of a file in experiments/. The numbers come from
benchmarks/results/experiments/NAME (tools/run_experiment.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import page_tables
from page_tables import DOCS, ROOT, Places

from bevkd2.experiments import Experiment, Result, markdown, read_experiment, read_results, write_pictures

RESULTS = page_tables.RESULTS / "experiments"
PICTURES = "experiments"  # a folder beside the pages
PLACES = Places("experiment")


def load(name: str, root: Path = ROOT) -> tuple[Experiment, Mapping[tuple[str, int], Result]]:
    """Returns an experiment and its finished runs."""
    experiment = read_experiment(root / "experiments" / f"{name}.yaml")
    return experiment, read_results(root / "benchmarks" / "results" / "experiments", experiment)


def body(name: str, root: Path = ROOT) -> str:
    """Returns the tables of an experiment, and links to its pictures."""
    experiment, results = load(name, root)
    text = markdown(experiment, results)
    if results:
        picture = f"{PICTURES}/{experiment.name}"
        text += f"\n\n![Differences to the baseline by row]({picture}_intervals.png)"
        text += f"\n\n![Scores during training]({picture}_curves.png)"
    return text


def main() -> None:
    """Writes all pages and pictures."""
    for page in PLACES.pages():
        for name in PLACES.names(page.read_text()):
            experiment, results = load(name)
            if results:
                write_pictures(experiment, results, DOCS / PICTURES)
    PLACES.write(body)


if __name__ == "__main__":
    main()
