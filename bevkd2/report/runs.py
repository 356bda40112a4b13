"""Run folders: which ones a path names, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bevkd2.config.node import load_plain_yaml
from bevkd2.engine.metrics import Metrics, read_metrics
from bevkd2.engine.run_folder import flat_settings
from bevkd2.engine.run_log import read_environment
from bevkd2.report.scores import Evaluation, last_scores, read_evaluation, read_json

GRADIENTS = "gradients.json"
"""Where in a run folder ``bevkd2 analyze-distillation --json`` is looked for."""

TEACHER = "its teacher"
"""Key, or its beginning, of the scores of a distillation's teacher in ``Run.evaluations``."""

_DEMO = ("teacher", "student", "distilled", "recommended")  # the order of a demo's runs
_MARKS = ("config.yaml", "metrics.json", "inference/config.yaml")
_OF_A_RUN = ("SEED", "OUTPUT_DIR")  # what runs of one setting differ in


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        name: in the page; no two runs have the same.
        folder: where it is.
        config: the run's settings, by their whole names; empty without a config.
        config_file: of a training, or of an evaluation alone; None without a config.
        metrics: None without metrics.json.
        evaluations: "" or what is special about it (a split, the teacher) -> scores.
        gradients: of ``bevkd2 analyze-distillation``; empty without.
        environment: as the log says; empty without.
        lacks: section of the page -> why the run is not in it, as sentences.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    config_file: Path | None = None
    metrics: Metrics | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    gradients: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    lacks: dict[str, list[str]] = field(default_factory=dict)

    def lack(self, section: str, why: str) -> None:
        """Notes why the run is not in a section."""
        self.lacks.setdefault(section, []).append(why)

    @property
    def own_evaluations(self) -> dict[str, Evaluation]:
        """The scores of the run's model, without its teacher's."""
        return {what: found for what, found in self.evaluations.items() if not what.startswith(TEACHER)}

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """What the run shares with those of other seeds."""
        return tuple(sorted((k, repr(v)) for k, v in self.config.items() if k not in _OF_A_RUN))


def run_folders(path: Path) -> list[Path]:
    """Returns the run folders that a path names: itself, or those in it, as in the output of a demo.

    Args:
        path: an existing folder.

    Returns:
        Empty where there is none.
    """
    if _is_run(path):
        return [path]
    inside = [child for child in path.iterdir() if child.is_dir() and _is_run(child)]
    order = {name: place for place, name in enumerate(_DEMO)}
    return sorted(inside, key=lambda child: (order.get(child.name, len(order)), child.name))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders; what cannot be read is noted in ``Run.lacks``.

    Args:
        folders: of runs; one that is named twice is read once.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    runs = []
    for folder, name in zip(folders, _names(folders), strict=True):
        run = Run(name, folder)
        _read_config(run)
        _read_metrics(run)
        _read_evaluations(run)
        _read_gradients(run)
        _read_environment(run)
        runs.append(run)
    return runs


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns runs of one setting and different seeds, those of two and more."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.config and run.metrics is not None:
            groups.setdefault(run.settings, []).append(run)
    distinct = (list({run.config.get("SEED"): run for run in group}.values()) for group in groups.values())
    return [group for group in distinct if len(group) > 1]


def _is_run(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _MARKS)


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths, all of one length, that tell them apart."""
    longest = max((len(folder.parts) for folder in folders), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names if folders else []


def _read_config(run: Run) -> None:
    paths = (run.folder / "config.yaml", run.folder / "inference" / "config.yaml")
    run.config_file = next((path for path in paths if path.is_file()), None)
    if run.config_file is None:
        run.lack("config", "no config.yaml")
        return
    try:
        run.config = dict(flat_settings(load_plain_yaml(run.config_file)))
    except (ValueError, OSError) as error:
        run.config_file = None
        run.lack("config", str(error))


def _read_metrics(run: Run) -> None:
    path = run.folder / "metrics.json"
    if not path.is_file():
        run.lack("curves", "no metrics.json; an evaluation alone writes none")
        return
    run.metrics = metrics = read_metrics(path)
    if metrics.torn:
        lines = ", ".join(map(str, metrics.torn[:5])) + (", ..." if len(metrics.torn) > 5 else "")
        run.lack("curves", f"metrics.json has no whole row in line {lines}; the rest is shown")
    if not metrics.rows:
        run.lack("curves", "metrics.json has no rows")


def _read_evaluations(run: Run) -> None:
    splits = run.config.get("DATASETS.TEST", [])
    several = [str(split) for split in splits] if isinstance(splits, list) and len(splits) > 1 else [""]
    places = {
        "": "inference",
        "average of checkpoints": "evaluation/inference",
        TEACHER: "inference/teacher",
    }
    for what, place in places.items():
        for split in several:
            try:
                found = read_evaluation(run.folder / place / split)
            except (ValueError, OSError) as error:
                run.lack("scores", str(error))
                continue
            if found is not None:
                run.evaluations[", ".join(filter(None, (what, split)))] = found
    if not run.own_evaluations and run.metrics is not None and (logged := last_scores(run.metrics)):
        run.evaluations = {"": logged, **run.evaluations}
    if not run.own_evaluations:
        run.lack("scores", "no scores: it was not evaluated, or not to its end")
    for what, evaluation in run.evaluations.items():
        for why in evaluation.lacks:
            run.lack("classes" if not evaluation.classes else "precision", f"{what}: {why}" if what else why)


def _read_gradients(run: Run) -> None:
    path = run.folder / GRADIENTS
    if not run.config.get("DISTILL.METHODS") and not run.config.get("DISTILL.MORE_TEACHERS"):
        run.lack("gradients", "no distillation method")
    elif not path.is_file():
        final = run.folder / "model_final.pth"
        weights = f"--weights {final} " if final.is_file() else ""
        command = f"bevkd2 analyze-distillation --config-file {run.config_file} {weights}--json {path}"
        run.lack("gradients", f"no {GRADIENTS}; {command} writes it")
    else:
        try:
            run.gradients = read_json(path)
        except (ValueError, OSError) as error:
            run.lack("gradients", str(error))


def _read_environment(run: Run) -> None:
    log = run.folder / "log.txt"
    run.environment = read_environment(log) if log.is_file() else {}
    if not run.environment:
        run.lack("environment", "no log.txt" if not log.is_file() else "log.txt names no environment")
