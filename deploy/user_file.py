"""Loads a Python file of a user, which can import the modules beside it. Its failures become errors of one sentence."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from drover.common.errors import ConfigError, DroverError
from drover.common.user_code import place, sentence, short

T = TypeVar("T")

_folders: list[str] = []  # of loaded files, the newest first


def load(path: str, name: str) -> Callable[..., Any]:
    """Return the file's function or class of that name, and make the modules beside it importable. Raises `ConfigError`."""
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}; write path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"_recipe_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; write path/to/file.py:function")
    _look_in(str(Path(path).resolve().parent))
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module while they are made
    try:
        spec.loader.exec_module(module)
    except DroverError:
        raise
    except (Exception, SystemExit) as error:
        fix = "; install it, or put it beside that file" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"{path} cannot be imported: {sentence(error)}{fix}") from error
    finally:
        del sys.modules[spec.name]  # other processes cannot import it: pickle must send its classes by value
    found: Any = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{path} defines no function {name!r}")
    return found


class Portable(Generic[T]):
    """An object that other processes can unpickle, although its parts belong to modules beside a loaded file.

    Pickle rebuilds the folders first, which makes those modules importable, and then the object.
    Example: ``task.remote(Portable(config))``, where the task reads ``.value``.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (_Folders(), self.value)


class _Folders:
    """The folders of loaded files. Unpickling it adds them to ``sys.path``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _look_in, (*_folders,)


def _arrived(_: None, value: T) -> Portable[T]:
    return Portable(value)


def call(function: Callable[..., Any], parameters: Mapping[str, Any], *, wanted: type) -> Any:
    """Call the function and return its result, a ``wanted``.

    Raises `ConfigError` where the user's code fails or returns another type; errors of drover's own code pass through.
    """
    try:
        made = function(**parameters)
    except DroverError:
        raise
    except Exception as error:
        if not place(error):
            raise
        raise ConfigError(f"{_label(function)} failed: {sentence(error)}") from error
    if not isinstance(made, wanted):
        came = "None" if made is None else f"a {type(made).__name__}"
        raise ConfigError(f"{_label(function)} returned {came}; end it with `return {wanted.__name__}(...)`")
    return made


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the function's parameters by name, their types evaluated. Raises `ConfigError` where one has no type."""
    try:
        found = inspect.signature(function, eval_str=True).parameters
    except Exception as error:  # a type is an expression, which may be anything
        raise ConfigError(f"{_label(function)}: {sentence(error)}; import the types of its parameters") from error
    for parameter in found.values():
        if parameter.annotation is inspect.Parameter.empty:
            raise ConfigError(
                f"{_label(function)}: its parameter {parameter.name} has no type; write it as {_typed(parameter)}"
            )
    return found


def _look_in(*folders: str) -> None:
    """Put the folders first in ``sys.path``, as Python does with the folder of a script that it runs."""
    for folder in reversed(folders):
        if folder in _folders:
            continue
        _folders.insert(0, folder)
        sys.path.insert(0, folder)


def _label(function: Callable[..., Any]) -> str:
    """Return "FILE:FUNCTION", for example ``mine.py:mine``."""
    code, name = getattr(function, "__code__", None), getattr(function, "__name__", "it")
    return f"{short(code.co_filename)}:{name}" if code is not None else str(name)


def _typed(parameter: inspect.Parameter) -> str:
    if parameter.default in (inspect.Parameter.empty, None):
        return f"{parameter.name}: int"
    return f"{parameter.name}: {type(parameter.default).__name__} = {parameter.default!r}"
