"""A command-line parser for tools that take options of the config, KEY VALUE pairs."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_OTHER_PROGRAMS = ("--opts", "--cfg-options", "--options")  # flags of theirs that come before such pairs


def finite_number(text: str) -> float:
    """Reads a number of the command line; for argparse's ``type``.

    Args:
        text: what the user wrote.

    Raises:
        argparse.ArgumentTypeError: it is no number, NaN or infinite: a comparison with NaN is
            always false.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


class ConfigArgumentParser(argparse.ArgumentParser):
    """A parser whose last positional argument ``opts`` takes pairs KEY VALUE from anywhere in the line.

    argparse would take flags behind the pairs for options, or refuse values such as -1e-4. Here what follows
    a key is its value, whatever it looks like; KEY=VALUE is read too.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses the command line; see argparse."""
        words, pairs = self._split(list(sys.argv[1:] if args is None else args))
        parsed, rest = super().parse_known_args(words, namespace)
        parsed.opts = pairs
        return parsed, rest

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Returns what argparse is to read, and the pairs."""
        own: list[str] = []
        pairs: list[str] = []
        files = sum(not action.option_strings and action.dest != "opts" for action in self._actions)
        while words:
            word = words.pop(0)
            if word in _OTHER_PROGRAMS:
                self.error(f"{word} is not known; options of the config are pairs KEY VALUE, without a flag")
            elif word.startswith("--") and len(word) > 2 and self._flag(word) is None:
                self._refuse_flag(word, words)
            elif word.startswith("-"):
                own.append(self._with_value(word, words))
            elif files:
                own.append(word)
                files -= 1
            else:
                pairs += self._pair(word, words)
        return own, pairs

    def _refuse_flag(self, word: str, rest: list[str]) -> None:
        """Ends with an error that names an unknown flag; what follows it would be taken for a key."""
        name, _, value = word.partition("=")
        if not name[2:].partition(".")[0].isupper():
            self.error(f"unrecognized arguments: {word}")
        value = value or (rest[0] if rest and self._flag(rest[0]) is None else "VALUE")
        self.error(
            f"{name} is no flag; options of the config are pairs KEY VALUE, without dashes: "
            f"{name[2:]} {value}"
        )

    def _with_value(self, word: str, rest: list[str]) -> str:
        """Returns a flag, joined with its value where it takes one; argparse would refuse -1e-4 there."""
        flag = self._flag(word)
        if flag is None or flag.nargs is not None or "=" in word or not rest or self._flag(rest[0]):
            return word
        return f"{word}={rest.pop(0)}"

    def _pair(self, word: str, rest: list[str]) -> tuple[str, str]:
        key, equals, value = word.partition("=")
        if not _KEY.fullmatch(key):
            self.error(
                f"{word!r} is no key of the config: its options are pairs KEY VALUE; a value with blanks "
                "needs quotes"
            )
        if equals:
            return key, value
        if not rest or self._flag(rest[0]):
            self.error(f"the option {key} has no value{f': {rest[0]} follows it' if rest else ''}")
        return key, rest.pop(0)

    def _flag(self, word: str) -> Any:
        """Returns the action of a flag, which may be abbreviated; None where it is none."""
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "--":
            return None
        known = self._option_string_actions
        near = [known[option] for option in known if name.startswith("--") and option.startswith(name)]
        return known.get(name) or (near[0] if near else None)
