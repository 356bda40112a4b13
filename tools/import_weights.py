#!/usr/bin/env python
"""Converts published weights.

The code is in ``bevkd2/cli/import_weights.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.import_weights import main
from bevkd2.cli.run import run_cli

if __name__ == "__main__":
    sys.exit(run_cli(main))
