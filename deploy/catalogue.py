"""Finds recipes: the public functions of `drover.deploy.recipes` that return a `RunConfig`, and functions in users' files."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_type_hints

from drover.common.errors import ConfigError
from drover.deploy import recipes as package
from drover.deploy import user_file

if TYPE_CHECKING:
    from drover.deploy.config import RunConfig

    Recipe = Callable[..., RunConfig]


@dataclass(frozen=True)
class Shipped:
    """A recipe of drover's: the module that defines it, and the first line of its docstring."""

    module: str
    sentence: str


@dataclass(frozen=True)
class RunOptions:
    """The options that every recipe has: name and folder of the run, resuming, scaling, metrics and output."""

    run_name: str = ""
    """Name of the run and of its folder; default: the recipe's name and the time."""
    runs_dir: Path = Path("runs")
    """Folder in which run folders are made."""
    resume: str = ""
    """Name of a run to go on with, from its newest checkpoint."""
    resume_if_begun: bool = False
    """With --run-name: go on with the run of that name if it has begun, else begin it. For supervisors that repeat the same
    command after a failure (a RayJob, systemd)."""
    autoscale: tuple[str, ...] = ()
    """POOL=LEAST:MOST for each pool whose size may follow its queue: rollout=1:8 image_reward=1:4."""
    metrics_host: str = "127.0.0.1"
    """Address at which metrics are served; 0.0.0.0 on a cluster whose Prometheus, or whose other nodes, shall reach them."""
    metrics_port: int = 0
    """Port of the driver, which tells Prometheus the addresses of every role's metrics (deploy/monitoring/prometheus/ reads
    9464); 0 takes a free port."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that also get scalars and samples; WANDB_MODE=offline keeps W&B on this machine."""
    one_process: bool = False
    """Run all roles in this process, taking turns, without Ray and Redis; for debugging and as the reference."""
    plain: bool = False
    """Print plain lines instead of the live view."""
    json: bool = False
    """Print nothing but the summary, as JSON."""


def recipes() -> dict[str, Shipped]:
    """Return every shipped recipe by name. Reads their source and imports none of them."""
    found = {}
    for path in Path(package.__file__ or "").parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and _is_recipe(node):
                sentence = (ast.get_docstring(node) or "").partition("\n")[0]
                found[node.name] = Shipped(f"{package.__name__}.{path.stem}", sentence)
    return dict(sorted(found.items()))


def _is_recipe(node: ast.FunctionDef) -> bool:
    return not node.name.startswith("_") and node.returns is not None and ast.unparse(node.returns) == "RunConfig"


def find(name: str) -> Recipe:
    """Return the shipped recipe of that name, or the function of ``path/to/file.py:function``. Raises `ConfigError`."""
    if ":" in name:
        return user_file.load(*name.rsplit(":", 1))
    known = recipes()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"there are {', '.join(known)}; your own: path/to/file.py:function"
        )
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    recipe: Recipe = getattr(importlib.import_module(known[name].module), name)
    return recipe


def parse(recipe: Recipe, arguments: list[str]) -> tuple[RunConfig, RunOptions]:
    """Return the run that these arguments describe. Exits with help or usage errors as tyro prints them."""
    import tyro

    with _importable(recipe):
        return tyro.cli(
            _command(recipe),
            prog=f"drover train {recipe.__name__}",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )


def _command(recipe: Recipe) -> Callable[..., tuple[RunConfig, RunOptions]]:
    """Return the recipe as a function for tyro: it takes the recipe's parameters and ``run``, the options of every run."""
    own = user_file.parameters(recipe)
    _check_options(own)
    groups = {name: _group(parameter.annotation) for name, parameter in own.items()}

    def train(*, run: RunOptions, **given: Any) -> tuple[RunConfig, RunOptions]:
        from drover.deploy.config import RunConfig

        parameters = {name: _copy(value, groups[name]) for name, value in given.items()}
        return user_file.call(recipe, parameters, wanted=RunConfig), run

    option = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=RunOptions, default=RunOptions())
    signature = inspect.Signature([*map(_as_options, own.values()), option])
    train.__doc__ = inspect.getdoc(recipe)
    train.__signature__ = signature  # type: ignore[attr-defined]
    train.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return train


@contextmanager
def _importable(recipe: Recipe) -> Iterator[None]:
    """Keep the module of a user's file in ``sys.modules``, where tyro looks up annotations and the source of dataclasses."""
    if recipe.__module__ in sys.modules:
        yield
        return
    module = ModuleType(recipe.__module__)
    vars(module).update(inspect.unwrap(recipe).__globals__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


def _group(hint: Any) -> type | None:
    """Return the dataclass whose fields are options if the hint is one, with or without `Only`; else None."""
    kind = get_args(hint)[0] if _only(hint) else hint
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _only(hint: Any) -> tuple[str, ...]:
    from drover.deploy.options import Only

    return next((mark.names for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Only)), ())


def _check_options(own: Mapping[str, inspect.Parameter]) -> None:
    """Raise `ConfigError` for an option that two parameters share, and for an `Only` that cannot be followed."""
    taken = {field.name: "every run" for field in fields(RunOptions)}
    for name, parameter in own.items():
        kind, named = _group(parameter.annotation), _only(parameter.annotation)
        offered = named or [field.name for field in fields(kind)] if kind else [name]
        if kind and (unknown := sorted(set(named) - {field.name for field in fields(kind)})):
            raise ConfigError(f"{name}: Only names {', '.join(unknown)}, and {kind.__name__} has no such field")
        if named and parameter.default is parameter.empty:
            raise ConfigError(f"{name}: the fields that Only leaves out need values; give {name} a default")
        for option in offered:
            if option in taken:
                flag = "--" + option.replace("_", "-")
                fix = f"rename it, or leave it out with Only(...) beside the type of {name}"
                raise ConfigError(f"{name}: {flag} is an option of {taken[option]} already; {fix}")
            taken[option] = name


def _as_options(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the parameter for tyro. A dataclass becomes a copy that shows the offered fields only and checks nothing.

    tyro would put the sentence of a `ConfigError` into a frame of its own; unchecked, the error comes from the recipe's call.
    """
    kind = _group(parameter.annotation)
    if kind is None:
        return parameter
    form = _form(kind, _only(parameter.annotation) or tuple(field.name for field in fields(kind)))
    default = parameter.default
    return parameter.replace(annotation=form, default=default if default is parameter.empty else _copy(default, form))


def _form(kind: Any, offered: tuple[str, ...]) -> type:
    from tyro import conf

    hints, suppress = get_type_hints(kind, include_extras=True), cast(Any, conf.Suppress)
    return make_dataclass(
        kind.__name__,
        [(field.name, suppress[hints[field.name]]) for field in fields(kind) if field.name not in offered],
        bases=(kind,),
        frozen=kind.__dataclass_params__.frozen,
        kw_only=True,
        namespace={"__doc__": (inspect.getdoc(kind) or "").partition("\n")[0], "__post_init__": lambda self: None},
    )


def _copy(value: Any, kind: type | None) -> Any:
    """Return an object of class ``kind`` with the same fields; the value itself where ``kind`` is None."""
    if kind is None:
        return value
    return kind(**{field.name: getattr(value, field.name) for field in fields(kind) if field.init})
