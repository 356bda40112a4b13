"""An experiment's YAML file: rows of configs and overrides, seeds, worlds and metrics."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.config import CfgNode, get_cfg, read_config
from bevkd2.config.node import load_plain_yaml
from bevkd2.data.format import data_format
from bevkd2.distill import is_distillation, resolve_teacher

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*(?:_[A-Za-z0-9+.-]+)*")
EVALUATIONS = ("holdout", "test")
# Set by the runner.
_OWN_KEYS = ("SEED", "OUTPUT_DIR", "DATASETS.ROOT", "SOLVER.CHECKPOINTS_TO_KEEP")
# What a result does not depend on.
_WITHOUT_EFFECT = {
    *(key for key in _OWN_KEYS if key != "SEED"),
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_IMAGES",
    "DATALOADER.PIN_MEMORY",
    "TEST.PRINT_PERIOD",
    "DISTILL.TEACHER.CACHE",  # its precision has an effect, CACHE_DTYPE
}
_WORLD_FLAGS = ("--out", "--workers", "--overwrite")  # the runner's, not the experiment's


@dataclass(frozen=True)
class World:
    """A synthetic world.

    Attributes:
        root: DATASETS.ROOT.
        arguments: those of ``bevkd2 make-synthetic``, but --out and --workers.
    """

    root: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One setting, which is trained with every seed.

    Attributes:
        name: part of file names.
        label: in tables.
        config: the YAML file.
        overrides: key of the config -> value; the experiment's, and the row's own.
        seeds: each makes a run.
        runs_of: the experiment that has the same row; their runs are shared.
    """

    name: str
    label: str
    config: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]
    runs_of: str

    @functools.cached_property
    def changed_keys(self) -> dict[str, Any]:
        """Returns the keys of the config that are not the defaults, as :func:`changed_keys`, without SEED."""
        return changed_keys(self.config_of(-1))

    def config_of(self, seed: int) -> CfgNode:
        """Returns the config of a run, its teacher resolved.

        The runner adds OUTPUT_DIR and DATASETS.ROOT.

        Args:
            seed: the config's SEED.
        """
        cfg = read_config(self.config, options(self, seed))
        if is_distillation(cfg):
            resolve_teacher(cfg)
        return cfg


