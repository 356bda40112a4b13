"""HTML files whose style and script are in them: the style sheet of all pages, and what a page adds."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

import bevkd2

_HERE = Path(__file__).parent


def fill(template: str, script: str, styles: Sequence[str] = (), **values: object) -> str:
    """Returns a page.

    Args:
        template: name of its file.
        script: name of the file of its script, the only one that the page's security policy allows.
        styles: style sheets that follow that of all pages.
        **values: what the template needs beside ``style``, ``script``, ``digest`` and ``version``.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = (_HERE / script).read_text()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template(template).render(
        **values,
        style=Markup("\n".join([(_HERE / "page.css").read_text(), *styles])),
        script=Markup(text),
        digest=digest,
        version=bevkd2.__version__,
    )


def read_style(name: str) -> str:
    """Returns a style sheet of this package.

    Args:
        name: of its file, such as ``page.css``.
    """
    return (_HERE / name).read_text()
