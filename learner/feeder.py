"""Issue orders while slots are free. No free slot means wait, and that is the back-pressure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from common import seeds
from common.errors import ConfigError
from common.protocols import Stream
from common.types import Purpose, WorkItem
from learner.slots import Ledger, Slots
from learner.sources import ShuffledPrompts


@dataclass(frozen=True, slots=True)
class RecordSteps:
    """Which denoising steps are trained: ``count`` of the first ``first``, drawn anew for each group.

    The last steps of a short chain carry gradients 5 to 10 times larger than the early ones and decide only texture;
    leaving them out keeps the gradient norm steady.
    """

    count: int
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.first:
            raise ConfigError(f"cannot record {self.count} of the first {self.first} steps; choose 1 <= count <= first")

    def at(self, seed: int, group: int) -> tuple[int, ...]:
        """[K] indices, rising."""
        chooser = random.Random(seeds.derive(seed, "record", group))
        return tuple(sorted(chooser.sample(range(self.first), self.count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What every training order of a run has in common."""

    prompts: ShuffledPrompts
    samples_per_prompt: int
    record: RecordSteps
    seed: int
    fingerprint: str


class Feeder:
    """Numbers the groups. ``next_group`` is all the state there is."""

    def __init__(
        self, order: Order, work: Stream, slots: Slots, ledger: Ledger, *, epoch: int, next_group: int
    ) -> None:
        self._order, self._work, self._slots, self._ledger = order, work, slots, ledger
        self._epoch, self.next_group = epoch, next_group

    def fill(self, budget: int) -> None:
        """Issue while slots are free, up to group number ``budget`` (the run's last one, exclusive)."""
        while self._slots.free and self.next_group < budget:
            self._slots.take()
            self._ledger.issue(self.next_group)
            self._work.put(self._item(self.next_group))
            self.next_group += 1

    def _item(self, group: int) -> WorkItem:
        order = self._order
        return WorkItem(
            epoch=self._epoch,
            group=group,
            purpose=Purpose.TRAIN,
            prompts=(order.prompts.at(order.seed, group),),
            samples_per_prompt=order.samples_per_prompt,
            seed=order.seed,
            draw=group,
            record=order.record.at(order.seed, group),
            fingerprint=order.fingerprint,
        )
