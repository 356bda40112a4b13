"""Runs proofs by name, all by default, and writes their results: ``python -m tests.reliability kill``."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from tests.reliability.report import RESULTS, write

PROOFS = (
    "kill",
    "checkpoints",
    "signals",
    "resume",
    "processes",
    "frozen",
    "seeds",
    "memory",
    "inputs",
    "fuzz",
    "sanitize",
)


def main() -> int:
    """Returns 1 where a case did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help=f"of {', '.join(PROOFS)}; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--place", type=Path, help="keep the trainings there; default: a temporary folder")
    args = parser.parse_args()
    failed = 0
    for name in args.proofs or PROOFS:
        with tempfile.TemporaryDirectory() as temporary:
            place = args.place or Path(temporary)
            rows = importlib.import_module(f"tests.reliability.{name}").prove(place)
        write(name, f"python -m tests.reliability {name}", rows, args.results)
        for row in rows:
            failed += row.survived < row.cases
            print(f"{row.survived} of {row.cases}: {row.test}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
