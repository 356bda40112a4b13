#!/usr/bin/env python
"""Prints parameters and FLOPs of a model.

The code is in ``bevkd2/cli/analyze_model.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.analyze_model import main
from bevkd2.cli.console import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
