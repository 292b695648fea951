"""Hold the jobs that wait for the scorer, and choose those that share its next call. One thread may add, another take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Condition
from time import monotonic
from typing import Generic, TypeVar

from drover.common.media.media import Media, form
from drover.common.prompts import Prompt

IDLE_WAIT_S = 0.1  # the longest wait of the thread that adds jobs, after which it checks whether to end
LONGEST_LOOK_S = 0.005  # the longest wait of a scorer with jobs at hand for a last look for more
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[T]):
    """Samples that are scored in one call: those of a group, or of a request over HTTP.

    ``ticket`` is the inbox's own mark, by which it sends the answer back. ``spoiled`` is the reason why the job cannot be
    scored; it is "" for nearly all jobs, and only those have media.

    Example: ``Job(name="group 3", ticket=delivery, prompts=group.asked, samples=(8, 8),
    media=pictures, arrived_s=monotonic())``.
    """

    name: str  # for logs
    ticket: T
    prompts: Sequence[Prompt]  # one for each set
    samples: Sequence[int]  # the size of each set, which holds all samples of a prompt
    media: Media | None  # N samples, set after set
    arrived_s: float  # on the monotonic clock
    attempt: int = 1  # the count of its deliveries, this one included
    spoiled: str = ""

    @property
    def size(self) -> int:
        """The number of samples, N."""
        return sum(self.samples)

    @property
    def suspect(self) -> bool:
        """Whether the job is scored alone, because it may have crashed the server to which it was delivered before."""
        return bool(self.spoiled) or self.attempt > 1


class Waiting(Generic[T]):
    """Holds opened jobs for the next call, in the order of their arrival, up to about ``max_batch`` samples."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._jobs: list[Job[T]] = []
        self._changed = Condition()
        self._asked_s: float | None = None  # the time at which the scorer began to wait; None while it works
        self._looked_s = 0.0  # the time at which the newest finished look for more jobs began
        self._fill_s = 0.0
        self._closed = False

    def add(self, job: Job[T]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def looked(self, began_s: float) -> None:
        """Note that a look for more jobs, which began at ``began_s``, has ended and its jobs are added."""
        with self._changed:
            self._looked_s = began_s
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more jobs and give none: every thread that waits here returns at once, and the scorer gets no job."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def room(self) -> int:
        """The number of samples for which there is room; 0 or less when full."""
        with self._changed:
            return self.max_batch - self._samples()

    def at_hand(self) -> list[Job[T]]:
        """The jobs of the next call: at most ``max_batch`` samples unless one job has more, with media of one form."""
        with self._changed:
            batch = [] if self._closed else _first_batch(self._jobs, self.max_batch)
            self._jobs = [job for job in self._jobs if not any(job is taken for taken in batch)]
            self._changed.notify_all()
            return batch

    def next(self, wait_s: float, fill_s: float) -> list[Job[T]]:
        """Wait for jobs and return them as `at_hand` does; none after ``wait_s``.

        A call that is not full waits until its first job is ``fill_s`` old, and for one more look for jobs.
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
        """(samples for which there is room, seconds to wait for them), once there is room and the pause is over.

        A scorer that begins to wait ends the pause. While the scorer works the wait is 0, because another server that is
        free should get jobs that arrive meanwhile.
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
        """The seconds that the scorer should still wait."""
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
    """The first jobs that fit into one call. A redelivered job is alone, as it may have crashed its server before.

    Redelivered jobs are taken alternately from the front and the back, by their attempt, so that a job behind the crashing
    one is reached before it in the next attempt.
    """
    suspects = [job for job in jobs if job.suspect]
    if suspects:
        return [suspects[0 if suspects[0].attempt % 2 == 0 else -1]]
    batch, samples = jobs[:1], sum(job.size for job in jobs[:1])
    for before, job in pairwise(jobs):
        samples += job.size
        assert before.media is not None and job.media is not None  # spoiled jobs are suspects, which are alone
        if samples > max_batch or form(before.media) != form(job.media):
            break
        batch.append(job)
    return batch
