#!/usr/bin/env python
"""Scores KITTI detection files.

The code is in ``bevkd2/cli/kitti_eval.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.kitti_eval import main
from bevkd2.cli.run import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
