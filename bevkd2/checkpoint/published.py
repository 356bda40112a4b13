"""What a published file holds: its state dict, and the classes that it states beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from bevkd2.checkpoint.io import CheckpointFileError
from bevkd2.checkpoint.strict import check_classes

_STATE = "state_dict"
_STATES = (_STATE, "model")
_STORED = "classes"  # where this package states them
_CLASS_KEYS = ("classes", "class_names", "thing_classes")  # in any case of letters


def published_state(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Returns the tensors in a published file, which may keep them under ``state_dict``.

    Args:
        content: of the file.
        source: the file, for the error.

    Raises:
        CheckpointFileError: there is no state dict, or it holds something else besides tensors.
    """
    state = content.get(_STATE, content)
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        return state
    others = [
        key
        for key, value in (state if isinstance(state, dict) else content).items()
        if key != _STATE and not isinstance(value, Tensor)
    ]
    raise CheckpointFileError(
        f"{source} holds no state dict: expected tensors by name, or a key {_STATE!r} with them and nothing "
        f"else, found the keys {others[:10]}"
    )


def published_classes(content: Mapping[str, Any], source: str) -> dict[str, list[str]]:
    """Returns every list of classes that a published file states beside its weights.

    mmdetection3d keeps them in ``meta.CLASSES``, ``meta.dataset_meta.CLASSES`` or
    ``meta.dataset_meta.classes``, by its version. All of the file but the state dict is searched for keys
    ``classes``, ``class_names`` and ``thing_classes``, so that no place is overlooked.

    Args:
        content: of the file.
        source: the file, for the error.

    Returns:
        Names in the order of the labels, by the keys that lead there, such as ``meta.CLASSES``.

    Raises:
        CheckpointFileError: such a key holds something that is no list of names.
    """
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    left = [("", {key: value for key, value in content.items() if key != _STATE})]
    while left:
        place, node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in node.items():
            name = f"{place}{key}"
            if str(key).lower() in _CLASS_KEYS and value is not None:
                found[name] = _names(value, f"{source}: {name}")
            elif isinstance(value, dict):
                left.append((f"{name}.", value))
            elif isinstance(value, (list, tuple)):  # such as one entry per joined dataset
                left += [(f"{name}[{i}].", item) for i, item in enumerate(value) if isinstance(item, dict)]
    return found


def check_stated_classes(
    content: Mapping[str, Any],
    expected: Sequence[str],
    source: str,
    *,
    fixed: bool = False,
    parts: Collection[str] = (),
) -> None:
    """Checks every list of classes that a file states beside its weights, see :func:`published_classes`.

    Args:
        content: of the file.
        expected: names in the order of the labels; empty where they are unknown.
        source: the file, for the error.
        fixed: whether the data format fixes the classes, for the error.
        parts: keys of the content that hold state alone, and are not searched.

    Raises:
        CheckpointFileError: what should be a list of classes is none.
        ValueError: a list differs from what is expected.
    """
    searched = {key: value for key, value in content.items() if key not in (*_STATES, *parts)}
    for place, stated in published_classes(searched, source).items():
        where = source if place == _STORED else f"{source} ({place})"
        check_classes(stated, expected, where, fixed=fixed)


def _names(value: Any, source: str) -> list[str]:
    """Returns names from a list, or from a mapping between names and labels in either direction."""
    if isinstance(value, dict):
        pairs = [(key, name) if isinstance(key, int) else (name, key) for key, name in value.items()]
        if all(isinstance(label, int) for label, _ in pairs):
            value = [name for _, name in sorted(pairs)]
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise CheckpointFileError(f"{source} is {value!r}, expected the names of the classes in their order")
    return list(value)
