"""Jobs that wait for the scorer, and which of them share its next call. One thread may fill while another empties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Condition
from time import monotonic
from typing import Generic, TypeVar

from drover.common.media.media import Media, form
from drover.common.prompts import Prompt

IDLE_WAIT_S = 0.1  # at most so long until whoever fills notices that it is to end
LONGEST_LOOK_S = 0.005  # what a scorer with jobs at hand gives a last look for more
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[T]):
    """Samples that are scored in one call: those of a group, or of a request over HTTP.

    ``ticket`` is the sender's own note of who waits for the answer. ``spoiled`` says why the job will not be scored; ""
    for nearly all, which have media. Example: ``Job(name="group 3", ticket=delivery, prompts=group.asked, samples=(8, 8),
    media=pictures, arrived_s=monotonic())``.
    """

    name: str  # for logs
    ticket: T
    prompts: Sequence[Prompt]  # one for each set
    samples: Sequence[int]  # of each set: all samples of a prompt together
    media: Media | None  # N samples, set after set
    arrived_s: float  # on the monotonic clock
    attempt: int = 1  # deliveries of it, this one included
    spoiled: str = ""

    @property
    def size(self) -> int:
        """N."""
        return sum(self.samples)

    @property
    def suspect(self) -> bool:
        """Whether it may have killed the server that had it before: it is then scored alone."""
        return bool(self.spoiled) or self.attempt > 1


class Waiting(Generic[T]):
    """Opened jobs in the order they came, up to about ``max_batch`` samples: what the next call is made of."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._jobs: list[Job[T]] = []
        self._changed = Condition()
        self._asked_s: float | None = None  # since when the scorer waits; None while it works
        self._looked_s = 0.0  # when the newest finished look for more began
        self._fill_s = 0.0
        self._closed = False

    def add(self, job: Job[T]) -> None:
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

    def at_hand(self) -> list[Job[T]]:
        """The next call's jobs: at most ``max_batch`` samples unless one job has more, of media of one form."""
        with self._changed:
            batch = [] if self._closed else _first_batch(self._jobs, self.max_batch)
            self._jobs = [job for job in self._jobs if not any(job is taken for taken in batch)]
            self._changed.notify_all()
            return batch

    def next(self, wait_s: float, fill_s: float) -> list[Job[T]]:
        """As `at_hand`, for a scorer that has time: none after ``wait_s``.

        A call not yet full waits until its first job is ``fill_s`` old, and for one more look at what there is.
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


def _first_batch(jobs: list[Job[T]], max_batch: int) -> list[Job[T]]:
    """Suspects come alone, at even attempts from the front and at odd ones from the back.

    So one that kills every server meets each of its fellows once after it and once before it: all but itself end well.
    """
    suspects = [job for job in jobs if job.suspect]
    if suspects:
        return [suspects[0 if suspects[0].attempt % 2 == 0 else -1]]
    batch, samples = jobs[:1], sum(job.size for job in jobs[:1])
    for before, job in pairwise(jobs):
        samples += job.size
        assert before.media is not None and job.media is not None  # the spoiled ones are suspects
        if samples > max_batch or form(before.media) != form(job.media):
            break
        batch.append(job)
    return batch
