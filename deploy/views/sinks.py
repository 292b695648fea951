"""Writes a run's scalars and sample grids to TensorBoard and Weights & Biases with their own libraries, if a user asks for it.

A sink gets the same reports as the view. A sink that fails is reported once and left out from then on; it never ends a run.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from drover.common.errors import ConfigError
from drover.common.types import Report
from drover.deploy.config import RunConfig
from drover.deploy.run_folder.history import update_index
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.watch import View

Name = Literal["tensorboard", "wandb"]
PADDING_PX = 2
PICTURES = "heldout/pictures"  # a name that no scalar has

log = logging.getLogger(__name__)


class Sink(Protocol):
    """A tracker that gets scalars and pictures besides the run folder. ``step`` is the number of their update."""

    def scalars(self, values: dict[str, float], step: int, at_s: float) -> None: ...

    def pictures(self, name: str, grid: np.ndarray, prompts: Sequence[str], step: int) -> None:
        """``grid``: [H, W, 3] uint8, a row for each prompt."""

    def close(self) -> None: ...


def beside(view: View, log_to: Sequence[Name], folder: RunFolder, config: RunConfig) -> View:
    """Return a view that feeds ``view`` and the sinks. Raises `ConfigError` if a library is missing."""
    for name in log_to:
        if find_spec(name) is None:
            raise ConfigError(f"--log-to {name} needs the package {name}; install it with: pip install {name}")
    made = {"tensorboard": lambda: TensorBoard(folder.path), "wandb": lambda: Wandb(folder.path, config)}
    return Beside(view, folder, {name: made[name] for name in dict.fromkeys(log_to)}) if log_to else view


class Beside:
    """Feeds the view, then each sink. Sinks are opened and closed with the context."""

    def __init__(self, view: View, folder: RunFolder, makers: dict[str, Any]) -> None:
        self._view, self._folder, self._makers = view, folder, makers
        self._sinks: dict[str, Sink] = {}
        # File of pictures -> its time when it was last given to the sinks. Files of earlier starts are not given again.
        self._drawn = {path: path.stat().st_mtime_ns for path in folder.path.glob("*.npz")}
        self._at_s = 0.0

    def update(self, report: Report) -> None:
        self._view.update(report)
        self._at_s = report.at_s
        step = update_index(report)
        finite = {name: value for name, value in report.scalars.items() if math.isfinite(value)}
        grid = self._grid(report) if report.kind == "eval" and report.media else None
        for name in list(self._sinks):
            with self._surviving(name):
                sink = self._sinks[name]
                if finite and report.kind in ("update", "eval"):
                    sink.scalars(finite, step, report.at_s)
                if grid is not None:
                    sink.pictures(PICTURES, grid, report.prompts, step)

    def __enter__(self) -> Beside:
        self._view.__enter__()
        for name, make in self._makers.items():
            with self._surviving(name):
                self._sinks[name] = make()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for name in list(self._sinks):
                with self._surviving(name):
                    self._sinks[name].close()
        finally:
            self._view.__exit__(kind, error, at)

    def _surviving(self, name: str) -> _Surviving:
        return _Surviving(self, name)

    def give_up(self, name: str, error: Exception) -> None:
        """Close a sink that failed, and report it in the view and in the run's reports."""
        sink = self._sinks.pop(name, None)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("%s gets nothing more: %s", name, reason)
        report = Report(
            kind="event", at_s=self._at_s, version=-1, scalars={}, text=f"{name} gets nothing more: {reason}"
        )
        self._folder.append(report)
        self._view.update(report)
        if sink is not None:
            with suppress(Exception):
                sink.close()

    def _grid(self, report: Report) -> np.ndarray | None:
        """Return the grid of the evaluation's pictures, which the watcher has just written; None if it has not."""
        path = self._folder.path / f"{report.text}.npz"
        if not path.exists() or self._drawn.get(path) == path.stat().st_mtime_ns:
            return None
        self._drawn[path] = path.stat().st_mtime_ns
        with np.load(path, allow_pickle=False) as kept:
            return grid_of(kept["media"])


@dataclass(frozen=True, slots=True)
class _Surviving:
    """Runs a block about one sink; an error in the block closes that sink and is not raised."""

    beside: Beside
    name: str

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if isinstance(error, Exception):
            self.beside.give_up(self.name, error)
            return True
        return False


def grid_of(media: np.ndarray) -> np.ndarray:
    """Arrange S pictures of P prompts, [P, S, H, W, 3] uint8, in one picture with a row for each prompt."""
    prompts, samples, height, width, _ = media.shape
    grid = np.full(
        (prompts * (height + PADDING_PX) - PADDING_PX, samples * (width + PADDING_PX) - PADDING_PX, 3), 255, np.uint8
    )
    for row in range(prompts):
        for column in range(samples):
            y, x = row * (height + PADDING_PX), column * (width + PADDING_PX)
            grid[y : y + height, x : x + width] = media[row, column]
    return grid


class TensorBoard:
    """Writes event files to runs/NAME/tensorboard; ``tensorboard --logdir runs`` compares all runs."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: dict[str, float], step: int, at_s: float) -> None:
        for name, value in {**values, "time/run_s": at_s}.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, name: str, grid: np.ndarray, prompts: Sequence[str], step: int) -> None:
        self._writer.add_image(name, grid, step, dataformats="HWC")
        self._writer.add_text(f"{name}/prompts", "\n\n".join(prompts), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Writes a W&B run; with WANDB_MODE=offline to runs/NAME/wandb, for ``wandb sync`` later. The project is WANDB_PROJECT.

    W&B gets the recipe and the counts of the run, but nothing of the machine: no console, code or git.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb

        self._wandb = wandb
        kept = folder / "wandb_id"
        if not kept.exists():
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=None if wandb.env.get_project() else "drover",
            name=folder.name,
            id=kept.read_text(),  # a resumed run continues the same W&B run
            resume="allow",
            dir=str(folder),
            config=dict(facts(config)),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def scalars(self, values: dict[str, float], step: int, at_s: float) -> None:
        self._run.log({**values, "update": step, "time/run_s": at_s})

    def pictures(self, name: str, grid: np.ndarray, prompts: Sequence[str], step: int) -> None:
        picture = self._wandb.Image(grid, caption=" | ".join(prompts))
        self._run.log({name: picture, "update": step})

    def close(self) -> None:
        self._run.finish()


def facts(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Give (name, value) of the settings for a table of runs: plain values, and type names for the others."""
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, (str, int, float, bool)):
            yield name, value
        elif name == "pools":
            yield from ((f"pools/{part}", getattr(value, part)) for part in value.__dataclass_fields__)
        elif isinstance(value, tuple):  # rewards, tasks, held-out sets
            yield name, [one.name for one in value]
        elif value is not None:
            yield name, type(value).__name__
