#!/usr/bin/env python
"""Trains, distils or evaluates the model of a config.

The code is in ``bevkd2/cli/train.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.train import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
