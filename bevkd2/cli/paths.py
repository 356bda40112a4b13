"""Paths that tools write to, as their command lines name them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from urllib.parse import quote


def file_name(name: str) -> str:
    """Returns a name of the data, such as a scene's, as a part of the name of a file.

    What could lead to another folder, and what is no letter, digit or one of ``_ . -`` and blank, is written
    as in a URL; other names stay as they are, and different names stay different.
    """
    return re.sub(r"[^\w .-]", lambda found: quote(found[0], safe=""), name)


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
