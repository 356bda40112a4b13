"""What the tests of the benchmarks share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Some benchmarks switch logging off for their process, which here is that of all tests."""
    level = logging.root.manager.disable
    yield
    logging.disable(level)
