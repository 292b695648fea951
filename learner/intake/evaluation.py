"""Evaluate held-out prompts while training goes on, always with the same seeds, by any of the run's rewards.

Orders of purpose ``eval`` need no slot: their number is fixed, and their samples are never trained on. Each evaluation is of
one weight version, which stays pinned until all its orders have ended. However far training has got meanwhile, the actor
that samples an order uses that version, or the order fails.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from drover.common.errors import ConfigError
from drover.common.media.blobs import rows_of
from drover.common.prompts import fields_text
from drover.common.protocols import Sampler, Stream, WeightPublisher
from drover.common.types import Judged, MediaRef, Purpose, WorkItem
from drover.learner.examples import MeasuredGroup
from drover.learner.intake.assembler import Assembler

ORDER_SAMPLES = 16  # samples of one order, unless one prompt has more
MAX_JUDGED = 100_000  # values that a report carries for comparing two moments; the means of more are precise enough
SHOWN_PROMPTS, SHOWN_SAMPLES = 12, 4  # of an evaluation, over all sets, whose pictures are kept to show to people
log = logging.getLogger(__name__)


class Statistic(Protocol):
    """A number computed from the features of all samples of a held-out set, such as a Frechet distance or a Vendi score."""

    @property
    def name(self) -> str: ...

    @property
    def reward(self) -> str:
        """The reward whose features are read."""

    def __call__(self, features: np.ndarray) -> float:
        """The number for features [N, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """A held-out set: its prompts, the number of samples of each, and the rewards that judge them.

    Comparing two moments needs the same spec and the same seed. A reward over sets, such as parity, needs at least 100
    samples of each prompt; ``limits`` gives, by reward, the value of a perfect generator with so few samples. Set
    ``during`` to False to evaluate an expensive set only before and after a run. ``sampler`` None uses training's sampler.
    """

    name: str
    prompts: tuple[str, ...]
    samples_per_prompt: int
    rewards: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    during: bool = True
    sampler: Sampler | None = None
    statistics: tuple[Statistic, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts or not self.rewards or self.samples_per_prompt < 1:
            raise ConfigError(
                f"held-out set {self.name!r} needs at least one prompt, one sample of each and one reward; got "
                f"{len(self.prompts)} prompts x {self.samples_per_prompt}, rewards {self.rewards}"
            )

    def orders(self) -> list[tuple[str, ...]]:
        """The prompts of each order of this set. All samples of a prompt are in one order."""
        size = max(1, ORDER_SAMPLES // self.samples_per_prompt)
        return [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]


@dataclass(frozen=True, slots=True)
class Due:
    """A request to evaluate a version. ``Due("during", version=12, update=10)`` asks for the version after update 10."""

    moment: str  # "before", "during" or "after"
    version: int
    update: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The result of an evaluation, which is of one version: valid values by set and reward, and some pictures."""

    due: Due
    took_s: float  # from its first order to its last measurement, as the learner saw it
    lost: int  # orders that failed, whose samples are missing
    skipped: int  # evaluations since the learner started that a newer one replaced before they began
    values: dict[tuple[str, str], np.ndarray]  # (set, reward) -> valid values of all samples
    judged: tuple[
        Judged, ...
    ]  # the values by order, so that two moments can be compared; () for more than MAX_JUDGED values
    limits: dict[tuple[str, str], float]  # of a perfect generator, where that is not the reward's best
    statistics: dict[tuple[str, str], float]  # (set, statistic) -> value
    prompts: tuple[str, ...]  # the prompts whose pictures are shown
    media: tuple[MediaRef, ...]  # the shown samples of each of these prompts, in blobs of their own

    def scalars(self) -> dict[str, float]:
        found = {
            "update": float(self.due.update),
            "weights_version": float(self.due.version),
            "evaluation/took_s": self.took_s,
            "evaluation/lost_orders": float(self.lost),
            "evaluation/skipped": float(self.skipped),
        }
        for (held, reward), values in self.values.items():
            found[f"heldout/{held}/{reward}/count"] = float(len(values))
            if len(values):
                found[f"heldout/{held}/{reward}/mean"] = float(values.mean())
                found[f"heldout/{held}/{reward}/std"] = float(values.std())
        found |= {f"heldout/{held}/{name}/mean": value for (held, name), value in self.statistics.items()}
        return found | {f"heldout/{held}/{reward}/limit": limit for (held, reward), limit in self.limits.items()}


class Evaluation:
    """Issues one evaluation of all held-out sets at a time and collects its results, with or without training beside it.

    One more evaluation may wait for its turn, with its version pinned; a newer one replaces the waiting one.
    """

    def __init__(
        self,
        specs: Sequence[EvaluationSpec],
        orders: Stream,
        assembler: Assembler,
        weights: WeightPublisher,
        *,
        epoch: int,
        seed: int,
        fingerprint: str,
    ) -> None:
        self._specs, self._orders, self._assembler, self._weights = specs, orders, assembler, weights
        self._epoch, self._seed, self._fingerprint = epoch, seed, fingerprint
        self._issued = 0  # orders ever issued; each evaluation repeats the same seeds under new numbers
        self._open: dict[int, WorkItem] = {}
        self._of: Due | None = None  # the running evaluation, to which the open orders belong
        self._began_s = 0.0
        self._next: Due | None = None
        self._skipped = 0

    @property
    def sets(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self._specs)

    @property
    def running(self) -> bool:
        return self._of is not None

    @property
    def under_way(self) -> list[Due]:
        """The running evaluation and the waiting one, as far as there are any."""
        return [due for due in (self._of, self._next) if due is not None]

    @property
    def done(self) -> bool:
        """Whether every order of the running evaluation has ended."""
        known = self._assembler.complete.keys() | self._assembler.failed.keys()
        return all((Purpose.EVAL, group) in known for group in self._open)

    def want(self, due: Due) -> None:
        """Evaluate a published version: now, or once the running evaluation has been collected."""
        self._weights.pin(due.version)
        if self._of is None:
            self._start(due)
            return
        if self._next is not None:
            log.warning(
                "version %d is not evaluated: version %d still is, and version %d is due by now; evaluate less often "
                "or with more evaluators",
                *(each.version for each in (self._next, self._of, due)),
            )
            self._weights.unpin(self._next.version)
            self._skipped += 1
        self._next = due

    def collect(self) -> Evaluated:
        """Return the result of the running evaluation, and begin the waiting one. Only when `done`.

        The shown samples stay in the blob store for the process that shows them.
        """
        due = self._of
        assert due is not None
        keys = [(Purpose.EVAL, group) for group in self._open]
        groups = [self._assembler.complete[key] for key in keys if key in self._assembler.complete]
        assert all(group.rollout.version == due.version for group in groups), due
        shown = self._shown(groups)
        kept = {blob for _, ref in shown for blob in ref.blobs}
        for key in keys:
            self._assembler.finish(key, keep=kept)
        found = Evaluated(
            due=due,
            took_s=time.monotonic() - self._began_s,
            lost=len(keys) - len(groups),
            skipped=self._skipped,
            values=_values(groups),
            judged=_judged(groups, {group: order.draw for group, order in self._open.items()}),
            limits={(spec.name, reward): limit for spec in self._specs for reward, limit in spec.limits.items()},
            statistics=_statistics(self._specs, groups),
            prompts=tuple(prompt for prompt, _ in shown),
            media=tuple(ref for _, ref in shown),
        )
        self._weights.unpin(due.version)
        self._open, self._of = {}, None
        if self._next is not None:
            following, self._next = self._next, None
            self._start(following)
        return found

    def _start(self, due: Due) -> None:
        """Order every held-out prompt from that version."""
        self._of, self._began_s = due, time.monotonic()
        orders = [(spec, prompts) for spec in self._specs for prompts in spec.orders()]
        for draw, (spec, prompts) in enumerate(orders):
            if due.moment == "during" and not spec.during:
                continue  # the skipped order keeps its draw, so that the noise of the others repeats
            group = self._issued
            self._issued += 1
            self._assembler.expect((Purpose.EVAL, group))
            self._open[group] = WorkItem(
                epoch=self._epoch,
                group=group,
                purpose=Purpose.EVAL,
                task=spec.name,
                rewards=spec.rewards,
                prompts=tuple(map(str, prompts)),
                fields=fields_text(prompts),
                samples_per_prompt=spec.samples_per_prompt,
                seed=self._seed,
                draw=draw,
                record=(),
                fingerprint=self._fingerprint,
                version=due.version,
            )
            self._orders.put(self._open[group])

    def start_over(self, epoch: int) -> None:
        """Issue the orders that have not ended once more, in a new epoch; their first messages are lost."""
        self._epoch = epoch
        known = self._assembler.complete.keys() | self._assembler.failed.keys()
        for group, order in self._open.items():
            if (Purpose.EVAL, group) not in known:
                self._open[group] = replace(order, epoch=epoch)
                self._assembler.expect((Purpose.EVAL, group))
                self._orders.put(self._open[group])

    def _shown(self, groups: Sequence[MeasuredGroup]) -> list[tuple[str, MediaRef]]:
        """The first prompts of every set with their first samples, as many of each as the smallest set has."""
        samples = min([SHOWN_SAMPLES, *(spec.samples_per_prompt for spec in self._specs)])
        shown: list[tuple[str, MediaRef]] = []
        for spec in self._specs:
            mine = [pair for group in groups if group.rollout.task == spec.name for pair in _first(group, samples)]
            shown += mine[: SHOWN_PROMPTS // len(self._specs)]
        return shown


def _first(group: MeasuredGroup, samples: int) -> list[tuple[str, MediaRef]]:
    """Each prompt of the group with its first ``samples`` samples."""
    media, each = group.rollout.media, group.rollout.samples_per_prompt
    if media is None:
        return []
    return [
        (prompt, rows_of(media, slice(i * each, i * each + samples))) for i, prompt in enumerate(group.rollout.prompts)
    ]


def _values(groups: Sequence[MeasuredGroup]) -> dict[tuple[str, str], np.ndarray]:
    """Valid values by set and reward: two sets that share a reward stay apart."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for group in groups:
        for reward, measured in group.rewards.items():
            found.setdefault((group.rollout.task, reward), []).append(measured.values[measured.valid])
    return {key: np.concatenate(values) for key, values in found.items()}


def _judged(groups: Sequence[MeasuredGroup], draws: Mapping[int, int]) -> tuple[Judged, ...]:
    """The values of every order, invalid ones as NaN; () for more than MAX_JUDGED. ``draws``: order's number -> its draw."""
    found = [
        Judged(
            f"{group.rollout.task}/{reward}",
            draws[group.rollout.group],
            group.rollout.samples_per_prompt,
            tuple(np.where(measured.valid, measured.values, np.nan).tolist()),
        )
        for group in groups
        for reward, measured in group.rewards.items()
    ]
    return tuple(found) if sum(len(one.values) for one in found) <= MAX_JUDGED else ()


def _statistics(specs: Sequence[EvaluationSpec], groups: Sequence[MeasuredGroup]) -> dict[tuple[str, str], float]:
    """Every statistic of every set, over the features of its valid samples; left out where no sample has any."""
    found = {}
    for spec in specs:
        for statistic in spec.statistics:
            mine = [group.rewards[statistic.reward] for group in groups if group.rollout.task == spec.name]
            rows = [one.features[one.valid] for one in mine if one.features is not None]
            if rows:
                found[spec.name, statistic.name] = statistic(np.concatenate(rows))
    return found
