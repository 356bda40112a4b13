"""The files of finished runs: small JSON files, one a run, which are committed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevkd2.checkpoint.io import replace_atomically
from bevkd2.experiments.spec import Experiment, Row, digest, explain

RESULTS = Path("benchmarks") / "results" / "experiments"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        row: its name.
        seed: of the run.
        metrics: by name; None where a score is not defined.
        units: scenes, or blocks of images.
        without: primary metric -> the score without each of ``units``.
        curve: an entry an evaluation during training: ``iteration`` and the scores by name.
        content: the whole file.
    """

    row: str
    seed: int
    metrics: Mapping[str, float | None]
    units: tuple[str, ...]
    without: Mapping[str, list[float]]
    curve: tuple[Mapping[str, Any], ...]
    content: Mapping[str, Any]


def result_path(folder: Path, row: Row, seed: int) -> Path:
    """Returns where the result of a run is: ``FOLDER/EXPERIMENT/ROW_SEED.json``.

    Args:
        folder: of the results of all experiments.
        row: the row; EXPERIMENT is its ``runs_of``.
        seed: one of the row's.
    """
    return folder / row.runs_of / f"{row.name}_{seed}.json"


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a result, whole or not at all.

    Args:
        path: the file; its folder is made, and an earlier result is replaced.
        content: what JSON can hold; numbers that are not finite become null.
    """
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, lambda file: file.write(text.encode()))


def read_results(folder: Path, experiment: Experiment) -> dict[tuple[str, int], Result]:
    """Returns the finished runs of an experiment.

    Args:
        folder: that of all experiments' results.
        experiment: the runs that are wanted.

    Returns:
        By row and seed.

    Raises:
        ValueError: a file was made with other settings than the YAML file now gives; a file of no run; or
            runs with different weights or worlds under one name.
    """
    found: dict[tuple[str, int], Result] = {}
    for (row, seed), path in finished(folder, experiment).items():
        content = json.loads(path.read_text())
        settings = experiment.settings(experiment.rows[row], seed)
        if difference := changed(path, content["settings"], settings, experiment):
            raise ValueError(difference)
        found[row, seed] = Result(
            row=row,
            seed=seed,
            metrics=content["metrics"],
            units=tuple(content["units"]),
            without=content["without"],
            curve=tuple(content["curve"]),
            content=content,
        )
    _check_files(found, experiment)
    return found


def finished(folder: Path, experiment: Experiment) -> dict[tuple[str, int], Path]:
    """Returns the files of finished runs, by row and seed.

    Args:
        folder: of the results of all experiments.
        experiment: its runs.

    Raises:
        ValueError: a file there is the result of no run.
    """
    expected = {result_path(folder, row, seed): (row.name, seed) for row, seed in experiment.runs()}
    own = sorted((folder / experiment.name).glob("*.json"))
    if foreign := [path for path in own if path not in expected]:
        raise ValueError(
            f"{foreign[0]} is the result of no run of {experiment.path}; put its row and seed back, or "
            "remove the file"
        )
    return {expected[path]: path for path in sorted(expected) if path.is_file()}


def changed(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], experiment: Experiment) -> str:
    """Returns what is wrong where a file was not made with what the YAML file says; else "".

    Args:
        path: the file.
        old: its settings, by part, such as training and evaluation.
        new: those that it would be made with now; parts that only one of them has are not compared.
        experiment: what the YAML file says.

    Returns:
        A message with both digests, what differs, and what to do.
    """
    for part in (name for name in new if name in old):
        if digest(old[part]) != digest(new[part]):
            return (
                f"{path} was made with settings ({part}) of digest {digest(old[part])}, but "
                f"{experiment.path} now gives {digest(new[part])} ({explain(old[part], new[part])}). Put the "
                "settings back, or run it again with --rerun"
            )
    return ""


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits.

    Args:
        path: the file, which is read as a whole.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_files(found: Mapping[tuple[str, int], Result], experiment: Experiment) -> None:
    """Checks that all runs had the same files under the same names."""
    first: dict[str, tuple[Result, str]] = {}
    for result in found.values():
        settings = result.content["settings"]
        for name, value in {**settings["training_files"], **settings["evaluation_files"]}.items():
            other, expected = first.setdefault(name, (result, value))
            if value != expected:
                raise ValueError(
                    f"{experiment.path}: the SHA-256 of {name} was {expected[:16]} in the run "
                    f"{other.row}_{other.seed}, but {value[:16]} in {result.row}_{result.seed}: they cannot "
                    "be compared; run them again with --rerun where the right file is"
                )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
