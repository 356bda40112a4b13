"""Whether the training splits have objects to learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from fvcore.common.config import CfgNode

from bevkd2.config import class_names
from bevkd2.data.format import data_format, load_dataset

logger = logging.getLogger(__name__)

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lacking:
    """The classes of which a training split has no object to learn from.

    Attributes:
        reasons: name of the class -> why its objects are left out, as "have no lidar points" -> how many are;
            empty where none is labelled.
        others: labelled objects of other classes.
    """

    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    others: int = 0


def lacking_classes(
    names: Sequence[str], learnt: Counts, left_out: Mapping[str, Counts], others: int = 0
) -> Lacking:
    """Returns the classes without an object to learn from.

    Args:
        names: of the K classes.
        learnt: (K,) objects that samples have.
        left_out: why objects are left out -> (K,) how many are.
        others: labelled objects of other classes.
    """
    reasons = {
        name: {why: int(counts[label]) for why, counts in left_out.items() if counts[label]}
        for label, name in enumerate(names)
        if not learnt[label]
    }
    return Lacking(reasons, others)


def check_targets(cfg: CfgNode) -> None:
    """Warns of classes and of training splits without an object to learn from.

    Args:
        cfg: the config; reads DATASETS and INPUT.

    Raises:
        ValueError: there is none in all of DATASETS.TRAIN; says why.
    """
    form, names, splits = data_format(cfg), class_names(cfg), cfg.DATASETS.TRAIN
    found = {split: form.lacking(cfg, load_dataset(cfg, split)) for split in splits}
    lacking = [name for name in names if all(name in part.reasons for part in found.values())]
    if found and len(lacking) == len(names):
        raise ValueError(
            f"DATASETS.TRAIN {list(splits)} has no object to learn from: "
            f"{_explained(lacking, found.values())}. Set DATASETS.CLASSES to what is labelled, mend the "
            "labels, or change the keys that are named"
        )
    for split, part in found.items():
        if len(part.reasons) == len(names):
            logger.warning("split %r has no object to learn from: %s", split, _explained(names, [part]))
    if lacking:
        logger.warning("no object to learn from in DATASETS.TRAIN: %s", _explained(lacking, found.values()))


def _explained(names: Sequence[str], parts: Iterable[Lacking]) -> str:
    """Returns why the splits have no object of the classes."""
    parts = list(parts)
    lines = []
    for name in names:
        total: dict[str, int] = {}
        for part in parts:
            for why, count in part.reasons[name].items():
                total[why] = total.get(why, 0) + count
        why_not = ", ".join(f"{count} {why}" for why, count in total.items())
        lines.append(f"{name}: {why_not or 'none is labelled'}")
    others = sum(part.others for part in parts)
    return "; ".join(lines) + (f" ({others} labelled objects are of other classes)" if others else "")
