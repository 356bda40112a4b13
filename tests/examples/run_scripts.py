"""Run by test_downstream.py: several scripts of the repository one after the other, in one process.

As ``python SCRIPT ARGUMENTS`` for each, but what is slow to import is imported once.
"""

from __future__ import annotations

import json
import logging
import runpy
import sys


def main() -> None:
    """Reads the command lines, words in JSON, from standard input."""
    for words in json.load(sys.stdin):
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        logging.getLogger().handlers.clear()  # of the run's own log


if __name__ == "__main__":
    main()
