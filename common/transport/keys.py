"""List every key that drover keeps in Redis. All have the prefix ``drover:{run}:``, so runs on one Redis stay apart.

| key              | type   | written by             | read by (group)                        | kept until          |
|------------------|--------|------------------------|----------------------------------------|---------------------|
| ``work``         | stream | learner                | actors (``actors``)                    | acknowledged        |
| ``evaluation``   | stream | learner                | evaluators (``evaluators``)            | acknowledged        |
| ``rollouts``     | stream | actors, evaluators     | rewards (``reward:NAME``), ``learner`` | acknowledged by all |
| ``measurements`` | stream | reward servers, actors | learner (``learner``)                  | acknowledged        |
| ``reports``      | stream | learner                | driver (``watcher``)                   | acknowledged        |
| ``control``      | stream | driver                 | learner (``learner``)                  | acknowledged        |
| ``dead``         | stream | every reader           | people                                 | 10,000 newer        |
| ``blob:ID``      | string | actors, reward servers | roles that hold a `TensorRef`          | dropped, or expired |

Failures (`GroupFailed`) are sent to the learner on ``measurements``. In a run without evaluators, the orders of
evaluations go to the actors on ``work``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from drover.common.errors import ConfigError

ACTORS = "actors"
EVALUATORS = "evaluators"
LEARNER = "learner"
WATCHER = "watcher"
MAX_DEAD = 10_000


def reward_group(reward: str) -> str:
    """The consumer group of one reward on ``rollouts``, for example ``reward:jpeg_size``."""
    return f"reward:{reward}"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run, for example ``Keys("blue").work == "drover:blue:work"``."""

    run: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.\-]{1,128}", self.run):
            raise ConfigError(f"run name {self.run!r} must be 1 to 128 letters, digits, dots, dashes or underscores")

    @property
    def prefix(self) -> str:
        return f"drover:{self.run}:"

    @property
    def work(self) -> str:
        return f"drover:{self.run}:work"

    @property
    def evaluation(self) -> str:
        return f"drover:{self.run}:evaluation"

    @property
    def rollouts(self) -> str:
        return f"drover:{self.run}:rollouts"

    @property
    def measurements(self) -> str:
        return f"drover:{self.run}:measurements"

    @property
    def reports(self) -> str:
        return f"drover:{self.run}:reports"

    @property
    def control(self) -> str:
        return f"drover:{self.run}:control"

    @property
    def dead(self) -> str:
        return f"drover:{self.run}:dead"

    def blob(self, blob: str) -> str:
        return f"drover:{self.run}:blob:{blob}"
