#!/usr/bin/env python
"""Runs the multi-view demo.

The code is in ``bevkd2/cli/demo.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.demo import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
