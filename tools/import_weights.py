#!/usr/bin/env python
"""Converts published weights.

The code is in ``bevkd2/cli/import_weights.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.import_weights import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
