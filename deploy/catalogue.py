"""Which recipes there are: the modules of `drover.deploy.recipes`, each with a function of its own name, and users' files."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from drover.common.errors import ConfigError
from drover.deploy import recipes as package
from drover.deploy import user_file
from drover.deploy.config import RunConfig

Recipe = Callable[..., RunConfig]


@dataclass(frozen=True)
class RunOptions:
    """How to run, whatever the recipe."""

    run_name: str = ""
    """Name of the run and of its folder; default: the recipe's name and the time."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    resume: str = ""
    """Go on with the run of this name from its newest checkpoint."""
    resume_if_begun: bool = False
    """With --run-name: go on with the run of that name if it has begun, else begin it; for what starts the same command
    again after a failure (a RayJob, systemd)."""
    autoscale: tuple[str, ...] = ()
    """POOL=LEAST:MOST for each pool whose size may follow its queue: rollout=1:8 image_reward=1:4."""
    metrics_host: str = "127.0.0.1"
    """Where metrics are served; 0.0.0.0 on a cluster whose Prometheus, or whose other nodes, shall reach them."""
    metrics_port: int = 0
    """Port of the driver, which tells Prometheus where every role's metrics are (deploy/monitoring/prometheus/ looks at 9464); 0
    takes a free one."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also write scalars and samples for these; WANDB_MODE=offline keeps W&B on this machine."""
    one_process: bool = False
    """All roles in this process, taking turns: no Ray, no Redis; for debugging and as the reference."""
    plain: bool = False
    """Plain lines instead of the live view."""
    json: bool = False
    """Print nothing but the summary, as JSON."""


def recipes() -> dict[str, Recipe]:
    """Every shipped recipe by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: getattr(importlib.import_module(f"{package.__name__}.{name}"), name) for name in names}


def find(name: str) -> Recipe:
    """A shipped recipe by name, or ``path/to/file.py:function``. Raises `ConfigError`."""
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
    return known[name]


def parse(recipe: Callable[..., RunConfig], arguments: list[str]) -> tuple[RunConfig, RunOptions]:
    """The run that these arguments describe. Exits with help or usage errors as tyro prints them."""
    import tyro

    own = inspect.signature(recipe).parameters

    def train(*, run: Any, **parameters: Any) -> tuple[RunConfig, RunOptions]:
        return user_file.call(recipe, parameters, wanted=RunConfig), run

    train.__doc__ = inspect.getdoc(recipe)
    hints = user_file.types(recipe)
    option = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=RunOptions, default=RunOptions())
    signature = inspect.Signature([*(p.replace(annotation=hints[name]) for name, p in own.items()), option])
    train.__signature__ = signature  # type: ignore[attr-defined]
    train.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    result: tuple[RunConfig, RunOptions] = tyro.cli(
        train,
        prog=f"drover train {recipe.__name__}",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return result
