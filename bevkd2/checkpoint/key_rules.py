"""Renaming state dicts between a published layout and this package's, every key accounted for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from bevkd2.checkpoint.strict import check_keys, completed, unwrapped
from bevkd2.d2 import Registry

_Compiled = tuple[tuple[re.Pattern[str], str], ...]


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """The tensors of a published file by this package's names, and what was done with every key."""

    model: str
    """Which model the layout is of, for errors."""
    state: dict[str, Tensor]
    """Tensors by our names."""
    mapped: dict[str, str]
    """Our name, by the published one."""
    dropped: dict[str, str]
    """Why, by the published name."""

    def check(
        self, expected: Mapping[str, Tensor], source: str, allow_missing: Sequence[str] = ()
    ) -> ImportReport:
        """Checks the import against the model that it is for.

        Args:
            expected: the model's state dict.
            source: where the weights come from, for the error.
            allow_missing: prefixes of our names that the file may lack.

        Returns:
            This report, with the batch counters that the file lacks.

        Raises:
            StateDictMismatchError: keys that the model lacks, that it has more, or of another shape.
        """
        report = dataclasses.replace(self, state=completed(self.state, expected))
        published = {ours: name for name, ours in self.mapped.items()}
        check_keys(expected, report.state, source, self.model, allow_missing, published)
        return report


class KeyRules:
    """Renames keys by pairs of a published name and this package's; ``{i}`` is a number, ``{rest}`` anything.

    The first rule that fits counts, in both directions.
    """

    def __init__(
        self, model: str, rules: Sequence[tuple[str, str]], dropped: Mapping[str, str] | None = None
    ) -> None:
        """Compiles the rules.

        Args:
            model: which model the layout is of, for errors.
            rules: published name, our name.
            dropped: published names that have no place here, with the reason.
        """
        self.model, self._dropped = model, dict(dropped or {})
        self._to_ours: _Compiled = tuple((_pattern(published), ours) for published, ours in rules)
        self._to_published: _Compiled = tuple((_pattern(ours), published) for published, ours in rules)

    def from_published(self, published: Mapping[str, Tensor]) -> ImportReport:
        """Renames the keys of a published state dict.

        Args:
            published: tensors by name; ``module.`` and ``_orig_mod.`` of wrapped models and the old name
                ``conv2_offset`` are understood.

        Returns:
            The renamed tensors, with an account of every key.

        Raises:
            KeyError: keys that no rule fits; the message names them.
            ValueError: two keys for one tensor.
        """
        report = ImportReport(self.model, {}, {}, {})
        unknown = []
        for key, value in published.items():
            name = unwrapped(key).replace(".conv2_offset.", ".conv2.conv_offset.")
            target = _rename(name, self._to_ours)
            if name in self._dropped:
                report.dropped[key] = self._dropped[name]
            elif target is None:
                unknown.append(key)
            elif target in report.state:
                first = next(other for other, ours in report.mapped.items() if ours == target)
                raise ValueError(f"the published keys {first} and {key} are both {target}; keep one of them")
            else:
                report.state[target], report.mapped[key] = value, target
        if unknown:
            found = _unknown(unknown, f"a published {self.model}")
            raise KeyError(f"{found}; name the architecture that the file is of, or take them out of it")
        return report

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames our keys to the published layout.

        Args:
            state: tensors by our names.

        Returns:
            The same tensors by their published names.

        Raises:
            KeyError: keys that the published layout lacks; the message names them.
        """
        names = {key: _rename(key, self._to_published) for key in state}
        unknown = [key for key, name in names.items() if name is None]
        if unknown:
            raise KeyError(_unknown(unknown, "the published layout"))
        return {str(name): state[key] for key, name in names.items()}


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)")
    return re.compile(escaped)


def _rename(key: str, rules: _Compiled) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(key)
        if match:
            return template.format(**match.groupdict())
    return None


def _unknown(keys: list[str], layout: str) -> str:
    rest = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    have = "keys have" if len(keys) > 1 else "key has"
    return f"{len(keys)} {have} no place in {layout}: {', '.join(keys[:10])}{rest}"


Importer = Callable[[Mapping[str, Tensor]], ImportReport]

IMPORTER_REGISTRY = Registry("IMPORTER")
IMPORTER_REGISTRY.__doc__ = """Functions by architecture, as ``--arch`` names it.

Each takes a published state dict and returns an :class:`ImportReport`: the tensors by this package's names,
and an account of every key.
"""


def register_importer(*architectures: str) -> Callable[[Importer], Importer]:
    """Returns a decorator that registers an importer, and returns it unchanged.

    Args:
        architectures: the names under which ``bevkd2 import-weights --arch`` finds it.

    Raises:
        AssertionError: when the decorator is applied, a name is taken.
    """

    def register(importer: Importer) -> Importer:
        for name in architectures:
            IMPORTER_REGISTRY._do_register(name, importer)
        return importer

    return register
