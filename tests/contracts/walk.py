"""Finds the implementations of a seam by walking a package: a new file is under contract without being listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def classes(package: ModuleType, *attributes: str) -> Iterator[type]:
    """The public classes with all of these attributes in a package's modules, each from the module that defines it."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for name, kind in vars(module).items():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__ and not name.startswith("_")
            if own and not getattr(kind, "_is_protocol", False) and all(hasattr(kind, each) for each in attributes):
                yield kind
