"""One call of a scorer for several groups: what it is given, how long it may take, and whether its answer is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import BoundedSemaphore, Thread
from time import monotonic

import numpy as np

from drover.common.errors import ScoringFailed
from drover.common.protocols import Scorer, Scores, SetScorer
from drover.common.user_code import sentence
from drover.reward_servers.serving.batching import Job

CALL = "scorer's call"  # name of a thread that may be left behind
MAX_HANGING = 4  # calls left behind at one time; with so many, new ones wait for one of them to end

ERROR, NAN, TIMEOUT = "error", "nan", "timeout"


class ScoringTimedOut(ScoringFailed):
    """The scorer did not answer in time."""


class Caller:
    """Calls one scorer. Whatever goes wrong is a `ScoringFailed`."""

    def __init__(self, scorer: Scorer | SetScorer, deadline_s: float | None) -> None:
        """``deadline_s`` None trusts the scorer to answer. Otherwise a call that takes longer is left behind."""
        self._scorer = scorer
        self._deadline_s = deadline_s
        self._free = BoundedSemaphore(MAX_HANGING)

    def __call__(self, jobs: Sequence[Job]) -> Scores:
        """Of all samples of the groups, in order: as many values, reasons as there are samples."""
        for job in jobs:
            if job.spoiled:
                raise ScoringFailed(job.spoiled)
        prompts = [prompt for job in jobs for prompt in job.prompts]
        media = jobs[0].media if len(jobs) == 1 else np.concatenate([job.media for job in jobs])
        call: Callable[[], Scores]
        if isinstance(self._scorer, SetScorer):
            call = partial(self._scorer.score_sets, prompts, media, _sets(jobs))
        else:
            call = partial(self._scorer, prompts, media)
        try:
            return _checked(call() if self._deadline_s is None else self._in_time(call, self._deadline_s), len(prompts))
        except ScoringFailed:
            raise
        except Exception as error:  # a reward is foreign code: whatever it raises becomes a counted mask
            raise ScoringFailed(sentence(error)) from error

    def _in_time(self, call: Callable[[], Scores], deadline_s: float) -> Scores:
        ends_s = monotonic() + deadline_s
        if not self._free.acquire(timeout=deadline_s):
            raise ScoringTimedOut(f"{MAX_HANGING} earlier calls still hang after {deadline_s:g} s")
        answer: Future[Scores] = Future()
        # A daemon: a call that never returns must not keep the process from ending.
        Thread(target=self._answer, args=(call, answer), name=CALL, daemon=True).start()
        try:
            return answer.result(ends_s - monotonic())
        except TimeoutError:
            if answer.done():  # the scorer's own
                raise
            raise ScoringTimedOut(f"no answer within {deadline_s:g} s") from None

    def _answer(self, call: Callable[[], Scores], answer: Future[Scores]) -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)
        finally:
            self._free.release()


def masked(count: int, reason: str) -> Scores:
    """Of that many samples that were not scored."""
    return Scores([math.nan] * count, [reason] * count)


def rows(scores: Scores, part: slice) -> Scores:
    """The scores of some of the samples. ``scores`` are `Caller`'s or `masked`."""
    assert scores.reasons is not None
    uncertainty = None if scores.uncertainty is None else scores.uncertainty[part]
    return Scores(scores.values[part], scores.reasons[part], uncertainty)


def _sets(jobs: Sequence[Job]) -> list[slice]:
    """Rows of each prompt of each group, all of whose media lie one after the other."""
    sets, first = [], 0
    for job in jobs:
        for _ in job.group.prompts:
            sets.append(slice(first, first + job.group.samples_per_prompt))
            first += job.group.samples_per_prompt
    return sets


def _checked(scores: Scores, count: int) -> Scores:
    """In plain floats, with a reason wherever a value is not finite."""
    values = tuple(float(value) for value in scores.values)
    given = [""] * count if scores.reasons is None else [str(reason) for reason in scores.reasons]
    uncertainty = None if scores.uncertainty is None else tuple(float(value) for value in scores.uncertainty)
    for name, column in (("values", values), ("reasons", given), ("uncertainties", uncertainty)):
        if column is not None and len(column) != count:
            raise ScoringFailed(f"returned {len(column)} {name} for {count} samples")
    reasons = tuple(
        reason or ("" if math.isfinite(value) else NAN) for value, reason in zip(values, given, strict=True)
    )
    return Scores(values, reasons, uncertainty)
