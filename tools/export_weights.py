#!/usr/bin/env python
"""Writes the weights of the plain student of a checkpoint.

The code is in ``bevkd2/cli/export_weights.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.export_weights import main
from bevkd2.cli.run import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