@dataclass(frozen=True)
class Experiment:
    """What a YAML file in ``experiments/`` says.

    Attributes:
        path: of the file.
        name: names the folders of its results.
        title: in tables and pictures.
        train: the world of the training splits.
        scored: the world of the test splits.
        evaluation: "holdout" for choices, "test" for final numbers.
        primary: metrics that are compared, named before the runs; the first is the headline.
        secondary: metrics that are only reported.
        baseline: the row that the others are compared with.
        comparisons: further pairs of rows, the first less the second.
        average_last: so many last checkpoints are averaged, and the average is scored; 0: the last weights.
        rows: by name.
    """

    path: Path
    name: str
    title: str
    train: World
    scored: World
    evaluation: str
    primary: tuple[str, ...]
    secondary: tuple[str, ...]
    baseline: str
    comparisons: tuple[tuple[str, str], ...]
    average_last: int
    rows: Mapping[str, Row]

    def runs(self) -> list[tuple[Row, int]]:
        """Returns all runs, seed by seed, so that unfinished experiments have whole pairs."""
        seeds = sorted({seed for row in self.rows.values() for seed in row.seeds})
        return [(row, seed) for seed in seeds for row in self.rows.values() if seed in row.seeds]

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """Returns what the result of a run depends on.

        Args:
            row: one of the experiment's.
            seed: one of the row's.

        Returns:
            ``training`` and ``evaluation``, each a flat mapping. Of the config, those keys whose
            value is not the default: a new key changes no earlier result.
        """
        training = {**row.changed_keys, "SEED": seed, "world": list(_sorted_flags(self.train))}
        evaluation = {
            "world": list(_sorted_flags(self.scored)),
            "metrics": [*self.primary, *self.secondary],
            "primary": len(self.primary),
            "average_last": self.average_last,
        }
        return {"training": training, "evaluation": evaluation}

    def check(self) -> None:
        """Checks every row before anything is run.

        Raises:
            ValueError: a config, a metric, or a number of checkpoints that cannot be.
            KeyError: an unknown key of the config.
        """
        for row in self.rows.values():
            try:
                cfg = row.config_of(row.seeds[0])
                cfg.DATASETS.ROOT = self.scored.root
                if len(cfg.DATASETS.TEST) != 1:
                    raise ValueError(f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, expected one split")
                metrics = [*self.primary, *self.secondary]
                data_format(cfg).left_out_scorer(cfg, cfg.DATASETS.TEST[0]).check(metrics)
                _check_checkpoints(cfg, self.average_last)
            except (KeyError, ValueError, OSError) as error:
                text = error.args[0] if isinstance(error, KeyError) else error
                raise ValueError(f"{self.path}, row {row.name}: {text}") from error


def read_experiment(path: str | Path) -> Experiment:
    """Reads an experiment.

    Args:
        path: the YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plain YAML, or a key is unknown, missing or has a wrong value; names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"the experiment {path} does not exist; expected such as experiments/NAME.yaml"
        )
    content = _Keys(load_plain_yaml(path, "the experiment"), str(path))
    name = content.take("name", str)
    if name != path.stem or not _NAME.fullmatch(name):
        raise ValueError(
            f"{path}: name is {name!r}, expected that of the file, {path.stem!r}, of letters and digits, "
            "with single underscores between"
        )
    title, config = content.take("title", str), content.take("config", str)
    evaluation = content.take("evaluation", str)
    if evaluation not in EVALUATIONS:
        raise ValueError(f"{path}: evaluation is {evaluation!r}, expected {' or '.join(EVALUATIONS)}")
    worlds = _Keys(content.take("worlds", dict), f"{path}, worlds")
    train, scored = _world(worlds, "train"), _world(worlds, evaluation)
    for other in (name for name in EVALUATIONS if name in worlds):
        _check_worlds(path, train, _world(worlds, other))
    worlds.finish()
    _check_worlds(path, train, scored)
    common, seeds = content.take("overrides", dict, {}), content.take("seeds", list)
    rows: dict[str, Row] = {}
    for number, entry in enumerate(content.take("rows", list)):
        row = _row(entry, f"{path}, rows[{number}]", name, config, common, seeds)
        if row.name in rows:
            raise ValueError(f"{path}: two rows have the name {row.name!r}; rename one")
        rows[row.name] = row
    experiment = Experiment(
        path=path,
        name=name,
        title=title,
        train=train,
        scored=scored,
        evaluation=evaluation,
        primary=_metrics(content, "primary"),
        secondary=_metrics(content, "secondary", []),
        baseline=content.take("baseline", str),
        comparisons=_pairs(content, rows),
        average_last=content.take("average_last", int, 0),
        rows=rows,
    )
    content.finish()
    if not experiment.primary:
        raise ValueError(f"{path}: primary is empty; name the metrics that decide, the headline first")
    if experiment.baseline not in rows:
        raise ValueError(f"{path}: baseline is {experiment.baseline!r}, expected a row: {', '.join(rows)}")
    if experiment.average_last < 0:
        raise ValueError(f"{path}: average_last is {experiment.average_last}, expected 0 or more checkpoints")
    return experiment


def options(row: Row, seed: int) -> list[Any]:
    """Returns the overrides of a run's config as KEY, VALUE, KEY, VALUE, ...

    Args:
        row: its overrides come first.
        seed: the value of SEED, which comes last.
    """
    words: list[Any] = [word for pair in row.overrides.items() for word in pair]
    return [*words, "SEED", seed]


def changed_keys(cfg: FvcoreNode) -> dict[str, Any]:
    """Returns the keys of a config whose values are not the defaults, flat; those of its teachers too.

    Args:
        cfg: a config, its teacher resolved. Of a config without distillation, DISTILL is left out.
    """
    defaults, content = _defaults(), _plain(cfg)
    if not is_distillation(cfg):
        del content["DISTILL"]
    else:
        node = content["DISTILL"]
        node["TEACHER"]["RESOLVED"] = _changed(node["TEACHER"]["RESOLVED"], defaults)
        for entry in node["MORE_TEACHERS"]:
            entry["RESOLVED"] = _changed(entry["RESOLVED"], defaults)
    found = _changed(content, defaults)
    if not found.get("DISTILL.TEACHER.CACHE"):
        found.pop("DISTILL.TEACHER.CACHE_DTYPE", None)  # of no cache
    return {key: value for key, value in found.items() if key not in _WITHOUT_EFFECT}


def digest(settings: object) -> str:
    """Returns 16 hexadecimal digits of plain data that do not depend on the order of keys.

    Args:
        settings: what JSON can hold.
    """
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def explain(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 3) -> str:
    """Returns in which keys two mappings differ, in words; "" where they are equal.

    Args:
        old: before, flat.
        new: now, flat.
        most: how many keys are named; of the others, the number is.
    """
    missing = "not set"
    keys = [key for key in sorted({*old, *new}) if old.get(key, missing) != new.get(key, missing)]
    shown = [f"{key}: {old.get(key, missing)}, now {new.get(key, missing)}" for key in keys[:most]]
    return "; ".join(shown + ([f"{len(keys) - most} more keys"] if len(keys) > most else []))


@functools.cache
def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = _plain(get_cfg())
    return found


def _plain(value: Any) -> Any:
    """Returns a config, or a part of it, as dicts and lists."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _changed(content: Mapping[str, Any], defaults: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        default = defaults.get(key) if isinstance(defaults, dict) else None
        if isinstance(value, dict) and value:
            found |= _changed(value, default, f"{prefix}{key}.")
        elif value != default:
            found[f"{prefix}{key}"] = value
    return found


def _check_checkpoints(cfg: CfgNode, average_last: int) -> None:
    solver = cfg.SOLVER
    period, length = solver.CHECKPOINT_PERIOD, solver.MAX_ITER
    if average_last and (length % period or length < average_last * period):
        raise ValueError(
            f"average_last is {average_last}, but SOLVER.MAX_ITER {length} is no multiple of "
            f"SOLVER.CHECKPOINT_PERIOD {period} that has as many checkpoints; change one of them"
        )


def _metrics(content: _Keys, key: str, *default: Any) -> tuple[str, ...]:
    names = content.take(key, list, *default)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{content.where}: {key} has {wrong[0]!r}, expected the name of a metric")
    return tuple(names)


def _pairs(content: _Keys, rows: Mapping[str, Row]) -> tuple[tuple[str, str], ...]:
    pairs = content.take("comparisons", list, [])
    for pair in pairs:
        fits = isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        if not fits or pair[0] == pair[1] or not all(name in rows for name in pair):
            raise ValueError(
                f"{content.where}: comparisons has {pair!r}, expected [ROW, ROW], two of {', '.join(rows)}"
            )
    return tuple((first, second) for first, second in pairs)


def _row(
    entry: Any, where: str, experiment: str, config: str, common: Mapping[str, Any], seeds: list[Any]
) -> Row:
    content = _Keys(entry, where)
    name = content.take("name", str)
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: name is {name!r}, expected letters, digits, + - . and single underscores between, "
            "since files are named so"
        )
    own = content.take("overrides", dict, {})
    row = Row(
        name=name,
        label=content.take("label", str, name),
        config=content.take("config", str, config),
        overrides={**common, **own},
        seeds=tuple(content.take("seeds", list, seeds)),
        runs_of=content.take("runs_of", str, experiment),
    )
    content.finish()
    if not _NAME.fullmatch(row.runs_of):
        raise ValueError(f"{where}: runs_of is {row.runs_of!r}, expected the name of an experiment")
    wrong = [seed for seed in row.seeds if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0]
    if wrong or not row.seeds or len(set(row.seeds)) < len(row.seeds):
        raise ValueError(f"{where}: seeds are {list(row.seeds)}, expected different integers from 0")
    for key in row.overrides:
        if key in _OWN_KEYS:
            raise ValueError(f"{where}: overrides set {key}, which the runner sets; leave it out")
    return row


