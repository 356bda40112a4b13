#!/usr/bin/env python
"""Exports a trained detector to ONNX or to a torch.export package.

The code is in ``bevkd2/cli/export.py``; ``--help`` lists the options.
"""

import sys

from bevkd2.cli.console import run_cli
from bevkd2.cli.export import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
