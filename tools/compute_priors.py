#!/usr/bin/env python
"""Computes the box priors of a data set.

The code is in ``bevkd2/cli/compute_priors.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.compute_priors import main
from bevkd2.cli.console import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
