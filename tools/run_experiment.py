#!/usr/bin/env python
"""Trains and scores every row and seed of an experiment.

The code is in ``bevkd2/cli/run_experiment.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.run_experiment import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
