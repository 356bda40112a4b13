#!/usr/bin/env python
"""Generates a synthetic world.

The code is in ``bevkd2/cli/make_synthetic.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.make_synthetic import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
