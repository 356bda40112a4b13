#!/usr/bin/env python
"""Draws what models predict, beside the ground truth.

The code is in ``bevkd2/cli/visualize.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.visualize import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
