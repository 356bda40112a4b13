#!/usr/bin/env python
"""Prints every loss of a distillation and its gradient on every part of the student.

The code is in ``bevkd2/cli/analyze_distillation.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.analyze_distillation import main
from bevkd2.cli.console import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
