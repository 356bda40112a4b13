"""Pages in the browser of conftest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WINDOWS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]


def show(browser: Any, page: Path, scheme: str, width: int) -> None:
    """Opens a page in a window of a width in pixels, light or dark."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


def overflow(browser: Any) -> int:
    """By how many pixels the page is wider than the window, without its scroll bar."""
    root = "document.documentElement"
    return int(browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth"))


def background(browser: Any) -> str:
    """The colour of the page."""
    body = browser.find_element("css selector", "body")
    return str(body.value_of_css_property("background-color"))