def _world(worlds: _Keys, name: str) -> World:
    content = _Keys(worlds.take(name, dict), f"{worlds.where}.{name}")
    root, text = content.take("root", str), content.take("arguments", str)
    content.finish()
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{content.where}: arguments are {text!r}: {error}") from error
    arguments = tuple(word for part in parts for word in part.split("=", 1))
    if own := [word for word in arguments if word in _WORLD_FLAGS]:
        raise ValueError(
            f"{content.where}: arguments have {own[0]}, which the runner gives itself; leave it out"
        )
    return World(root, arguments)


def _check_worlds(path: Path, train: World, scored: World) -> None:
    if train.root == scored.root and _sorted_flags(train) != _sorted_flags(scored):
        raise ValueError(
            f"{path}: two worlds have the root {train.root}, but the arguments {' '.join(train.arguments)} "
            f"and {' '.join(scored.arguments)}; give each a root of its own"
        )


def _sorted_flags(world: World) -> tuple[str, ...]:
    """Returns the arguments, each flag with its value, in an order that does not matter."""
    flags = [i for i, word in enumerate(world.arguments) if word.startswith("--")]
    ends = [*flags[1:], len(world.arguments)]
    return tuple(sorted(" ".join(world.arguments[a:b]) for a, b in zip(flags, ends, strict=True)))


class _Keys:
    """A mapping of a YAML file of which every key must be taken."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{where} is a {type(content).__name__}, expected a mapping")
        self._content, self.where = content, where
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def take(self, key: str, kind: type, *default: Any) -> Any:
        """Returns the value of a key, or the default where one is given."""
        self._known += [key] if key not in self._known else []
        if key not in self._content:
            if default:
                return default[0]
            raise ValueError(f"{self.where}: the key {key!r} is missing")
        value = self._content[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{self.where}: {key} is {value!r}, expected {_KINDS[kind]}")
        return value

    def finish(self) -> None:
        """Raises ValueError where a key was not taken."""
        if unknown := [key for key in self._content if key not in self._known]:
            raise ValueError(
                f"{self.where}: the key {unknown[0]!r} is unknown; known are {', '.join(self._known)}"
            )


_KINDS: Mapping[type, str] = {str: "a text", int: "an integer", list: "a list", dict: "a mapping"}
