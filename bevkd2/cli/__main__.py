"""``python -m bevkd2.cli``: the command ``bevkd2`` where it is not on PATH."""

import sys

from bevkd2.cli.console import main

if __name__ == "__main__":
    sys.exit(main())
