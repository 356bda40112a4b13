"""Run by test_run.py: several command lines of tools/train_net.py in one process, so that it imports once.

Reads a JSON list of [words, environment] from standard input and writes a JSON list of what each left:
exit status, standard output and standard error. An exception that the tool does not report itself ends this
process, and so fails the tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import runpy
import sys


def run(script: str, words: list[str], environment: dict[str, str]) -> dict[str, object]:
    """Runs the script once; returns its exit status and its output."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv, status = [script, *words], 0
    os.environ.update(environment)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code
    logging.getLogger().handlers.clear()  # of the run's own log
    for name in environment:
        del os.environ[name]
    return {"returncode": status, "stdout": out.getvalue(), "stderr": err.getvalue()}


if __name__ == "__main__":
    script = sys.argv[1]  # every run replaces sys.argv
    results = [run(script, words, environment) for words, environment in json.load(sys.stdin)]
    sys.__stdout__.write(json.dumps(results))
