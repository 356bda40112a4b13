"""The table of docs/methods.md is that of the registered methods and of the measurements."""

import json
import runpy
import sys

from bevkd2.distill import DISTILL_REGISTRY
from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_methods_table.py"))


def test_page_is_current():
    (page,) = SCRIPT["PLACES"].pages()
    text = page.read_text()
    assert text == SCRIPT["PLACES"].filled(text, lambda name: SCRIPT["table"]()), "run make tables"


def test_every_method_is_measured_on_at_least_one_pair():
    costs = json.loads(SCRIPT["RESULTS"].read_text())
    own = {name for name, method in DISTILL_REGISTRY if method.__module__.startswith("bevkd2.")}
    assert own == set(costs["bevformer"]["methods"]) | set(costs["pgd"]["methods"])


def test_every_method_says_its_source():
    for name, method in DISTILL_REGISTRY:
        if method.__module__.startswith("bevkd2."):
            assert "(" in SCRIPT["first_line"](sys.modules[method.__module__].__doc__), name
