"""The two global tables of datasets: how to load one by name, and what is constant about it."""

import copy
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from bevkd2.d2.embedded.registry import near_matches

Sample = dict[str, Any]


class _DatasetCatalog(UserDict[str, Callable[[], list[Sample]]]):
    """Maps a dataset's name, as a config spells it, to the function that returns its samples."""

    def register(self, name: str, func: Callable[[], list[Sample]]) -> None:
        """Adds a dataset.

        Args:
            name: the name that configs refer to, e.g. ``nuscenes_mini_train``.
            func: takes nothing and returns the samples, the same ones at every call.

        Raises:
            AssertionError: ``func`` is not callable, or the name is taken.
        """
        if not callable(func):
            raise AssertionError(
                f"DatasetCatalog.register('{name}'): the second argument must be a function "
                f"that returns a list of dicts, not {func!r}"
            )
        if name in self:
            raise AssertionError(f"Dataset '{name}' is already registered!")
        self[name] = func

    def get(self, name: str) -> list[Sample]:  # type: ignore[override]
        """Loads a dataset.

        Args:
            name: a registered name.

        Returns:
            What the registered function returns.

        Raises:
            KeyError: the name is not registered; the message lists near matches.
        """
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered! {near_matches(name, self)}")
        return self[name]()

    def list(self) -> list[str]:
        """Names of all registered datasets."""
        return list(self)

    def remove(self, name: str) -> None:
        """Removes a dataset."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __str__ = __repr__


class Metadata(SimpleNamespace):
    """What is constant about a dataset, as attributes that can be set once.

    Examples:
        ::

            MetadataCatalog.get("nuscenes_mini_train").thing_classes = ["car", "truck"]
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(sorted(self.__dict__))
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
            f"Available keys are {known}."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != val:
            raise AssertionError(
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set "
                f"to a different value!\n{self.__dict__[key]} != {val}"
            )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """Returns all attributes, as a shallow copy."""
        return copy.copy(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Sets several attributes.

        Args:
            **kwargs: the attributes.

        Returns:
            This object.
        """
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Returns an attribute, or the default where it is not set.

        Args:
            key: the attribute's name.
            default: what an absent attribute counts as.
        """
        return self.__dict__.get(key, default)


class _MetadataCatalog(UserDict[str, Metadata]):
    """Maps a dataset's name to its one Metadata object, made when first asked for."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """Returns the metadata of a dataset, empty where nothing was set yet.

        Args:
            name: the dataset's name.

        Returns:
            The same object for the same name.

        Raises:
            AssertionError: the name is empty.
        """
        if not name:
            raise AssertionError("MetadataCatalog.get needs the name of a dataset, not an empty string")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Names of all datasets that have metadata."""
        return list(self)

    def remove(self, name: str) -> None:
        """Removes a dataset's metadata."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
