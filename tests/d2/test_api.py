"""The active provider has the signatures that were recorded from Detectron2."""

import json

import pytest

import bevkd2.d2 as d2

from .snapshot_api import API_FILE, parameters

API = json.loads(API_FILE.read_text())["names"]

# What the embedded engine leaves out, and why
LEFT_OUT = {
    "hooks.AutogradProfiler": "torch.profiler says more",
    "hooks.PreciseBN": "fvcore.nn.precise_bn does it",
    "hooks.TorchProfiler": "torch.profiler does it",
    "CfgNode.dump": "yacs's own, which Detectron2 only passes on to",
}


def signatures(api: dict, path: str = "") -> list:
    """All (dotted name, signature) pairs of a part of the snapshot; a property has no signature."""
    found = []
    for name, entry in api.items():
        here = f"{path}{name}"
        found += [(here, entry[key]) for key in ("init", "parameters") if key in entry]
        found += [(f"{here}.{method}", text) for method, text in entry.get("methods", {}).items()]
        found += [(f"{here}.{prop}", None) for prop in entry.get("properties", [])]
        found += signatures(entry.get("members", {}), f"{here}.")
    return found


def is_left_out(dotted: str) -> bool:
    return any(dotted == name or dotted.startswith(name + ".") for name in LEFT_OUT)


def test_the_snapshot_has_every_exported_name():
    assert set(API) == set(d2.__all__) - {"PROVIDER"}


@pytest.mark.parametrize(("dotted", "expected"), signatures(API))
def test_signature(dotted, expected):
    if d2.PROVIDER == "embedded" and is_left_out(dotted):
        pytest.skip(f"{dotted} is left out")
    value, owner = d2, None
    for name in dotted.split("."):
        owner, value = value, getattr(value, name)
        if owner in (d2.DatasetCatalog, d2.MetadataCatalog, d2.PathManager):
            value = getattr(type(owner), name)
    if expected is None:
        assert isinstance(value, property)
    else:
        assert parameters(value) == expected


def test_excluded_names_do_not_exist():
    missing = [name for name, _ in signatures(API) if name.startswith("hooks.") and is_left_out(name)]
    assert missing, "the list names nothing of the snapshot"
    if d2.PROVIDER == "embedded":
        assert not any(hasattr(d2.hooks, name.split(".")[1]) for name in missing)
