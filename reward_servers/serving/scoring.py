"""Call a scorer once for several jobs, within a time limit, and check its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import accumulate
from threading import BoundedSemaphore, Thread
from time import monotonic
from typing import Any

import numpy as np

from drover.common.errors import ScoringFailed
from drover.common.media.media import joined
from drover.common.protocols import Scorer, Scores, SetScorer
from drover.common.user_code import sentence
from drover.reward_servers.serving.batching import Job

CALL = "scorer's call"  # name of a thread that may be abandoned
MAX_HANGING = 4  # abandoned calls at one time; with so many, new calls wait until one of them ends

ERROR, NAN, TIMEOUT = "error", "nan", "timeout"


class ScoringTimedOut(ScoringFailed):
    """The scorer did not answer in time."""


class Caller:
    """Calls one scorer. Every failure is a `ScoringFailed`."""

    def __init__(self, scorer: Scorer | SetScorer, deadline_s: float | None) -> None:
        """A call that takes longer than ``deadline_s`` is abandoned; None means no limit."""
        self._scorer = scorer
        self._deadline_s = deadline_s
        self._free = BoundedSemaphore(MAX_HANGING)

    def __call__(self, jobs: Sequence[Job[Any]]) -> Scores:
        """The scores of all samples of the jobs, in order, with a value and a reason for each sample."""
        for job in jobs:
            if job.spoiled:
                raise ScoringFailed(job.spoiled)
        sets = [each for job in jobs for each in zip(job.prompts, job.samples, strict=True)]
        prompts = [prompt for prompt, samples in sets for _ in range(samples)]
        media = joined([job.media for job in jobs if job.media is not None])
        call: Callable[[], Scores]
        if isinstance(self._scorer, SetScorer):
            call = partial(self._scorer.score_sets, prompts, media, _slices([samples for _, samples in sets]))
        else:
            call = partial(self._scorer, prompts, media)
        try:
            return _checked(call() if self._deadline_s is None else self._in_time(call, self._deadline_s), len(prompts))
        except ScoringFailed:
            raise
        except Exception as error:  # a reward is foreign code: each of its errors becomes a counted mask
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
            if answer.done():  # the scorer raised this TimeoutError itself
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
    """The scores of ``count`` samples that could not be scored."""
    return Scores([math.nan] * count, [reason] * count)


def rows(scores: Scores, part: slice) -> Scores:
    """The scores of some of the samples. ``scores`` are `Caller`'s or `masked`."""
    assert scores.reasons is not None
    return Scores(
        scores.values[part],
        scores.reasons[part],
        uncertainty=None if scores.uncertainty is None else scores.uncertainty[part],
        parts=None if scores.parts is None else scores.parts[part],
        features=None if scores.features is None else scores.features[part],
    )


def _slices(samples: Sequence[int]) -> list[slice]:
    """The rows of each set, where ``samples`` are the sizes of consecutive sets."""
    ends = list(accumulate(samples))
    return [slice(end - size, end) for end, size in zip(ends, samples, strict=True)]


def _checked(scores: Scores, count: int) -> Scores:
    """Check the scores and convert them to plain floats and float32, with a reason where any number is not finite."""
    values = tuple(float(value) for value in scores.values)
    given = [""] * count if scores.reasons is None else [str(reason) for reason in scores.reasons]
    uncertainty = None if scores.uncertainty is None else tuple(float(value) for value in scores.uncertainty)
    for name, column in (("values", values), ("reasons", given), ("uncertainties", uncertainty)):
        if column is not None and len(column) != count:
            raise ScoringFailed(f"returned {len(column)} {name} for {count} samples")
    parts, features = (_matrix(name, getattr(scores, name), count) for name in ("parts", "features"))
    sound = np.isfinite(values)
    for beside in (uncertainty, parts, features):
        if beside is not None:
            sound &= np.isfinite(beside).reshape(count, -1).all(axis=1)
    reasons = tuple(reason or ("" if fine else NAN) for reason, fine in zip(given, sound, strict=True))
    return Scores(values, reasons, uncertainty, parts, features)


def _matrix(name: str, given: np.ndarray | None, count: int) -> np.ndarray | None:
    if given is None:
        return None
    matrix = np.asarray(given, np.float32)
    if matrix.ndim != 2 or len(matrix) != count or not matrix.shape[1]:
        raise ScoringFailed(f"returned {name} of shape {list(matrix.shape)} for {count} samples, wanted a row for each")
    return matrix
