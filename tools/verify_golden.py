#!/usr/bin/env python
"""Compares this package with recorded numbers of the original implementations; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/ is not installed

from tests.golden.verify import main

if __name__ == "__main__":
    sys.exit(main())
