"""What both demos do: make a synthetic world, train a student plainly and distilled, score and draw.

``bevkd2 demo`` (demo.py) is for multi-view detectors, ``bevkd2 demo-mono`` (demo_mono.py) for monocular ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tabulate import tabulate

from bevkd2.cli.paths import path_to_write
from bevkd2.cli.visualize import load_model
from bevkd2.config import CfgNode, load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import SyntheticWorld, generate
from bevkd2.modeling import Detector
from bevkd2.visualization import save_image

TITLES = {"teacher": "T (teacher)", "student": "S (student)", "distilled": "S+KD (distilled)"}

Models = Mapping[str, Detector[Any, Any, Any]]
"""With their weights, in eval mode, by the keys of ``TITLES``."""

Batches = Sequence[list[dict[str, Any]]]
"""The held-out split, in batches of one sample."""


class Demo(ABC):
    """What both demos do; a subclass adds its world, its scores and its pictures.

    Attributes:
        name: of the script in ``tools``, the folder of configs and the teacher's weights.
        summary: first line of ``--help``.
        world: the type of the world's settings.
        world_title: what the world is called.
        unit: what the sizes of the world count; in option names and in summary.json.
        sizes: default number of training and of held-out ones.
        own_world_seed: whether ``--world-seed`` sets the seed of the world, not ``--seed``.
        columns: scores in the table; names in summary.json.
        score_format: of these columns.
        footnote: below the table; ``{}`` is the number of held-out ones.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    world: ClassVar[type[SyntheticWorld]]
    world_title: ClassVar[str]
    unit: ClassVar[str]
    sizes: ClassVar[tuple[int, int]]
    own_world_seed: ClassVar[bool]
    columns: ClassVar[tuple[str, ...]]
    score_format: ClassVar[str]
    footnote: ClassVar[str]

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Runs the demo from end to end; returns the exit status.

        Raises:
            FileNotFoundError: the teacher's weights do not exist.
        """
        args = self.parse_args(argv)
        if not args.teacher.is_file():
            target = f"{self.name}-teacher".replace("_", "-")
            raise FileNotFoundError(
                f"the teacher's weights {args.teacher} do not exist; `make {target}` trains them"
            )
        start = time.monotonic()
        say("1/5", f"{self.world_title}: {args.data}")
        numbers = {f"{part}_{self.unit}": vars(args)[f"{part}_{self.unit}"] for part in ("train", "val")}
        seed = args.world_seed if self.own_world_seed else args.seed
        sizes = {f"num_{name}": number for name, number in numbers.items()}
        generate(self.world.preset(args.difficulty, seed=seed, **sizes), args.data, args.workers)

        common = ["DATASETS.ROOT", str(args.data), "MODEL.DEVICE", args.device]
        length = ["SOLVER.MAX_ITER", str(args.iterations)] if args.iterations else []
        weights = self.train(args.output, args.teacher, [*common, "SEED", str(args.seed), *length])

        say("5/5", "speed and pictures")
        files = {name: "teacher" if name == "teacher" else "student" for name in TITLES}
        configs = {name: load_config(self.config_file(file), common) for name, file in files.items()}
        models = {name: load_model(cfg, str(weights[name])) for name, cfg in configs.items()}
        batches = list(build_test_loader(configs["teacher"], configs["teacher"].DATASETS.TEST[0]))
        fps = frames_per_second(models, batches)
        pictures = self.draw(models, batches, configs["teacher"], args.output)

        summary: dict[str, Any] = {
            name: {
                **self.scores(args.output / name / "inference"),
                "params_m": sum(p.numel() for p in model.inference_parameters()) / 1e6,
                "fps": fps[name],
            }
            for name, model in models.items()
        }
        held_out = {f"val_{self.unit}": numbers[f"val_{self.unit}"]}
        summary |= {"seconds": time.monotonic() - start, "seed": args.seed, **held_out}
        path = args.output / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        self.report(summary, [*pictures, path])
        return 0

    def parse_args(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Returns the command line; every default is the demo's."""
        parser = argparse.ArgumentParser(
            description=f"""{self.summary}

    python tools/{self.name}.py

No question is asked. Both students get the same data, seed and number of iterations. The teacher T ships with
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
        parser.add_argument("--iterations", type=int, default=0, help="of both students; 0: as configured")
        if self.own_world_seed:
            parser.add_argument("--seed", type=int, default=0, help="of both trainings")
            parser.add_argument("--world-seed", type=int, default=0)
        else:
            parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--device", default="cpu", help="MODEL.DEVICE")
        parser.add_argument(
            "--workers", type=int, default=os.cpu_count(), help="processes that draw the world"
        )
        return parser.parse_args(argv)

    def config_file(self, name: str) -> Path:
        """Returns a config of this demo: "teacher", "student" or "distill"."""
        return shipped_folder("configs") / self.name / f"{name}.yaml"

    def train(self, output: Path, teacher: Path, options: Sequence[str]) -> dict[str, Path]:
        """Trains the student plainly and distilled, and scores the teacher.

        Args:
            output: gets one folder a model.
            teacher: the teacher's weights.
            options: KEY VALUE pairs of all three; those of SOLVER do nothing to the teacher.

        Returns:
            The weights of all three.
        """
        weights = {"teacher": teacher}
        distilling = ["DISTILL.TEACHER.WEIGHTS", str(teacher)]
        for step, name, file, more in (
            ("2/5", "student", "student", []),
            ("3/5", "distilled", "distill", distilling),
        ):
            say(step, f"training {TITLES[name]}")
            train_net(output / name, self.config_file(file), *options, *more)
            weights[name] = output / name / "model_final.pth"
        say("4/5", "scoring the teacher")
        scoring = ["--eval-only", *options, "MODEL.WEIGHTS", str(teacher)]
        train_net(output / "teacher", self.config_file("teacher"), *scoring)
        return weights

    @abstractmethod
    def scores(self, folder: Path) -> dict[str, float | None]:
        """Returns ``columns`` as the evaluation of one model wrote them to its folder."""

    @abstractmethod
    def draw(self, models: Models, batches: Batches, cfg: CfgNode, output: Path) -> list[Path]:
        """Draws what the models see.

        Args:
            models: what is compared.
            batches: the held-out split.
            cfg: of the teacher.
            output: folder of the demo; pictures go to its folder ``pictures``.

        Returns:
            The paths of the pictures.
        """

    def report(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Prints the table, how long it took, and where things are."""
        columns = [*self.columns, "params_m", "fps"]
        rows = [[title, *(summary[name][c] for c in columns)] for name, title in TITLES.items()]
        headers = ["", *(c.replace("_", " ") for c in self.columns), "params (M)", "FPS"]
        formats = ("", *[self.score_format] * len(self.columns), ".3f", ".1f")
        print("\n" + tabulate(rows, headers=headers, floatfmt=formats, missingval="-"))
        print("\n" + self.footnote.format(summary[f"val_{self.unit}"]))
        minutes, rest = divmod(round(summary["seconds"]), 60)
        print(f"{minutes} min {rest} s, seed {summary['seed']}; pictures and numbers:")
        for path in files:
            print(f"  {path}")


def say(step: str, text: str) -> None:
    """Prints where the demo is."""
    print(f"\n[{step}] {text}", flush=True)


def train_net(output: Path, config: Path, *options: str) -> None:
    """Runs ``bevkd2 train`` with a progress bar; its log goes to ``output``/console.txt.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    flags = [o for o in options if o.startswith("--")]
    pairs = [o for o in options if not o.startswith("--")]
    command = [sys.executable, "-m", "bevkd2.cli", "train", "--config-file", str(config)]
    command += [*flags, "OUTPUT_DIR", str(output), *pairs]
    log = output / "console.txt"
    with log.open("w") as file:
        environment = {**os.environ, "BEVKD2_PROGRESS": "1"}
        code = subprocess.run(command, stdout=file, env=environment, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        sys.exit(f"{tail}\nbevkd2 train failed with exit code {code}; its whole log is {log}")


@torch.no_grad()
def frames_per_second(models: Models, batches: Batches, rounds: int = 40) -> dict[str, float]:
    """Returns batches of one a second by model: medians of interleaved runs, images in memory.

    The first three are for warming up, where there are more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for batch in batches[: rounds + 3]:
        for name, model in models.items():
            start = time.perf_counter()
            model(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1 / statistics.median(times[3:] or times) for name, times in seconds.items()}


def save_pictures(pictures: Mapping[str, Any], output: Path) -> list[Path]:
    """Writes pictures by name to ``output``/pictures; returns their paths."""
    paths = []
    for name, picture in pictures.items():
        paths.append(output / "pictures" / f"{name}.png")
        save_image(paths[-1], picture)
    return paths
