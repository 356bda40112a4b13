"""Writes the tables of experiments into the pages that have a place for them, and their pictures.

python docs/make_results_tables.py

A place is what lies between ``<!-- experiment NAME -->`` and ``<!-- end of experiment NAME -->``, of
experiments/NAME.yaml. The numbers come from benchmarks/results/experiments/NAME (tools/run_experiment.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bevkd2.experiments import Experiment, Result, markdown, read_experiment, read_results, write_pictures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
PICTURES = "experiments"  # a folder beside the pages
PLACE = re.compile(r"(<!-- experiment (\S+) -->\n).*?(<!-- end of experiment \2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """Returns the pages that have a place for an experiment."""
    return [page for page in sorted((ROOT / "docs").glob("*.md")) if PLACE.search(page.read_text())]


def load(name: str, root: Path = ROOT) -> tuple[Experiment, Mapping[tuple[str, int], Result]]:
    """Returns an experiment and its finished runs."""
    experiment = read_experiment(root / "experiments" / f"{name}.yaml")
    return experiment, read_results(root / "benchmarks" / "results" / "experiments", experiment)


def filled(text: str, root: Path = ROOT) -> str:
    """Returns the text of a page with the current tables."""

    def fill(found: re.Match[str]) -> str:
        experiment, results = load(found[2], root)
        body = markdown(experiment, results)
        if results:
            name = f"{PICTURES}/{experiment.name}"
            body += f"\n\n![Differences to the baseline by row]({name}_intervals.png)"
            body += f"\n\n![Scores during training]({name}_curves.png)"
        return f"{found[1]}\n{body}\n\n{found[3]}"

    return PLACE.sub(fill, text)


def main() -> None:
    """Writes all pages and pictures."""
    for page in pages():
        text = page.read_text()
        for _, name, _ in PLACE.findall(text):
            experiment, results = load(name)
            if results:
                write_pictures(experiment, results, page.parent / PICTURES)
        page.write_text(filled(text))


if __name__ == "__main__":
    main()
