"""Trains and scores every row and seed of an experiment, and writes its tables and pictures.

    bevkd2 experiment experiments/NAME.yaml --jobs 2

Worlds are made where they are absent. Each run is a process with one thread; one that was ended continues
from its last checkpoint, and one whose result is in --results is not run again. The results are small JSON
files, to be committed; on another machine the same command runs what is missing. docs/experiments.md
describes the YAML file, the results and the tables.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevkd2.cli import make_synthetic
from bevkd2.cli.paths import path_to_write
from bevkd2.config import import_plugin
from bevkd2.engine.defaults import add_import_option
from bevkd2.engine.launch import usable_cores
from bevkd2.experiments.report import markdown, write_pictures
from bevkd2.experiments.results import RESULTS, changed, finished, read_results
from bevkd2.experiments.run import discard, read_settings, run_one, run_settings
from bevkd2.experiments.runner import run_all
from bevkd2.experiments.spec import Experiment, Row, read_experiment


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="experiments/NAME.yaml")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; default: 1")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds")
    parser.add_argument(
        "--rerun", action="store_true", help="run again what was made with other settings, and discard that"
    )
    parser.add_argument("--tables", action="store_true", help="run nothing; write tables and pictures")
    parser.add_argument(
        "--output", type=path_to_write, default=Path("output") / "experiments", help="of all trainings"
    )
    parser.add_argument("--results", type=path_to_write, default=RESULTS, help="of all experiments")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that draw a world")
    add_import_option(parser)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # one run, in this process
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status: 1 where a run failed."""
    args = build_parser().parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}, expected at least 1")
    for package in args.plugins:
        import_plugin(package)
    experiment = read_experiment(args.experiment)
    runs = chosen(experiment, args)
    if args.one:
        for row, seed in runs:
            run_one(experiment, row, seed, output=args.output, results=args.results)
        return 0
    failed = 0
    if not args.tables:
        for world in dict.fromkeys((experiment.train, experiment.scored)):
            words = [*world.arguments, "--out", world.root, "--workers", str(args.workers)]
            make_synthetic.main([*words, *_imports(args)], progress=False)
        experiment.check()
        failed = train(experiment, runs, args)
    report(experiment, args)
    return 1 if failed else 0


def chosen(experiment: Experiment, args: argparse.Namespace) -> list[tuple[Row, int]]:
    """Returns the runs that --rows and --seeds name.

    Raises:
        ValueError: there is no such row or seed.
    """
    runs = experiment.runs()
    rows, seeds = list(experiment.rows), sorted({seed for _, seed in runs})
    for flag, named, known in (("--rows", args.rows, rows), ("--seeds", args.seeds, seeds)):
        if unknown := [value for value in named or () if value not in known]:
            raise ValueError(
                f"{flag}: {unknown[0]} is unknown; {experiment.path} has {', '.join(map(str, known))}"
            )
    return [
        (row, seed) for row, seed in runs if row.name in (args.rows or rows) and seed in (args.seeds or seeds)
    ]


def train(experiment: Experiment, runs: Sequence[tuple[Row, int]], args: argparse.Namespace) -> int:
    """Runs what has no result yet; returns how many runs failed.

    Raises:
        FileNotFoundError: weights that a run starts from or learns from do not exist.
        ValueError: a result was made with other settings, and --rerun is not given.
    """
    there = finished(args.results, experiment)
    for row, seed in runs:
        if args.rerun and discard(experiment, row, seed, output=args.output, results=args.results):
            there.pop((row.name, seed), None)
            say(f"discard {row.name} seed {seed}: made with other settings")
        settings = run_settings(experiment, row, seed)  # the weights are there
        path = there.get((row.name, seed))
        if path and (difference := changed(path, read_settings(path), settings, experiment)):
            raise ValueError(difference)
    missing = [(row, seed) for row, seed in runs if (row.name, seed) not in there]
    say(f"{experiment.name}: {len(runs)} runs, {len(missing)} to do, {args.jobs} at a time")

    def command(row: Row, seed: int) -> list[str]:
        words: list[Any] = [sys.executable, "-m", "bevkd2.cli", "experiment", experiment.path, "--one"]
        words += ["--rows", row.name, "--seeds", seed, "--output", args.output, "--results", args.results]
        words += _imports(args)
        return list(map(str, words))

    before = signal.signal(signal.SIGTERM, _end)  # so that the runs are ended too
    try:
        failed = run_all(
            experiment, missing, command, output=args.output, results=args.results, jobs=args.jobs, say=say
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        say(f"{len(failed)} runs failed: {', '.join(f'{run.row.name} seed {run.seed}' for run in failed)}")
    return len(failed)


def report(experiment: Experiment, args: argparse.Namespace) -> None:
    """Prints the tables, and writes them and the pictures to ``--output``/EXPERIMENT."""
    results = read_results(args.results, experiment)
    folder = args.output / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "tables.md"
    table.write_text(markdown(experiment, results) + "\n")
    print(f"\n{experiment.title}\n\n{table.read_text()}")
    for path in [table, *(write_pictures(experiment, results, folder) if results else ())]:
        print(f"  {path}")


def _imports(args: argparse.Namespace) -> list[str]:
    """Returns the --import options that were given, for another command line."""
    return [word for package in args.plugins for word in ("--import", package)]


def say(line: str) -> None:
    """Prints an event with its time of day.

    Args:
        line: what has happened.
    """
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def _end(_signal: int, _frame: object) -> None:
    raise SystemExit("ended by SIGTERM; the same command continues")
