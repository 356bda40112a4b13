"""Runs several scripts one after the other, in one process; tests start it as a program.

As ``python SCRIPT ARGUMENTS`` or ``bevkd2 COMMAND ARGUMENTS`` for each, but what is slow to import is
imported once.
"""

from __future__ import annotations

import json
import logging
import runpy
import sys

from bevkd2.cli import console


def main() -> None:
    """Reads the command lines, words in JSON, from standard input."""
    for words in json.load(sys.stdin):
        sys.argv = words
        try:
            if words[0] == "bevkd2":
                sys.exit(console.main(words[1:]))
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        logging.getLogger().handlers.clear()  # of the run's own log


if __name__ == "__main__":
    main()
