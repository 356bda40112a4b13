"""Paths that tools write to, as their command lines name them."""

from __future__ import annotations

import argparse
from pathlib import Path


def path_to_write(text: str) -> Path:
    """Parses the path of a file or folder that a tool writes; its folder need not exist.

    Args:
        text: the word on the command line.

    Raises:
        argparse.ArgumentTypeError: it is empty, which would be the working directory.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "the path is empty; name a file or folder (an unset shell variable gives an empty word)"
        )
    return Path(text)
