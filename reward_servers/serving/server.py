"""Score jobs as they arrive, and answer them. Knows one scorer; an inbox brings the jobs.

Failure is never a zero: a sample that cannot be scored is masked with a reason, and counted.

`RewardServer.run` works in three threads, so that the scorer never waits for storage: one fetches the media of the next
call, the calling thread scores, and one sends answers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Generic

from drover.common import metrics
from drover.common.errors import ConfigError, ScoringFailed
from drover.common.metrics import Account
from drover.common.protocols import Meter, Scorer, SetScorer
from drover.reward_servers.serving.batching import Job, T, Waiting
from drover.reward_servers.serving.inbox import Answer, Inbox
from drover.reward_servers.serving.scoring import ERROR, TIMEOUT, Caller, ScoringTimedOut, masked, rows

MAX_UNWRITTEN = 2  # scored batches whose answers may wait to be sent
STOP_CHECK_S = 0.5
PAUSES_PER_CALL = 4  # looks for more jobs during one call of a busy server
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.1

log = logging.getLogger(__name__)


class RewardServer(Generic[T]):
    """A worker of one reward's pool, which scores jobs. Jobs of different senders share a call.

    Example: ``RewardServer("clip", scorer, Groups(name="clip-0", reward="clip", ...), meter).run(stop.is_set)``.
    """

    def __init__(
        self,
        reward: str,
        scorer: Scorer | SetScorer,
        inbox: Inbox[T],
        meter: Meter,
        *,
        max_batch: int = 64,
        max_wait_s: float = 0.002,
        deadline_s: float | None = None,
    ) -> None:
        """``max_batch``: samples of a call; a job is never split, a larger one is scored alone. ``max_wait_s``: the time
        that an idle scorer waits for a call to fill. ``deadline_s``: the time limit of a call.
        """
        if max_batch < 1 or max_wait_s < 0 or (deadline_s is not None and deadline_s <= 0):
            raise ConfigError(
                f"{reward}: a call takes max_batch >= 1 samples, max_wait_s >= 0 and deadline_s > 0 or None, "
                f"got {max_batch}, {max_wait_s} and {deadline_s}."
            )
        self.reward, self.inbox, self.meter, self.max_wait_s = reward, inbox, meter, max_wait_s
        self.account = Account("reward", meter)
        self.spent: dict[str, float] = {}  # a copy for other threads; the account belongs to the loop
        self.trouble = ""  # the newest reason why a job could not be scored
        self._call = Caller(scorer, deadline_s)
        self._waiting: Waiting[T] = Waiting(max_batch)
        self._job_size = max_batch  # samples of the newest job, as an estimate for the next
        self._call_s = 0.0  # duration of the last call
        self._calling_since_s: float | None = None

    @property
    def call_s(self) -> float:
        """Seconds that the scorer's present call has taken so far; 0 between calls. For other threads."""
        since_s = self._calling_since_s
        return 0.0 if since_s is None else monotonic() - since_s

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until told to stop; then the present call is finished, and the other jobs are handed back."""
        writing: deque[Future[None]] = deque()
        try:
            with ThreadPoolExecutor(2, thread_name_prefix=self.reward) as threads:
                fetching = threads.submit(self._fetch_ahead)
                try:
                    while not stopping() and not fetching.done():
                        with self.account.part("wait_data"):
                            jobs = self._waiting.next(STOP_CHECK_S, self.max_wait_s)
                        with self.account.part("back_pressure"):
                            # A suspect may crash this server, so all answers are sent before it is scored.
                            _settle(writing, 0 if any(job.suspect for job in jobs) else MAX_UNWRITTEN)
                        if jobs:
                            writing.append(threads.submit(self._write, self._score(jobs)))
                        self.spent = self.account.seconds()
                finally:
                    self._waiting.close()
            for ended in (fetching, *writing):
                ended.result()
        finally:
            self.inbox.close()

    def run_once(self, wait_s: float) -> bool:
        """Score the jobs of at most one call, in this thread alone. Returns whether there was a job."""
        found = False
        while (room := self._waiting.room()) > 0:
            with self.account.part("wait_data"):
                tickets = self.inbox.take(self._limit(room), 0.0 if found else wait_s)
            with self.account.part("data"):
                self._open(tickets)
            if not tickets:
                break
            found = True
        jobs = self._waiting.at_hand()
        if jobs:
            answers = self._score(jobs)
            with self.account.part("data"):
                self._write(answers)
        return bool(found or jobs)

    # ---------------------------------------------------------------------------------------- fetching

    def _fetch_ahead(self) -> None:
        """Fetch the jobs of the next call while the scorer works, and no more than these."""
        pause_s = 0.0
        try:
            while True:
                room, wait_s = self._waiting.demand(pause_s)
                if self._waiting.closed:
                    return
                began_s = monotonic()
                tickets = self.inbox.take(self._limit(room), wait_s)
                self._open(tickets)
                self._waiting.looked(began_s)
                pause_s = 0.0 if tickets else self._pause_s()
        finally:
            self._waiting.close()

    def _limit(self, room: int) -> int:
        """The number of jobs to take for ``room`` samples."""
        return max(1, room // self._job_size)

    def _pause_s(self) -> float:
        return min(max(self._call_s / PAUSES_PER_CALL, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)

    def _open(self, tickets: Sequence[T]) -> None:
        for job in self.inbox.open(tickets):
            self._job_size = job.size
            self._waiting.add(job)

    # ----------------------------------------------------------------------------------------- scoring

    def _score(self, jobs: Sequence[Job[T]]) -> list[Answer[T]]:
        """Score all jobs in one call; if that fails, in a call for each job, so that a bad job does not spoil the others."""
        started_s = self._calling_since_s = monotonic()
        with self.account.part("compute"):
            try:
                scores = self._call(jobs)
            except ScoringFailed as error:
                if len(jobs) > 1:
                    return [answer for job in jobs for answer in self._score([job])]
                news = error if str(error) != self.trouble else None  # the traceback is logged once, not for every job
                log.warning("%s could not score %s: %s", self.reward, jobs[0].name, error, exc_info=news)
                self.trouble = str(error)
                scores = masked(jobs[0].size, TIMEOUT if isinstance(error, ScoringTimedOut) else ERROR)
        self._calling_since_s, self._call_s = None, monotonic() - started_s
        self.meter.add(metrics.SCORING_S, self._call_s, reward=self.reward)
        answers, first = [], 0
        for job in jobs:
            part = slice(first, first + job.size)
            answers.append(Answer(job, rows(scores, part), self._call_s / len(jobs), started_s - job.arrived_s))
            first = part.stop
        return answers

    # --------------------------------------------------------------------------------------- answering

    def _write(self, answers: Sequence[Answer[T]]) -> None:
        self.inbox.answer(answers)
        for answer in answers:
            self._count(answer)

    def _count(self, answer: Answer[T]) -> None:
        meter, reward = self.meter, self.reward
        meter.add(metrics.REWARD_DELAY_S, monotonic() - answer.job.arrived_s, reward=reward)
        meter.add(metrics.SCORED_SAMPLES, answer.job.size, reward=reward)
        meter.add(
            metrics.MASKED_SAMPLES, 0, reward=reward, reason=ERROR
        )  # served from the start, so that its rise can be seen
        for reason in answer.scores.reasons or ():
            if reason:
                meter.add(metrics.MASKED_SAMPLES, 1, reward=reward, reason=reason)


def _settle(writing: deque[Future[None]], most: int) -> None:
    """Wait until at most ``most`` answers are unsent, and raise the error of any that failed."""
    while writing and (writing[0].done() or len(writing) > most):
        writing.popleft().result()
