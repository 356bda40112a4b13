"""CfgNode, and the decorator that lets a constructor be called with a config."""

import functools
import inspect
from collections.abc import Callable
from typing import IO, Any

from fvcore.common.config import CfgNode as _CfgNode

from bevkd2.d2.embedded.file_io import PathManager


class CfgNode(_CfgNode):
    """fvcore's CfgNode, read through the path manager and with safe YAML only."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        stream: IO[str] = PathManager.open(filename, "r")
        return stream

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Reads a YAML file, and below it the files that its ``_BASE_`` names.

        Args:
            filename: path of the file.
            allow_unsafe: must be False: YAML tags that run code are not supported.

        Returns:
            The merged content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ``allow_unsafe`` is set.
        """
        if allow_unsafe:
            raise ValueError(
                f"{filename}: allow_unsafe=True would run code from the config file, which the embedded "
                "engine refuses; write the values as plain YAML"
            )
        if not PathManager.isfile(filename):
            raise FileNotFoundError(f"Config file '{filename}' does not exist!")
        values: dict[str, Any] = super().load_yaml_with_base(filename)
        return values

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merges a YAML file into this config.

        Args:
            cfg_filename: path of the file.
            allow_unsafe: see :meth:`load_yaml_with_base`.

        Raises:
            FileNotFoundError: there is no such file.
            KeyError: the file has a key that this config does not have.
        """
        super().merge_from_file(cfg_filename, allow_unsafe=allow_unsafe)


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """Lets a constructor, or a function, be called with a config in place of its arguments.

    ``from_config(cfg, ...)`` translates the config to keyword arguments and is the only place that
    reads it. Keyword arguments given beside the config override what ``from_config`` returns.

    Args:
        init_func: an ``__init__`` whose class has a ``from_config`` classmethod.
        from_config: the translation, where a plain function is decorated.

    Returns:
        The decorated callable, or a decorator.

    Raises:
        AssertionError: what is decorated is not an ``__init__``, or ``from_config`` is not a function.

    Examples:
        ::

            class Head(nn.Module):
                @configurable
                def __init__(self, *, num_classes: int): ...

                @classmethod
                def from_config(cls, cfg):
                    return {"num_classes": cfg.MODEL.NUM_CLASSES}

            Head(num_classes=10)
            Head(cfg)
            Head(cfg, num_classes=3)
    """
    if init_func is not None:
        if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
            raise AssertionError(
                "@configurable goes on an __init__; for another function write "
                f"@configurable(from_config=...). Got {init_func!r}."
            )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    if not inspect.isfunction(from_config):
        raise AssertionError(f"from_config of @configurable must be a function, not {from_config!r}!")
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        from_config = getattr(type(self), "from_config", None)
        if from_config is None:
            raise AttributeError(
                f"{type(self).__qualname__}: class with @configurable must have a 'from_config' classmethod."
            )
        if not inspect.ismethod(from_config):
            raise TypeError(f"{type(self).__qualname__}.from_config must be a classmethod.")
        if _called_with_cfg(args, kwargs):
            init_func(self, **_translate(from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable[..., dict[str, Any]], func: Callable[..., Any]) -> Any:
    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _called_with_cfg(args, kwargs):
            return func(**_translate(from_config, args, kwargs))
        return func(*args, **kwargs)

    wrapped.from_config = from_config  # type: ignore[attr-defined]
    return wrapped


def _called_with_cfg(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the first argument, or the one named cfg, is a config."""
    first = args[0] if args else kwargs.get("cfg")
    return isinstance(first, _CfgNode)


def _translate(
    from_config: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Calls from_config with the arguments that it takes; the others override its result."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as the first argument!")
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    taken = {name: value for name, value in kwargs.items() if takes_any or name in parameters}
    overrides = {name: value for name, value in kwargs.items() if name not in taken}
    return {**from_config(*args, **taken), **overrides}
