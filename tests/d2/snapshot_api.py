"""Write api.json, the signatures of the installed Detectron2 behind the names of ``bevkd2.d2``.

Run it where Detectron2 is installed, with BEVKD2_D2=detectron2, and give it the commit that is installed:
``python tests/d2/snapshot_api.py 02b5c4e2``.
"""

import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import bevkd2.d2 as d2

API_FILE = Path(__file__).with_name("api.json")

Api = dict[str, Any]
_MARKS = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
    inspect.Parameter.KEYWORD_ONLY: "keyword ",
}


def parameters(function: Any) -> str:
    """Parameters in order, each as its kind's mark, its name, and "=" if it has a default."""
    return ", ".join(
        _MARKS.get(p.kind, "") + p.name + ("" if p.default is p.empty else "=")
        for p in inspect.signature(function).parameters.values()
    )


def describe(value: Any, package: str) -> Api:
    """What is public of a function, class, module or object, as far as ``package`` defines it."""
    if isinstance(value, ModuleType):
        return {"kind": "module", "members": _members(value, package)}
    if inspect.isclass(value):
        return {"kind": "class", "init": parameters(value), **_class(value, package)}
    if inspect.isfunction(value) or hasattr(value, "__wrapped__"):
        return {"kind": "function", "parameters": parameters(value)}
    return {"kind": "object", **_class(type(value), package)}


def _members(module: ModuleType, package: str) -> Api:
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and value.__module__ == module.__name__
    ]
    return {name: describe(getattr(module, name), package) for name in sorted(names)}


def _class(cls: type, package: str) -> Api:
    """Public methods and properties of a class and of those of its bases that the package defines."""
    methods, properties = {}, set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != package:
            continue
        for name, value in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(value, property):
                properties.add(name)
            elif callable(value) or isinstance(value, (classmethod, staticmethod)):
                methods[name] = parameters(getattr(cls, name))
    return {"methods": dict(sorted(methods.items())), "properties": sorted(properties)}


def main() -> None:
    """Write the file."""
    if not d2.PROVIDER.startswith("detectron2"):
        sys.exit(f"the active provider is {d2.PROVIDER}; run with BEVKD2_D2=detectron2")
    names = [name for name in d2.__all__ if name != "PROVIDER"]
    api = {
        "source": f"{d2.PROVIDER}, commit {sys.argv[1]}",
        "names": {name: describe(getattr(d2, name), "detectron2") for name in sorted(names)},
    }
    API_FILE.write_text(json.dumps(api, indent=1) + "\n")


if __name__ == "__main__":
    main()
