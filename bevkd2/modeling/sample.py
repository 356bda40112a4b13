"""A sample as a mapper emits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sample = Mapping[str, Any]
"""The keys are those that the detector reads, and ``sample_id`` (str)."""


def sample_name(sample: Sample) -> str:
    """Returns the ``sample_id`` of a sample, for errors."""
    return str(sample.get("sample_id", "(without a sample_id)"))
