"""Loading weights so that every key is matched, or named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_SHOWN = 10  # keys of a kind that an error lists
_COUNTER = "num_batches_tracked"
_REMEDY = (
    "It was saved from another architecture, or with another number of classes, width or grid: use the "
    "config that it was trained with; `bevkd2 import-weights` converts published weights, and "
    "MODEL.ALLOW_MISSING lists key prefixes that MODEL.WEIGHTS may lack where a training starts"
)


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
        remedy: str = "",
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
        super().__init__(f"{source} does not fit {model}: {found}. {remedy or _REMEDY}")


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], source: str, allow_missing: Sequence[str] = ()
) -> None:
    """Copies weights into a module after checking that every key matches in name and shape.

    A state dict of a model in DataParallel or of a compiled one is taken for the model's own, and batch
    counters that it lacks start at zero; see :func:`completed`.

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
    expected = module.state_dict()
    state = completed(state, expected)
    allowed = check_keys(expected, state, source, type(module).__name__, allow_missing)
    warn_of_nan(state, source, "use an earlier checkpoint")
    with torch.no_grad():
        module.load_state_dict(dict(state), strict=False)
    if allowed:
        text = _listing("missing from it, as MODEL.ALLOW_MISSING permits", allowed)
        logging.getLogger(__name__).warning("%s: %s", source, text)


def warn_of_nan(state: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Logs a warning where weights have NaN.

    Args:
        state: tensors by name.
        source: where they come from, for the warning.
        remedy: what to do, for the warning.
    """
    numbers = ((name, value) for name, value in state.items() if value.element_size() > 1)  # not of 8 bits
    if undefined := [name for name, value in numbers if value.isnan().any()]:
        text = _listing("with NaN, so that all losses and detections will be NaN", undefined)
        logging.getLogger(__name__).warning("%s: %s; %s", source, text, remedy)


def unwrapped(key: str) -> str:
    """Returns a key without what DataParallel (``module.``) and compiled modules (``_orig_mod.``) add."""
    name = key.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def completed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights by the model's own names, with the batch counters that they lack.

    Args:
        state: tensors by name.
        expected: the model's state dict.

    Returns:
        The tensors, renamed by :func:`unwrapped` where only that is a name of the model's. A counter of
        batches (``num_batches_tracked``, which files of before 2018 lack) is zero where the rest of its layer
        is there.
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = unwrapped(key)
        renamed = key not in expected and name in expected and name not in state and name not in result
        result[name if renamed else key] = value
    for name, value in expected.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == _COUNTER and name not in result and f"{layer}.running_mean".lstrip(".") in result:
            result[name] = torch.zeros_like(value)
    return result


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
        f"{name} {misfit}"
        for name, value in expected.items()
        if name in state and (misfit := _misfit(state[name], value))
    ]
    if missing or unexpected or mismatched:
        remedy = _prefix_remedy(expected, state)
        raise StateDictMismatchError(source, model, missing, unexpected, mismatched, remedy)
    return allowed


def _misfit(found: Tensor, expected: Tensor) -> str:
    """Returns why a tensor cannot be copied to another without loss of what it means; "" where it can."""
    if found.shape != expected.shape:
        return f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    if found.is_meta > expected.is_meta:
        return "has no numbers"
    if found.layout != expected.layout:
        return f"{found.layout} instead of {expected.layout}"
    if expected.is_floating_point() and not found.is_floating_point():  # such as quantised weights
        return f"{found.dtype} instead of {expected.dtype}"
    return ""


def _prefix_remedy(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Returns what to do where the weights would fit without a prefix that all their keys have."""
    parts = next(iter(state), "").split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end]) + "."
        known = sum(key.startswith(prefix) and key.removeprefix(prefix) in expected for key in state)
        if 2 * known > len(expected) and all(key.startswith(prefix) for key in state):
            return (
                f"Every key of it begins with {prefix!r}, and without that {known} of the model's "
                f"{len(expected)} keys would be there: save its state dict once more under the shorter names"
            )
    return ""


def check_classes(
    stored: Sequence[str], expected: Sequence[str], source: str, *, fixed: bool = False
) -> None:
    """Checks that weights were trained with the classes, in their order, that they are to be used with.

    Args:
        stored: names that were stored with the weights; empty where none were.
        expected: names in the order of the labels; empty where they are unknown.
        source: where the weights come from, for the error.
        fixed: whether the data format fixes the classes, for the error.

    Raises:
        ValueError: both are known and differ, or what is stored is no list of names.
    """
    if not isinstance(stored, (list, tuple)) or not all(isinstance(name, str) for name in stored):
        raise ValueError(f"{source}: its classes are {stored!r}, expected a list of names; it is damaged")
    if stored and expected and list(stored) != list(expected):
        remedy = "set DATASETS.CLASSES to the weights' own"
        if fixed:
            remedy = "the format of the config fixes its own, so these weights cannot be used with it"
        raise ValueError(
            f"{source} was trained with the classes {', '.join(stored)}, in this order; the config's are "
            f"{', '.join(expected)}. A label is an index into this list: {remedy}"
        )


def _listing(what: str, keys: Sequence[str]) -> str:
    rest = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''} {what}: {', '.join(keys[:_SHOWN])}{rest}"
