#!/usr/bin/env python
"""Writes the weights of the plain student of a checkpoint.

The code is in ``bevkd2/cli/export_weights.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.export_weights import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
