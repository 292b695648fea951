"""The progress of a run: the counters that a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drover.learner.overoptimisation import Verdict


@dataclass(slots=True)
class Progress:
    """The counters of a run, which checkpoints hold. ``former_s``: seconds that the learner ran before its last restart."""

    update: int = 0
    version: int = 0
    samples: int = 0
    max_lag_seen: int = 0
    former_s: float = 0.0
    turns: dict[str, int] = field(default_factory=dict)  # task -> its iterations so far
    blind: dict[str, int] = field(default_factory=dict)  # task -> its newest iterations in a row without a valid reward
    verdict: Verdict = field(default_factory=Verdict)  # of the watch over a proxy, where there is one
    started: float = field(default_factory=time.monotonic)

    @property
    def at_s(self) -> float:
        """Seconds that the learner has run so far, restarts included."""
        return self.former_s + time.monotonic() - self.started

    def count(self, task: str, *, blind: bool) -> int:
        """Count an iteration of the task, ``blind`` if no sample had a valid reward. Returns its blind ones in a row."""
        self.turns[task] = self.turns.get(task, 0) + 1
        self.blind[task] = self.blind.get(task, 0) + 1 if blind else 0
        return self.blind[task]

    @property
    def never_valid(self) -> list[str]:
        """Tasks of which no sample has ever had a valid reward."""
        return [task for task, turns in self.turns.items() if self.blind[task] == turns]

    def saved(self) -> dict[str, Any]:
        """The counters as JSON values."""
        counts: dict[str, Any] = {"update": self.update, "version": self.version, "samples": self.samples}
        counts |= {"turns": dict(self.turns), "blind": dict(self.blind)}
        return counts | {"max_lag_seen": self.max_lag_seen, "former_s": self.at_s, "verdict": self.verdict.saved()}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Progress:
        """The inverse of `saved`; the clock of the resumed run starts now."""
        return cls(**{**saved, "verdict": Verdict.restored(saved["verdict"])})
