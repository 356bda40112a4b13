"""What both demos do: make a synthetic world, train a student plainly and distilled in two ways, score, draw.

``bevkd2 demo`` (demo.py) is for multi-view detectors, ``bevkd2 demo-mono`` (demo_mono.py) for monocular ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from tabulate import tabulate
from tqdm import tqdm

from bevkd2.cli.paths import path_to_write
from bevkd2.cli.visualize import load_model
from bevkd2.config import CfgNode, load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.data import build_test_loader
from bevkd2.data.format import data_format
from bevkd2.data.synthetic import SyntheticWorld, generate
from bevkd2.engine.launch import usable_cores
from bevkd2.engine.metrics import read_metrics
from bevkd2.experiments.processes import log_tail, run_logged, run_tasks
from bevkd2.experiments.statistics import influences, standard_error
from bevkd2.modeling import Detector
from bevkd2.visualization import DrawnObjects, found_objects, save_image

TITLES = {
    "teacher": "T (teacher)",
    "student": "S (student)",
    "distilled": "S + paper's method",
    "recommended": "S + recommended",
}
STUDENTS = {"student": "student", "distilled": "distill", "recommended": "recommended"}
"""Trained models -> their configs."""

_SAMPLES = 64  # held-out samples for speed and pictures

Models = Mapping[str, Detector[Any, Any, Any]]
"""With their weights, in eval mode, by the keys of ``TITLES``."""

Batches = Sequence[list[dict[str, Any]]]
"""The first of the held-out split, in order, in batches of one sample."""


@dataclass
class Outputs:
    """What a model returned for the first held-out samples.

    Attributes:
        detections: one dict per batch.
        seconds: per batch.
    """

    detections: list[Mapping[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Demo(ABC):
    """What both demos do; a subclass adds its world, its scores and its pictures.

    Attributes:
        name: of the script in ``tools``, the folder of configs and the teacher's weights.
        summary: first line of ``--help``.
        world: the type of the world's settings.
        world_title: what the world is called.
        unit: what the sizes of the world count; in option names and in summary.json.
        sizes: default number of training and of held-out ones.
        teacher_world: what the shipped teacher was trained on.
        columns: scores in the table; names in summary.json.
        primary: name of the score whose noise is told, in the table and in ``DataFormat.left_out_scorer``.
        score_format: of these columns.
        footnote: below the table; ``{}`` is the number of held-out ones.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    world: ClassVar[type[SyntheticWorld]]
    world_title: ClassVar[str]
    unit: ClassVar[str]
    sizes: ClassVar[tuple[int, int]]
    teacher_world: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    primary: ClassVar[tuple[str, str]]
    score_format: ClassVar[str]
    footnote: ClassVar[str]

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Runs the demo from end to end; returns the exit status.

        Raises:
            FileNotFoundError: the teacher's weights do not exist.
            ValueError: no job, or fewer than two held-out scenes or frames, which have no standard error.
        """
        args = self.parse_args(argv)
        held_out = vars(args)[f"val_{self.unit}"]
        for name, value, least in (("--jobs", args.jobs, 1), (f"--val-{self.unit}", held_out, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if not args.teacher.is_file():
            target = f"{self.name}-teacher".replace("_", "-")
            raise FileNotFoundError(
                f"the teacher's weights {args.teacher} do not exist; `make {target}` trains them"
            )
        start = time.monotonic()
        say("1/3", f"{self.world_title}: {args.data}")
        numbers = {f"{part}_{self.unit}": vars(args)[f"{part}_{self.unit}"] for part in ("train", "val")}
        sizes = {f"num_{name}": number for name, number in numbers.items()}
        world = self.world.preset(args.difficulty, seed=args.world_seed, **sizes)
        generate(world, args.data, args.workers)

        common = ["DATASETS.ROOT", str(args.data), "MODEL.DEVICE", args.device]
        length = ["SOLVER.MAX_ITER", str(args.iterations)] if args.iterations else []
        options = [*common, "SEED", str(args.seed), *length]
        weights = self.train(args.output, args.teacher, options, args.jobs)

        say("3/3", "noise, speed and pictures")
        files = {name: "teacher" if name == "teacher" else "student" for name in TITLES}
        configs = {name: load_config(self.config_file(file), common) for name, file in files.items()}
        models = {name: load_model(cfg, str(weights[name])) for name, cfg in configs.items()}
        split = build_test_loader(configs["teacher"], configs["teacher"].DATASETS.TEST[0])
        batches = list(islice(split, _SAMPLES))
        outputs = run_all(models, batches)
        pictures = self.draw(models, batches, outputs, configs["teacher"], args.output)

        summary: dict[str, Any] = {
            name: {
                **self.scores(args.output / name / "inference"),
                "params_m": sum(p.numel() for p in model.inference_parameters()) / 1e6,
                "fps": 1 / statistics.median(outputs[name].seconds[3:] or outputs[name].seconds),
            }
            for name, model in models.items()
        }
        summary["gain"] = self.gains(args.output, configs["student"])
        summary |= {"seconds": time.monotonic() - start, "seed": args.seed, f"val_{self.unit}": held_out}
        path = args.output / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        self.report(summary, [*pictures, path])
        return 0

    def parse_args(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Returns the command line; every default is the demo's."""
        parser = argparse.ArgumentParser(
            description=f"""{self.summary}

    bevkd2 {self.name.replace("_", "-")}

No question is asked. All students get the same data, seed and number of iterations. The teacher T ships with
the repository (docs/demo.md says how it was trained). It ends with a table, the paths of the pictures and
summary.json.
""",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        teacher = shipped_folder("assets") / f"{self.name}_teacher.safetensors"
        output = Path("output") / self.name.replace("_", "-")
        train, val = self.sizes
        parser.add_argument("--output", type=path_to_write, default=output)
        parser.add_argument("--data", type=path_to_write, default=Path("data") / self.name)
        parser.add_argument("--teacher", type=Path, default=teacher, help="weights of T")
        parser.add_argument("--difficulty", default="easy")
        parser.add_argument(f"--train-{self.unit}", type=int, default=train)
        parser.add_argument(f"--val-{self.unit}", type=int, default=val)
        parser.add_argument("--iterations", type=int, default=0, help="of all students; 0: as configured")
        parser.add_argument("--seed", type=int, default=0, help="of all trainings")
        parser.add_argument(
            "--world-seed",
            type=int,
            default=0,
            help=f"T was trained on {self.teacher_world}; the held-out {self.unit} have to be others",
        )
        parser.add_argument("--device", default="cpu", help="MODEL.DEVICE")
        cores = usable_cores()
        parser.add_argument("--workers", type=int, default=cores, help="processes that draw the world")
        parser.add_argument("--jobs", type=int, default=min(cores, len(STUDENTS)), help="trainings at a time")
        return parser.parse_args(argv)

    def config_file(self, name: str) -> Path:
        """Returns the path of a config of this demo.

        Args:
            name: "teacher", "student", "distill" or "recommended".
        """
        return shipped_folder("configs") / self.name / f"{name}.yaml"

    def train(self, output: Path, teacher: Path, options: Sequence[str], jobs: int) -> dict[str, Path]:
        """Trains the student plainly, by the paper's method and as recommended, and scores the teacher.

        Args:
            output: gets one folder a model.
            teacher: the teacher's weights.
            options: KEY VALUE pairs of all; those of SOLVER do nothing to the teacher.
            jobs: processes at a time; they share the cores.

        Returns:
            The weights of all.
        """
        say("2/3", f"training the students and scoring all, {jobs} at a time")
        threads = max(1, usable_cores() // jobs)
        tasks = []
        for place, (name, file) in enumerate(STUDENTS.items()):
            distilling = [] if name == "student" else ["DISTILL.TEACHER.WEIGHTS", str(teacher)]
            command = training(output / name, self.config_file(file), *options, *distilling)
            length = load_config(self.config_file(file), options).SOLVER.MAX_ITER
            tasks.append(task(name, command, output / name, threads, place, length))
        scoring = ["--eval-only", *options, "MODEL.WEIGHTS", str(teacher)]
        command = training(output / "teacher", self.config_file("teacher"), *scoring)
        tasks.append(task("teacher", command, output / "teacher", threads, len(STUDENTS), 0))
        run_tasks(tasks, jobs)
        return {"teacher": teacher, **{name: output / name / "model_final.pth" for name in STUDENTS}}

    def gains(self, output: Path, cfg: CfgNode) -> dict[str, dict[str, float]]:
        """Returns by how much the distilled students are better than the plain one, and the noise of that.

        Args:
            output: of the demo.
            cfg: of the student.

        Returns:
            Model -> "difference" of the primary score, and its "standard_error" over the held-out scenes or
            blocks of images; how much another seed would change is not in it.
        """
        scorer = data_format(cfg).left_out_scorer(cfg, cfg.DATASETS.TEST[0])
        score = self.primary[1]
        found = {name: scorer.score(output / name / "inference", [score]) for name in STUDENTS}
        influence = {name: influences(f.scores[score], f.without[score]) for name, f in found.items()}
        return {
            name: {
                "difference": found[name].scores[score] - found["student"].scores[score],
                "standard_error": standard_error(influence[name] - influence["student"]),
            }
            for name in list(STUDENTS)[1:]
        }

    @abstractmethod
    def scores(self, folder: Path) -> dict[str, float | None]:
        """Returns the scores of one model: ``columns``, None where one is not defined.

        Args:
            folder: the model's output folder, with the files of its evaluation.
        """

    @abstractmethod
    def draw(
        self, models: Models, batches: Batches, outputs: Mapping[str, Outputs], cfg: CfgNode, output: Path
    ) -> list[Path]:
        """Draws what the models see.

        Args:
            models: what is compared.
            batches: of the held-out split.
            outputs: what each model returned for them.
            cfg: of the teacher.
            output: folder of the demo; pictures go to its folder ``pictures``.

        Returns:
            The paths of the pictures.
        """

    def report(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Prints the table, how long it took, and where things are.

        Args:
            summary: what ``summary.json`` holds: the scores of each model, the gains, the seconds.
            files: those that a user may want to open.
        """
        columns = [*self.columns, "params_m", "fps"]
        rows = [[title, *(summary[name][c] for c in columns)] for name, title in TITLES.items()]
        headers = ["", *(c.replace("_", " ") for c in self.columns), "params (M)", "FPS"]
        formats = ("", *[self.score_format] * len(self.columns), ".3f", ".1f")
        print("\n" + tabulate(rows, headers=headers, floatfmt=formats, missingval="-"))
        print("\n" + self.footnote.format(summary[f"val_{self.unit}"]))
        for name, gain in summary["gain"].items():
            difference, noise = (format(gain[k], self.score_format) for k in ("difference", "standard_error"))
            pair = f"{TITLES[name]} - {TITLES['student']}"
            print(f"{pair}: {difference} {self.primary[0]}, standard error {noise}")
        minutes, rest = divmod(round(summary["seconds"]), 60)
        print(f"{minutes} min {rest} s, seed {summary['seed']}; pictures and numbers:")
        for path in files:
            print(f"  {path}")


def say(step: str, text: str) -> None:
    """Prints where the demo is.

    Args:
        step: number of the step, such as "1/3".
        text: what is done.
    """
    print(f"\n[{step}] {text}", flush=True)


def training(output: Path, config: Path, *options: str) -> list[str]:
    """Returns the command line of a training by ``bevkd2 train``.

    Args:
        output: the run's OUTPUT_DIR.
        config: the YAML file.
        options: flags, which begin with ``--`` and have no values of their own, and KEY VALUE
            pairs.
    """
    flags = [o for o in options if o.startswith("--")]
    pairs = [o for o in options if not o.startswith("--")]
    command = [sys.executable, "-m", "bevkd2.cli", "train", "--config-file", str(config)]
    return [*command, *flags, "OUTPUT_DIR", str(output), *pairs]


def task(
    name: str, command: Sequence[str], folder: Path, threads: int, place: int, length: int
) -> Callable[[threading.Event], None]:
    """Returns a function that runs a command, with a progress bar where there is a terminal.

    Args:
        name: of the model.
        command: its training or scoring.
        folder: its ``OUTPUT_DIR``; the command prints to console.txt there.
        threads: of its process.
        place: of its bar among those of other tasks.
        length: iterations of the training; 0: it trains nothing, and has no bar.

    Returns:
        The function; it raises SystemExit with the last lines of the log where the command fails.
    """

    def run(stop: threading.Event) -> None:
        start, log = time.monotonic(), folder / "console.txt"
        log.unlink(missing_ok=True)  # of an earlier demo
        # disable=None: none where the output is not a terminal
        style = {"unit": "it", "leave": False, "disable": None if length else True}
        with tqdm(desc=TITLES[name], total=length, position=place, **style) as bar:
            code = run_logged(command, log, stop, threads=threads, waiting=lambda: show(bar, folder))
        if code and not stop.is_set():
            raise SystemExit(f"{log_tail(log, 20)}\nbevkd2 train failed with exit code {code}")
        if not code:
            tqdm.write(f"  {TITLES[name]}: done after {time.monotonic() - start:.0f} s")

    return run


def show(bar: tqdm[Any], folder: Path) -> None:
    """Moves a bar to the iteration that a training has reached; does nothing before the first.

    Args:
        bar: its total is the number of iterations.
        folder: the run's, with ``metrics.json``.
    """
    metrics = folder / "metrics.json"
    if not bar.disable and metrics.is_file():
        bar.n = min(max(read_metrics(metrics).rows, default=0), bar.total)
        bar.refresh()


@torch.no_grad()
def run_all(models: Models, batches: Batches) -> dict[str, Outputs]:
    """Runs all models on all batches, in turn, so that their times can be compared.

    Args:
        models: by name, in eval mode.
        batches: each of one sample.

    Returns:
        The detections and the seconds of each batch, by the model's name.
    """
    outputs = {name: Outputs() for name in models}
    for batch in batches:
        for name, model in models.items():
            start = time.perf_counter()
            outputs[name].detections += model(batch)
            outputs[name].seconds.append(time.perf_counter() - start)
    return outputs


def largest_gain(batches: Batches, outputs: Mapping[str, Outputs], score_threshold: float) -> int:
    """Finds the batch in which the recommended student is most ahead of the plain one in objects found.

    Args:
        batches: each of one sample.
        outputs: of "recommended" and "student" on these batches.
        score_threshold: a detection with a lower score finds nothing.

    Returns:
        The batch's index; the first of several.
    """

    def lead(index: int) -> int:
        truth = DrawnObjects.from_dict(batches[index][0])
        found = [
            found_objects(
                truth,
                DrawnObjects.from_dict(outputs[name].detections[index]),
                score_threshold=score_threshold,
            )[0].sum()
            for name in ("recommended", "student")
        ]
        return int(found[0] - found[1])

    return max(range(len(batches)), key=lead)


def save_pictures(pictures: Mapping[str, Any], output: Path) -> list[Path]:
    """Writes pictures by name to ``output``/pictures; returns their paths."""
    paths = []
    for name, picture in pictures.items():
        paths.append(output / "pictures" / f"{name}.png")
        save_image(paths[-1], picture)
    return paths
