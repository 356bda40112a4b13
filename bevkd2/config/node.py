"""A CfgNode that reads YAML safely and explains what is wrong with a key or a value."""

from __future__ import annotations

import copy
import difflib
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fvcore.common.config as fvcore_config
import yaml

from bevkd2.config.shipped import expanded, find_file, shipped_file

BASE_KEY = "_BASE_"
_MOST_VALUES = 100_000  # in a YAML file; the longest shipped config has some hundred
# What yaml raises beside its own errors on a value that its tag or its form does not fit, as 2020-99-99 has.
_OF_A_TAG = (ValueError, LookupError, AttributeError, TypeError)
_WITHIN = -1  # marks a node whose values are being counted
# Keys whose value is a path relative to the YAML file that names it, as _BASE_ is; or of a shipped file.
_RELATIVE_TO_FILE = (("DISTILL", "TEACHER", "CONFIG"),)
# Numbers that YAML 1.1 reads otherwise than they look: 010 as 8, 1:30 as 90.
_OCTAL, _BASE_60 = re.compile(r"[-+]?0[0-7_]+"), re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_THAN_TEXT = (bool, int, float, type(None))
_REMOVED: dict[str, str] = {}


def add_removed_key(key: str, remedy: str) -> None:
    """Registers a key that existed in earlier versions, so that its use is an error that says what to do.

    Args:
        key: the whole name, such as "MODEL.RESNETS.NORM".
        remedy: what the user should write instead.
    """
    _REMOVED[key] = remedy


def check_rules(node: str, rules: Iterable[tuple[bool, str]]) -> None:
    """Checks that the keys of a node agree.

    Args:
        node: its name, such as "MODEL.SMOKE".
        rules: whether each rule holds, and what is wrong where it does not.

    Raises:
        ValueError: a rule does not hold; the message names all that do not.
    """
    if broken := [message for holds, message in rules if not holds]:
        raise ValueError(f"{node}: {'; '.join(broken)}")


class CfgNode(fvcore_config.CfgNode):
    """fvcore's CfgNode; YAML is always loaded safely, unknown keys and wrong types are named errors."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file and, below it, the files that its ``_BASE_`` names.

        A base is relative to the file that names it; one below ``configs/`` that is not there is looked for
        among those that bevkd2 ships.

        Args:
            cfg_filename: path of the YAML file; one below ``configs/`` that is not in the working directory
                is looked for among those that bevkd2 ships.
            allow_unsafe: kept for Detectron2's signature; True is refused.

        Raises:
            ValueError: unsafe loading asked for, YAML tags, or a value of the wrong type.
            KeyError: an unknown key, with the nearest known one.
        """
        if allow_unsafe:
            raise ValueError("allow_unsafe=True is refused: a config file must not run code; use plain YAML")
        files: dict[Path, dict[str, Any]] = {}
        content = _load_yaml(find_file(cfg_filename), seen=(), files=files)
        try:
            self.merge_from_other_cfg(CfgNode(content), source=str(cfg_filename))
        except (KeyError, ValueError):
            for path in reversed(files):  # which of them it is in
                _checked(CfgNode(files[path]), self, str(path), prefix="")
            raise

    def merge_from_other_cfg(
        self, cfg_other: fvcore_config.CfgNode, source: str = "the other config"
    ) -> None:
        """Merges ``cfg_other``; ``source`` names it in errors.

        A distillation's MODEL.META_ARCHITECTURE moves the student's, which it replaces, to
        DISTILL.STUDENT.META_ARCHITECTURE.
        """
        checked = _checked(cfg_other, self, source, prefix="")
        self._keep_student(checked)
        _assign(checked, self)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merges ``[KEY, VALUE, KEY, VALUE, ...]``, the trailing options of the command line."""
        if len(cfg_list) % 2:
            raise ValueError(
                f"options come in pairs KEY VALUE, found {len(cfg_list)} words: {list(cfg_list)}"
            )
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            node, leaf = _find(self, str(key))
            if isinstance(value, str) and "." in value and _is_key(self, value):
                raise ValueError(
                    f"command line option {key} has no value: {value}, which follows it, is a key (an unset "
                    "shell variable leaves no word)"
                )
            name = f"command line option {key}"
            coerced = _coerce(node[leaf], _decode(node[leaf], value, name), name)
            if key == "MODEL.META_ARCHITECTURE":
                self._keep_student({"MODEL": {"META_ARCHITECTURE": coerced}})
            setattr(node, leaf, coerced)  # item assignment would change a frozen config

    def _keep_student(self, new: Mapping[str, Any]) -> None:
        if student := replaced_student(new, self):
            self.DISTILL.STUDENT.META_ARCHITECTURE = student

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Returns the merged content of ``filename`` and its bases, loaded safely."""
        if allow_unsafe:
            raise ValueError("allow_unsafe=True is refused: a config file must not run code; use plain YAML")
        return _load_yaml(find_file(filename), seen=(), files={})


