"""Issue an order for each free slot. Without a free slot the feeder waits, which is the run's back-pressure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping
from typing import Any

from drover.common.prompts import fields_text
from drover.common.protocols import Stream
from drover.common.types import Purpose, WorkItem
from drover.learner.intake.slots import Ledger, Slots
from drover.learner.intake.tasks import Order


class Feeder:
    """Issues a group for every place. Groups are numbered as they are issued; without failures, a group's number is its place.

    ``open`` holds (place, group) of every group that was issued and has not ended, by place: the order of training.
    """

    def __init__(self, order: Order, work: Stream, slots: Slots, ledger: Ledger, *, epoch: int) -> None:
        self._order, self._work, self._slots, self._ledger, self._epoch = order, work, slots, ledger, epoch
        self.open: list[tuple[int, int]] = []
        self._again: list[tuple[int, int]] = []  # open in the checkpoint that the run resumed from
        self._vacant: list[int] = []  # places whose group was lost
        self._next_place = self._next_group = 0

    def fill(self, places: int) -> list[int]:
        """Issue orders while slots are free, for the first ``places`` places of the run. Returns the new groups."""
        issued = []
        while self._slots.free and (chosen := self._choose(places)) is not None:
            self._slots.take()
            self._ledger.issue(chosen[1])
            self._work.put(self._item(*chosen))
            insort(self.open, chosen)
            issued.append(chosen[1])
        return issued

    def start_over(self, epoch: int, groups: Collection[int]) -> None:
        """Issue the open groups among ``groups`` once more, in a new epoch: the same orders, whose messages are lost."""
        self._epoch = epoch
        for place, group in self.open:
            if group in groups:
                self._work.put(self._item(place, group))

    def end(self, group: int, *, lost: bool) -> None:
        """Close a group that has ended; its place gets another group if it was ``lost``."""
        ((place, _),) = (pair for pair in self.open if pair[1] == group)
        self.open.remove((place, group))
        if lost:
            insort(self._vacant, place)

    def saved(self) -> dict[str, Any]:
        """The state as JSON values."""
        counters = {"next_place": self._next_place, "next_group": self._next_group}
        return counters | {"open": [*self.open, *self._again], "vacant": self._vacant}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up a checkpoint: groups that were open in it are issued again under the same numbers."""
        self._next_place, self._next_group = saved["next_place"], saved["next_group"]
        self._again = sorted((place, group) for place, group in saved["open"])
        self._vacant = list(saved["vacant"])

    def _choose(self, places: int) -> tuple[int, int] | None:
        """The next (place, group) to issue; None where no place is left."""
        if self._again:
            return self._again.pop(0)
        if self._vacant:
            place = self._vacant.pop(0)
        elif self._next_place < places:
            place, self._next_place = self._next_place, self._next_place + 1
        else:
            return None
        group, self._next_group = self._next_group, self._next_group + 1
        return place, group

    def _item(self, place: int, group: int) -> WorkItem:
        order = self._order
        task, prompts = order.task(place), (order.prompt(place),)
        return WorkItem(
            epoch=self._epoch,
            group=group,
            purpose=Purpose.TRAIN,
            task=task.name,
            rewards=task.rewards,
            prompts=tuple(map(str, prompts)),
            fields=fields_text(prompts),
            samples_per_prompt=order.samples_per_prompt,
            seed=order.seed,
            draw=group,
            record=order.steps(place, group),
            keep_latents=order.keep_latents,
            fingerprint=order.fingerprint,
        )
