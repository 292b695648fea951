"""Which recipes there are: the modules of `deploy.recipes`, each with a function of its own name, and users' files."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from deploy import recipes as package
from deploy.config import RunConfig

Recipe = Callable[..., RunConfig]


def recipes() -> dict[str, Recipe]:
    """Every shipped recipe by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: getattr(importlib.import_module(f"{package.__name__}.{name}"), name) for name in names}


def find(name: str) -> Recipe:
    """A shipped recipe by name, or ``path/to/file.py:function``. Raises `ConfigError`."""
    if ":" in name:
        return _from_file(*name.rsplit(":", 1))
    known = recipes()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"there are {', '.join(known)}; your own: path/to/file.py:function"
        )
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    return known[name]


def _from_file(path: str, function: str) -> Recipe:
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}; write path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"_recipe_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; write path/to/file.py:function")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module while they are made
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]  # other processes cannot import it: what it defines travels to them by value
    recipe = getattr(module, function, None)
    if not callable(recipe):
        raise ConfigError(f"{path} defines no function {function!r}")
    return recipe
