"""Fixtures of the engine's tests."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """Takes off the handlers that a run's log leaves on the root logger."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
