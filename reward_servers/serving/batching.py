"""Groups that wait for the scorer, and which of them share its next call. One thread may fill while another empties."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from threading import Condition
from time import monotonic

import numpy as np

from drover.common.protocols import Delivery
from drover.common.types import RolloutGroup

IDLE_WAIT_S = 0.1  # at most so long until whoever fills notices that it is to end
LONGEST_LOOK_S = 0.005  # what a scorer with groups at hand gives a last look for more


@dataclass(frozen=True, slots=True)
class Job:
    """A group in hand, with its media. ``spoiled`` says why it will not be scored; "" for nearly all."""

    delivery: Delivery
    group: RolloutGroup
    media: np.ndarray  # [N, H, W, 3] uint8
    arrived_s: float  # on the monotonic clock
    spoiled: str = ""

    @property
    def size(self) -> int:
        """N."""
        return self.group.num_samples

    @property
    def prompts(self) -> list[str]:
        """[N], one per sample."""
        each = self.group.samples_per_prompt
        return [prompt for prompt in self.group.prompts for _ in range(each)]

    @property
    def suspect(self) -> bool:
        """Whether it may have killed the server that had it before: it is then scored alone."""
        return bool(self.spoiled) or self.delivery.attempt > 1


class Waiting:
    """Opened groups in the order they came, up to about ``max_batch`` samples: what the next call is made of."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._jobs: list[Job] = []
        self._changed = Condition()
        self._asked_s: float | None = None  # since when the scorer waits; None while it works
        self._looked_s = 0.0  # when the newest finished look for more began
        self._fill_s = 0.0
        self._closed = False

    def add(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def looked(self, began_s: float) -> None:
        """Whatever was to be had then has been added."""
        with self._changed:
            self._looked_s = began_s
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody brings or wants more: whoever waits here returns at once, and the scorer gets nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def room(self) -> int:
        """Samples there is room for, at most 0 when full."""
        with self._changed:
            return self.max_batch - self._samples()

    def at_hand(self) -> list[Job]:
        """The next call's groups: at most ``max_batch`` samples unless one group has more, of media of one shape."""
        with self._changed:
            batch = [] if self._closed else _first_batch(self._jobs, self.max_batch)
            self._jobs = [job for job in self._jobs if not any(job is taken for taken in batch)]
            self._changed.notify_all()
            return batch

    def next(self, wait_s: float, fill_s: float) -> list[Job]:
        """As `at_hand`, for a scorer that has time: none after ``wait_s``.

        A call not yet full waits until its first group is ``fill_s`` old, and for one more look at what there is.
        """
        with self._changed:
            asked_s = self._asked_s = monotonic()
            self._fill_s = fill_s
            self._changed.notify_all()
            while (left_s := self._patience_s(asked_s, wait_s)) > 0:
                self._changed.wait(left_s)
            self._asked_s = None
        return self.at_hand()

    def demand(self, pause_s: float) -> tuple[int, float]:
        """(samples there is room for, how long to wait for them), once there is room and the pause is over.

        A scorer that waits cuts the pause short. While it works nothing is waited for: what comes then is better off
        with a server that has time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._asked_s is not None, pause_s)
            self._changed.wait_for(lambda: self._closed or self._samples() < self.max_batch)
            if self._asked_s is None:
                wait_s = 0.0
            elif self._jobs:
                wait_s = max(0.0, self._jobs[0].arrived_s + self._fill_s - monotonic())
            else:
                wait_s = IDLE_WAIT_S
            return self.max_batch - self._samples(), min(wait_s, IDLE_WAIT_S)

    def _patience_s(self, asked_s: float, wait_s: float) -> float:
        """How much longer the scorer should wait."""
        if self._closed or self._samples() >= self.max_batch:
            return 0.0
        if not self._jobs:
            return asked_s + wait_s - monotonic()
        old_enough_s = self._jobs[0].arrived_s + self._fill_s
        last_look_s = asked_s + LONGEST_LOOK_S if self._looked_s < asked_s else 0.0
        return max(old_enough_s, last_look_s) - monotonic()

    def _samples(self) -> int:
        return sum(job.size for job in self._jobs)


def _first_batch(jobs: list[Job], max_batch: int) -> list[Job]:
    """Suspects come alone, at even attempts from the front and at odd ones from the back.

    So one that kills every server meets each of its fellows once after it and once before it: all but itself end well.
    """
    suspects = [job for job in jobs if job.suspect]
    if suspects:
        return [suspects[0 if suspects[0].delivery.attempt % 2 == 0 else -1]]
    batch, samples = jobs[:1], sum(job.size for job in jobs[:1])
    for before, job in pairwise(jobs):
        samples += job.size
        if samples > max_batch or _form(before.media) != _form(job.media):
            break
        batch.append(job)
    return batch


def _form(media: np.ndarray) -> tuple[object, ...]:
    return (media.dtype, *media.shape[1:])