class _UniqueKeyLoader(yaml.SafeLoader):
    """yaml's SafeLoader, which would keep the last of two equal keys and drop the first silently.

    Aliases (``*name``) are read, but a few lines of them may stand for billions of values; that is refused.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Composes the document.

        Raises:
            yaml.composer.ComposerError: an alias within what it stands for, or too many values.
            MisleadingNumberError: a number that YAML reads otherwise than it looks.
        """
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count_values(node, {})
            self._refuse_misleading_numbers(node, "", set())
        return node

    def _refuse_misleading_numbers(self, node: yaml.Node, key: str, seen: set[int]) -> None:
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                self._refuse_misleading_numbers(name, f"a key of {key}" if key else "a key", seen)
                inner = name.value if isinstance(name, yaml.ScalarNode) else "?"
                self._refuse_misleading_numbers(value, f"{key}.{inner}" if key else inner, seen)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._refuse_misleading_numbers(item, f"{key}[{i}]", seen)
        elif isinstance(node, yaml.ScalarNode) and not node.style and _misleads(node):
            text, value = node.value, self.construct_object(node)
            octal = ":" not in text
            raise MisleadingNumberError(
                None,
                None,
                f"{key} is written {text}, which YAML reads as {value} "
                f"({'octal, by the 0 in front' if octal else 'of base 60, by the colon'}): write "
                f"{f'{_decimal(text)} or {value}' if octal else value}, or {text!r} with the quotes if it is "
                "text",
                node.start_mark,
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Constructs a mapping.

        Raises:
            yaml.constructor.ConstructorError: a key is there twice, or is the end of a tuple; names lines.
        """
        lines: dict[Any, int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if node.flow_style and str(key.value).endswith(")"):
                raise yaml.constructor.ConstructorError(
                    "in a mapping",
                    node.start_mark,
                    f"{key.value!r} ends a tuple: between braces, write [a, b] instead of (a, b)",
                    key.start_mark,
                )
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key.value!r} is there twice, in lines {lines[key.value]} and {line}; "
                    "remove one",
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


class MisleadingNumberError(yaml.constructor.ConstructorError):
    """A number in a YAML file that YAML 1.1 reads otherwise than it looks."""


def _misleads(node: yaml.ScalarNode) -> bool:
    """Returns whether a number is of base 60, or of base 8 and another one than in base 10."""
    text = str(node.value)
    octal = _OCTAL.fullmatch(text) and abs(int(_decimal(text))) > 7
    return node.tag in _NUMBERS and bool(octal or _BASE_60.fullmatch(text))


def _decimal(text: str) -> str:
    """Returns an octal number's digits as a number of base 10."""
    return str(int(text.replace("_", "")))


def _refuse_value(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    """Raises ConstructorError for what a config has no values of: dates, sets, bytes."""
    raise yaml.constructor.ConstructorError(
        None,
        None,
        f"a value of the type {node.tag.rpartition(':')[2]}: write it between quotes",
        node.start_mark,
    )


for _kind in ("timestamp", "set", "binary", "omap", "pairs"):
    _UniqueKeyLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refuse_value)


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Returns how many values a node stands for, each alias counted as what it names."""
    if counts.get(id(node)) == _WITHIN:
        raise yaml.composer.ComposerError(None, None, "an alias within what it stands for", node.start_mark)
    if id(node) not in counts:
        counts[id(node)] = _WITHIN
        items: list[yaml.Node] = []
        if isinstance(node, yaml.CollectionNode):
            items = [item for pair in node.value for item in (pair if isinstance(pair, tuple) else (pair,))]
        total = 1 + sum(_count_values(item, counts) for item in items)
        if total > _MOST_VALUES:
            problem = f"aliases that stand for more than {_MOST_VALUES} values"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        counts[id(node)] = total
    return counts[id(node)]


def load_plain_yaml(path: Path, what: str = "config file") -> dict[str, Any]:
    """Returns the content of a YAML file, loaded safely.

    Args:
        path: an existing file.
        what: it is, for errors.

    Raises:
        ValueError: it is no plain YAML, empty, no mapping, or has a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506  (it is safe)
    except MisleadingNumberError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"{what} {path}, line {line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, *_OF_A_TAG) as error:
        raise ValueError(
            f"{what} {path} is not plain YAML ({error}); Python tags and other objects are refused"
        ) from error
    if content is None:
        raise ValueError(f"{what} {path} is empty: it is cut off, or not needed; expected a mapping of keys")
    if not isinstance(content, dict):
        raise ValueError(f"{what} {path} holds a {type(content).__name__}, expected a mapping of keys")
    return content


def _load_yaml(path: Path, seen: tuple[Path, ...], files: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of a file and its bases, merged; ``files`` gets that of each by itself."""
    if not path.is_file():
        why = f"it is the {BASE_KEY} of {seen[-1]}" if seen else "--config-file takes the path of a YAML file"
        raise FileNotFoundError(f"config file {path} does not exist; {why}")
    if path.resolve() in seen:
        chain = " -> ".join(str(p) for p in (*seen, path))
        raise ValueError(f"config file {path} is its own {BASE_KEY}: {chain}")
    content = load_plain_yaml(path)
    merged: dict[str, Any] = {}
    for name in _base_names(content.pop(BASE_KEY, []), path):
        _merge_files(_load_yaml(_relative_to(path, name), (*seen, path.resolve()), files), merged)
    for keys in _RELATIVE_TO_FILE:
        _resolve_path(content, keys, path)
    distill = content.get("DISTILL")
    teachers = distill.get("MORE_TEACHERS") if isinstance(distill, dict) else None
    for entry in teachers if isinstance(teachers, list) else ():
        _resolve_path(entry, ("CONFIG",), path)
    files[path] = copy.deepcopy(content)  # the merge puts parts of it together with others
    _merge_files(content, merged)
    return merged


def _base_names(value: Any, path: Path) -> list[str]:
    """Returns the files that a ``_BASE_`` names; ``path`` is the file that it is in."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        found = "empty" if value in (None, "") else repr(value)
        raise ValueError(
            f"config file {path}: {BASE_KEY} is {found}, expected a path or a list of paths; where there is "
            "no base, leave the key out"
        )
    return names


def _merge_files(content: dict[str, Any], merged: dict[str, Any]) -> None:
    if student := replaced_student(content, merged):
        _merge_dicts({"DISTILL": {"STUDENT": {"META_ARCHITECTURE": student}}}, merged)
    _merge_dicts(content, merged)


def _relative_to(path: Path, name: str) -> Path:
    """Returns the file ``name`` beside the file ``path``, or else the shipped file of that name."""
    target = expanded(name)
    beside = path.parent / target  # target itself where it is absolute
    return beside if beside.exists() else shipped_file(target) or beside


def _resolve_path(content: dict[str, Any], keys: tuple[str, ...], path: Path) -> None:
    node: Any = content
    for key in keys[:-1]:
        node = node.get(key) if isinstance(node, dict) else None
    value = node.get(keys[-1]) if isinstance(node, dict) else None
    if isinstance(value, str) and value:  # the merge refuses other types
        node[keys[-1]] = str(_relative_to(path, value))


def _merge_dicts(source: dict[str, Any], target: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge_dicts(value, target[key])
        else:
            target[key] = value


def _checked(
    other: fvcore_config.CfgNode, known: fvcore_config.CfgNode, source: str, prefix: str
) -> fvcore_config.CfgNode:
    """Returns a copy of ``other`` whose every key is in ``known`` and whose values have its types."""
    result = CfgNode()
    for key, value in other.items():
        if key not in known:
            if not known.is_new_allowed():
                raise KeyError(_unknown(f"{prefix}{key}", list(known), prefix, source))
            result[key] = value
        elif isinstance(known[key], fvcore_config.CfgNode):
            if not isinstance(value, fvcore_config.CfgNode):
                raise ValueError(f"{source}: {prefix}{key} is a node of keys, found the value {value!r}")
            result[key] = _checked(value, known[key], source, f"{prefix}{key}.")
        else:
            name = f"{source}: {prefix}{key}"
            result[key] = _coerce(known[key], _decode(known[key], value, name), name)
    return result


def _assign(source: fvcore_config.CfgNode, target: fvcore_config.CfgNode) -> None:
    for key, value in source.items():
        if isinstance(value, fvcore_config.CfgNode) and isinstance(target.get(key), fvcore_config.CfgNode):
            _assign(value, target[key])
        else:
            setattr(target, key, value)


def _decode(old: Any, new: Any, name: str) -> Any:
    """Returns the value that a string is of, such as "(1, 2)", unless a string is expected.

    Where a list is expected, a list of words need not have quotes: "[PKD, FGD]".

    Raises:
        ValueError: a list has a number that YAML reads otherwise than it looks; ``name`` is the value's.
    """
    if isinstance(old, str) and isinstance(new, str):
        return new
    value = CfgNode._decode_cfg_value(new)
    if isinstance(old, (list, tuple)) and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return yaml.load(value, _UniqueKeyLoader)  # noqa: S506  (it is safe)
        except MisleadingNumberError as error:
            raise ValueError(f"{name}{error.problem}") from error
        except yaml.YAMLError:
            return value  # the caller says what is expected
    return value


def _coerce(old: Any, new: Any, name: str) -> Any:
    """Returns ``new`` as the type of ``old`` where no information is lost, else raises."""
    if old is None or (type(old) is type(new) and not isinstance(old, (list, tuple))):
        return new
    if isinstance(old, float) and type(new) is int:
        return float(new)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return type(old)(_coerce_items(old, new, name))
    remedy = ""
    if isinstance(old, str) and isinstance(new, _OTHER_THAN_TEXT):
        remedy = "; YAML reads yes, no, on, off, null and numbers as text only between quotes"
    elif isinstance(old, bool) and isinstance(new, str):
        remedy = "; write True or False"
    raise ValueError(
        f"{name}: expected {type(old).__name__} as in {old!r}, found {type(new).__name__} {new!r}{remedy}"
    )


def _coerce_items(old: Sequence[Any], new: Sequence[Any], name: str) -> list[Any]:
    """Returns the items of ``new`` as the one type that those of ``old`` have; any, where they have none."""
    if len({type(item) for item in old}) != 1 or not isinstance(old[0], (bool, int, float, str)):
        return list(new)
    names = [f"{name}[{i}]" for i in range(len(new))]
    return [
        _coerce(old[0], _decode(old[0], item, place), place) for item, place in zip(new, names, strict=True)
    ]


def _find(cfg: fvcore_config.CfgNode, dotted: str) -> tuple[fvcore_config.CfgNode, str]:
    """Returns the node that holds the key ``A.B.C`` and the key's last part."""
    node: Any = cfg
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        prefix = "".join(f"{p}." for p in parts[:depth])
        if not isinstance(node, fvcore_config.CfgNode) or part not in node:
            names = list(node) if isinstance(node, fvcore_config.CfgNode) else []
            raise KeyError(_unknown(dotted, names, prefix, "command line option"))
        if depth < len(parts) - 1:
            node = node[part]
    if isinstance(node[parts[-1]], fvcore_config.CfgNode):
        raise ValueError(f"command line option {dotted} is a node of keys: {', '.join(node[parts[-1]])}")
    return node, parts[-1]


def _is_key(cfg: fvcore_config.CfgNode, text: str) -> bool:
    try:
        _find(cfg, text)
    except (KeyError, ValueError):  # unknown, or a node
        return False
    return True


def _unknown(key: str, known: list[str], prefix: str, source: str) -> str:
    leaf = key[len(prefix) :].split(".")[0]
    if remedy := _REMOVED.get(f"{prefix}{leaf}"):
        return f"{source}: config key {prefix + leaf!r} does not exist any more: {remedy}"
    near = difflib.get_close_matches(leaf, known, n=3, cutoff=0.5) or sorted(known)
    return f"{source}: unknown config key {key!r}; similar keys: {', '.join(prefix + name for name in near)}"


def replaced_student(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Returns the student's architecture that a merge of ``new`` into ``old`` would replace; "": none.

    Args:
        new: a config, or the content of a YAML file.
        old: what it is merged into.
    """
    name, replaced = _architecture(new), _architecture(old)
    return replaced if _is_distiller(name) and not _is_distiller(replaced) else ""


def _architecture(tree: Mapping[str, Any]) -> str:
    model = tree.get("MODEL")
    name = model.get("META_ARCHITECTURE") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else ""


def _is_distiller(name: str) -> bool:
    # Named, not imported, as in plugins.py: only bevkd2.distill, a package above this one, knows.
    return bool(name and importlib.import_module("bevkd2.distill.config").is_distiller(name))
