"""Score samples for callers in other threads: each waits for its own scores, and one call of the scorer serves several.

The `RewardServer` of runs does the scoring, with its batches and its time limit; a request that makes the scorer fail does
not spoil the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic

from drover.common.errors import ScoringFailed
from drover.common.protocols import Meter, Scorer, Scores, SetScorer
from drover.reward_servers.http.wire import Request
from drover.reward_servers.serving.batching import Job
from drover.reward_servers.serving.inbox import Answer
from drover.reward_servers.serving.server import RewardServer


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the future for its scores, which its caller cancels when it stops waiting."""

    number: int
    request: Request
    answer: Future[Scores] = field(default_factory=Future)


class Requests:
    """The `Inbox` that takes the requests of other threads."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Asked] = SimpleQueue()

    def put(self, asked: Asked) -> None:
        self._waiting.put(asked)

    def take(self, limit: int, wait_s: float) -> list[Asked]:
        taken: list[Asked] = []
        with suppress(Empty):
            taken.append(self._waiting.get(wait_s > 0, wait_s or None))
            while len(taken) < limit:
                taken.append(self._waiting.get_nowait())
        return taken

    def open(self, tickets: Sequence[Asked]) -> list[Job[Asked]]:
        """The jobs of the requests whose callers still wait."""
        return [self._job(asked) for asked in tickets if asked.answer.set_running_or_notify_cancel()]

    def answer(self, answers: Sequence[Answer[Asked]]) -> None:
        for answer in answers:
            answer.job.ticket.answer.set_result(answer.scores)

    def close(self) -> None: ...

    def _job(self, asked: Asked) -> Job[Asked]:
        request = asked.request
        return Job(
            name=f"request {asked.number}",
            ticket=asked,
            prompts=request.prompts,
            samples=request.samples,
            media=request.media,
            arrived_s=monotonic(),
        )


class Window:
    """Scores requests of other threads while its context is open. Many threads may call `score` at once."""

    def __init__(
        self, reward: str, scorer: Scorer | SetScorer, meter: Meter, *, max_batch: int, deadline_s: float
    ) -> None:
        """``max_batch`` samples go to the scorer at once; a call that takes longer than ``deadline_s`` is abandoned."""
        self._requests, self._numbers, self._stop = Requests(), count(1), Event()
        self._server = RewardServer(reward, scorer, self._requests, meter, max_batch=max_batch, deadline_s=deadline_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="window")
        self._end: Future[None] = Future()

    def __enter__(self) -> Window:
        self._end = self._thread.submit(self._server.run, self._stop.is_set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()

    def check(self) -> None:
        """Raise the error that ended the server, if one did; it answers no request any more."""
        if self._end.done():
            self._end.result()

    def score(self, request: Request, wait_s: float) -> Scores:
        """The scores of a request. Raises `ScoringFailed` when no answer comes within ``wait_s``."""
        asked = Asked(next(self._numbers), request)
        self._requests.put(asked)
        try:
            return asked.answer.result(wait_s)
        except TimeoutError as error:
            asked.answer.cancel()
            raise ScoringFailed(f"no scores within {wait_s:g} s") from error
