"""Loading weights so that every key is matched, or named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_SHOWN = 10  # keys of a kind that an error lists


class StateDictMismatchError(ValueError):
    """Weights that do not fit a model.

    Attributes:
        missing: keys of the model that the weights lack.
        unexpected: keys of the weights that the model lacks.
        mismatched: keys in both, with the two shapes.
    """

    def __init__(
        self,
        source: str,
        model: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        mismatched: Sequence[str],
    ) -> None:
        self.missing, self.unexpected, self.mismatched = list(missing), list(unexpected), list(mismatched)
        found = "; ".join(
            _listing(what, keys)
            for what, keys in (
                ("of another shape", self.mismatched),
                ("missing from it", self.missing),
                ("unknown to the model", self.unexpected),
            )
            if keys
        )
        super().__init__(
            f"{source} does not fit {model}: {found}. It was saved from another architecture, or with "
            "another number of classes, width or grid: use the config that it was trained with; "
            "tools/import_weights.py converts published weights, and MODEL.ALLOW_MISSING lists key prefixes "
            "that MODEL.WEIGHTS may lack where a training starts"
        )


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], source: str, allow_missing: Sequence[str] = ()
) -> None:
    """Copies weights into a module after checking that every key matches in name and shape.

    Args:
        module: the module; untouched if the check fails.
        state: tensors by name.
        source: where they come from, for errors.
        allow_missing: prefixes of keys that ``state`` may lack; the module keeps its own values there.

    Raises:
        StateDictMismatchError: keys are missing, unknown, or of another shape.
        ValueError: an empty prefix, which would allow anything to be missing.
    """
    if "" in allow_missing:
        raise ValueError(
            f"MODEL.ALLOW_MISSING holds an empty prefix ({list(allow_missing)}), which matches every key; "
            f"name the part of the model that the file lacks"
        )
    allowed = check_keys(module.state_dict(), state, source, type(module).__name__, allow_missing)
    with torch.no_grad():
        module.load_state_dict(dict(state), strict=False)
    if allowed:
        text = _listing("missing from it, as MODEL.ALLOW_MISSING permits", allowed)
        logging.getLogger(__name__).warning("%s: %s", source, text)


def check_keys(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: str,
    model: str,
    allow_missing: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Checks that weights fit a model in names and shapes.

    Args:
        expected: the model's state dict.
        state: the weights.
        source: where they come from, for the error.
        model: what the model is called, for the error.
        allow_missing: prefixes of keys that ``state`` may lack.
        names: what a key is called in the file, where it has another name there; for the error.

    Returns:
        The keys that ``state`` lacks and may lack.

    Raises:
        StateDictMismatchError: keys are missing, unknown, or of another shape.
    """
    absent = [name for name in expected if name not in state]
    allowed = [name for name in absent if name.startswith(tuple(allow_missing))]
    missing = sorted(set(absent) - set(allowed))
    unexpected = [(names or {}).get(name, name) for name in state if name not in expected]
    mismatched = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or mismatched:
        raise StateDictMismatchError(source, model, missing, unexpected, mismatched)
    return allowed


def check_classes(stored: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Checks that weights were trained with the classes, in their order, that they are to be used with.

    Args:
        stored: names that were stored with the weights; empty where none were.
        expected: names in the order of the labels; empty where they are unknown.
        source: where the weights come from, for the error.

    Raises:
        ValueError: both are known and differ.
    """
    if stored and expected and list(stored) != list(expected):
        raise ValueError(
            f"{source} was trained with the classes {', '.join(stored)}, in this order; the config's are "
            f"{', '.join(expected)}. A label is an index into this list: set "
            "DATASETS.CLASSES to the weights' own"
        )


def _listing(what: str, keys: Sequence[str]) -> str:
    rest = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''} {what}: {', '.join(keys[:_SHOWN])}{rest}"
