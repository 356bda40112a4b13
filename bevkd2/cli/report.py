"""Writes one HTML page about runs: curves, scores, pictures, attention, settings.

    bevkd2 report output/demo
    bevkd2 report output/plain output/distilled --output compared.html --frames 4
    bevkd2 report experiments/structured.yaml

OUTPUT is the folder of a run (OUTPUT_DIR), a folder of run folders such as the output of `bevkd2 demo`, or an
experiment: its YAML file, or the folder of its results. The page is one file that loads nothing else. What a
run does not have is said in the page.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from bevkd2.checkpoint.io import replace_atomically
from bevkd2.cli.paths import path_to_write
from bevkd2.cli.visualize import load_model
from bevkd2.config import import_plugin
from bevkd2.engine.defaults import add_import_option
from bevkd2.engine.options import finite_number
from bevkd2.experiments.results import RESULTS, read_results
from bevkd2.experiments.spec import read_experiment
from bevkd2.report.page import SUMMARY, Source, render
from bevkd2.report.pictures import draw_frames
from bevkd2.report.runs import read_runs, run_folders


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outputs", nargs="+", type=Path, metavar="OUTPUT", help="runs and experiments")
    parser.add_argument(
        "--output",
        type=path_to_write,
        default=Path("report.html"),
        metavar="FILE",
        help="default: report.html",
    )
    parser.add_argument("--title", help="of the page; by default the names of the OUTPUTs")
    parser.add_argument(
        "--frames", type=int, default=2, metavar="N", help="frames to draw; 0: none, and no model is loaded"
    )
    parser.add_argument(
        "--score-thresh", type=finite_number, default=0.3, help="least score of a drawn detection"
    )
    parser.add_argument("--device", default="auto", help="MODEL.DEVICE of the models that draw")
    parser.add_argument("--results", type=path_to_write, default=RESULTS, help="of all experiments")
    add_import_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and prints its path; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.frames < 0:
        raise ValueError(f"--frames is {args.frames}, expected 0 or more")
    for package in args.plugins:
        import_plugin(package)
    draw = functools.partial(
        draw_frames,
        num=args.frames,
        load_model=load_model,
        device=args.device,
        score_threshold=args.score_thresh,
    )
    title = args.title or f"Report: {', '.join(path.resolve().name for path in args.outputs)}"
    page = render(read_outputs(args.outputs, args.results), draw, title=title)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(args.output, lambda file: file.write(page.encode()))
    print(args.output)
    return 0


def read_outputs(paths: Sequence[Path], results: Path) -> Source:
    """Reads what the command line names.

    Args:
        paths: run folders, folders of them, and experiments.
        results: of experiments that are named by their YAML files.

    Raises:
        FileNotFoundError: a path, or the YAML file of a folder of results, does not exist.
        ValueError: a path is none of these.
    """
    folders: list[Path] = []
    experiments, summaries = [], []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"OUTPUT {path} does not exist; name a run's OUTPUT_DIR or an experiment")
        if path.is_file():
            experiment = read_experiment(path)
            experiments.append((experiment, read_results(results, experiment)))
        elif found := run_folders(path):
            folders += found
            summaries += [path / SUMMARY] if (path / SUMMARY).is_file() else []
        elif any(path.glob("*.json")):
            experiment = read_experiment(Path("experiments") / f"{path.resolve().name}.yaml")
            experiments.append((experiment, read_results(path.resolve().parent, experiment)))
        else:
            raise ValueError(
                f"OUTPUT {path} is no run: it has no config.yaml, metrics.json or inference/config.yaml, and "
                "neither has a folder in it; name the OUTPUT_DIR of `bevkd2 train`, the output of a demo, or "
                "an experiment"
            )
    return Source(read_runs(folders), experiments, summaries)
