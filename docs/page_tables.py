"""What the scripts that write tables into the pages share: the places, and the form of a table.

A place is what lies between ``<!-- KIND NAME -->`` and ``<!-- end of KIND NAME -->``; each script has a kind
of its own. ``make tables`` runs all of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of a kind. A kind with a single place may leave its name out."""

    kind: str

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            rf"(<!-- {self.kind}(?: ([^\n]+?))? -->\n).*?(<!-- end of {self.kind}(?(2) \2) -->)", re.DOTALL
        )

    def names(self, text: str) -> list[str]:
        """Returns the names of the places in the text of a page, "" for one without."""
        return [found[2] or "" for found in self._pattern.finditer(text)]

    def filled(self, text: str, body: Callable[[str], str]) -> str:
        """Returns the text of a page with the current content of its places.

        Args:
            text: of the page.
            body: returns the Markdown of a place by its name.

        Raises:
            ValueError: a place begins and does not end.
        """
        begins = re.findall(rf"<!-- {self.kind}(?: [^\n]+?)? -->", text)
        if len(begins) != len(self.names(text)):
            raise ValueError(
                f"places begin with {', '.join(begins)}, and only {self.names(text)} end; every place needs "
                f"its <!-- end of {self.kind} NAME -->"
            )
        return self._pattern.sub(lambda found: f"{found[1]}\n{body(found[2] or '')}\n\n{found[3]}", text)

    def pages(self) -> list[Path]:
        """Returns the pages that have a place of this kind."""
        return [page for page in sorted(DOCS.glob("*.md")) if self.names(page.read_text())]

    def write(self, body: Callable[[str], str]) -> None:
        """Fills the places of all pages."""
        for page in self.pages():
            page.write_text(self.filled(page.read_text(), body))


def markdown_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Returns a table in the form that mdformat writes, so that formatting a page does not change it."""
    lines = [[str(cell).replace("|", "\\|") for cell in cells] for cells in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in lines
    )


def three_digits(value: float) -> str:
    """Formats a number with three significant digits."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:#.3g}".rstrip(".")


def percent(share: float, digits: int = 0) -> str:
    """Formats a share in percent."""
    return f"{100 * share:.{digits}f} %"
