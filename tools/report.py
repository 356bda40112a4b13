#!/usr/bin/env python
"""Writes one HTML page about runs: curves, scores, pictures, settings.

The code is in ``bevkd2/cli/report.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.report import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
