#!/usr/bin/env python
"""Runs the monocular demo.

The code is in ``bevkd2/cli/demo_mono.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.demo_mono import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
