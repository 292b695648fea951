"""Runs the toy in this process and gives its reports, files and weights, for tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.metrics import NullMeter
from drover.common.protocols import Scores
from drover.common.types import Report
from drover.deploy import local
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.summary import conclude, summarise
from drover.deploy.run_folder.watch import Watcher
from drover.reward_servers.rewards.toy_point import ToyPoint


def small(**fields) -> RunConfig:
    """The toy's recipe with fewer samples; any field of `RunConfig` can be set."""
    config = replace(toy_ddpo(), iterations=6, groups=2, samples=32, max_lag=0)
    return replace(config, **{"heldout": (replace(config.heldout[0], samples_per_prompt=64),), **fields})


def one_line(err: str) -> str:
    """The one line of an error."""
    assert err.startswith("drover: ") and err.count("\n") == 1, err
    return err


class Crash(Exception):
    """Stands for the death of the process: no report, no checkpoint."""


@dataclass
class View:
    """Remembers every report; after some updates it asks to stop, or fails as a crash would."""

    stop_after: float = math.inf
    crash_after: float = math.inf
    reports: list[Report] = field(default_factory=list)

    def update(self, report: Report) -> None:
        self.reports.append(report)
        if len(self.updates) >= self.crash_after:
            raise Crash

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def updates(self) -> list[dict[str, float]]:
        return [report.scalars for report in self.reports if report.kind == "update"]

    def stopping(self) -> bool:
        return len(self.updates) >= self.stop_after


@dataclass
class Done:
    view: View
    folder: RunFolder
    watcher: Watcher

    @property
    def ended(self) -> str | None:
        return self.watcher.ended

    @property
    def summary(self) -> dict:
        return summarise(self.folder.reports())

    def conclude(self) -> None:
        """Write the summary and the pictures; this takes longer than most runs here."""
        conclude(self.folder, {"recipe": "toy_ddpo"})

    @property
    def weights(self) -> torch.Tensor:
        return load_file(self.folder.path / "toy.safetensors")["b"]


def train(config: RunConfig, root: Path, *, name: str = "run", resume: bool = False, **when: float) -> Done:
    """Train to the end of the run, or until ``stop_after`` or ``crash_after`` updates."""
    folder, view = RunFolder.create(name, root, resume="must" if resume else "never"), View(**when)
    try:
        return Done(view, folder, local.train(config, folder, view, NullMeter(), view.stopping))
    finally:
        folder.release()


@dataclass(frozen=True)
class Fickle:
    """`ToyPoint`, except that it gives NaN for, or raises at, every ``of_every``-th sample or call."""

    takes: ClassVar[type[Media]] = Pictures

    nan_every: int = 0
    raises: bool = False
    name: str = "point"

    def load(self, device: str):
        honest = ToyPoint().load(device)

        def score(prompts, media: Pictures) -> Scores:
            if self.raises:
                raise RuntimeError("no connection to the judge")
            values = list(honest(prompts, media).values)
            for i in range(0, len(values), self.nan_every or len(values) + 1):
                values[i] = math.nan if self.nan_every else values[i]
            return Scores(values)

        return score
