"""Runs the tools: the one place where a user's error becomes a message and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from bevkd2.errors import USER_ERRORS, log_traceback, message_of, traceback_of


def run_cli(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a tool; a user's error becomes one message on stderr and the exit status 1.

    The traceback is written to the run's log.txt, where one was opened. It is printed too where the command
    line has ``--traceback`` or BEVKD2_TRACEBACK is 1. Other errors keep their traceback.

    Args:
        main: the tool; takes the words of the command line, returns the exit status.
        argv: those words, ``--traceback`` among them or not; the process's by default.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    printed = "--traceback" in words or os.environ.get("BEVKD2_TRACEBACK") == "1"
    try:
        return main([word for word in words if word != "--traceback"])
    except USER_ERRORS as error:
        log = log_traceback(error)
        if printed:
            print(traceback_of(error), file=sys.stderr)
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'[rank {rank}] '}error: {message_of(error)}", file=sys.stderr)
        if not printed:
            print(f"({f'{log} has the traceback; ' if log else ''}--traceback prints it)", file=sys.stderr)
        return 1
