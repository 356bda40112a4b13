#!/usr/bin/env python
"""Scores KITTI detection files.

The code is in ``bevkd2/cli/kitti_eval.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.kitti_eval import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
