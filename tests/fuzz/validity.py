"""Which contents of files are what their formats allow."""

from __future__ import annotations

import json
from typing import Any

import torch

Result = dict[str, Any]
"""What a run gets of its files, by name."""


def strict_json(data: bytes) -> Any:
    """The tree of a JSON file without a key twice or a number that is not finite; raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def refuse(text: str) -> None:
        raise ValueError(text)

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def same_shape(old: Any, new: Any) -> bool:
    """Whether two trees have the same keys, lengths and types of values: other values are other data."""
    numbers = (int, float)
    if type(old) is not type(new) and not (type(old) in numbers and type(new) in numbers):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(same_shape(old[key], new[key]) for key in old)
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(map(same_shape, old, new))
    if isinstance(old, torch.Tensor):
        floating = old.is_floating_point() and new.is_floating_point()
        return old.shape == new.shape and (floating or old.dtype == new.dtype)
    return True
