"""fvcore's Registry with near matches in the error for an unknown name."""

import difflib
from collections.abc import Iterable
from typing import Any

from fvcore.common.registry import Registry as _Registry


def near_matches(name: str, known: Iterable[str]) -> str:
    """Says which known names an unknown one may have meant.

    Args:
        name: the name that was not found.
        known: the names that exist.

    Returns:
        A sentence that lists the close names, or all names where none is close.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Known names: {', '.join(names) or 'none, so the module that registers them is not imported'}."


class Registry(_Registry):
    """Maps names, typically found in a config, to the classes or functions registered under them."""

    def get(self, name: str) -> Any:
        """Looks up a registered object.

        Args:
            name: the ``__name__`` that the object was registered under.

        Returns:
            The registered object.

        Raises:
            KeyError: the name is not registered; the message lists near matches.
        """
        if name not in self:
            known = near_matches(name, (key for key, _ in self))
            raise KeyError(f"No object named '{name}' found in '{self._name}' registry! {known}")
        return super().get(name)
