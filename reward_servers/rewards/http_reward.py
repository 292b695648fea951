"""Score samples by an HTTP endpoint, whose answers are not trusted.

The form of requests and replies is in `drover.reward_servers.http.wire`; `drover serve` answers such requests with any
reward of drover's.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np

from drover.common import secrets
from drover.common.errors import ConfigError, ScoringFailed
from drover.common.media.kinds import KINDS
from drover.common.media.media import Media, rows
from drover.common.prompts import Prompt
from drover.common.protocols import Scores
from drover.reward_servers.http.client import Client, Failed
from drover.reward_servers.http.wire import Request, parse_reply, request_body
from drover.reward_servers.serving.scoring import masked

REPLY_BYTES, REPLY_BYTES_PER_SAMPLE = (
    4096,
    128 << 10,
)  # larger replies are refused unread; 24,000 features of a sample fit
MAX_PAUSE_S = 30.0  # between two tries
MAX_WORDS = 16  # of the endpoint's reasons that one server passes on; they become labels of a metric
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpReward:
    """Unit and range are the endpoint's, which may judge samples or sets: all samples of a prompt in a group go together.

    A sample without a value is masked: ``http`` if the endpoint cannot be reached or does not answer 200 (redirects are
    not followed), ``timeout``, ``reply`` for an answer of a wrong form or size, ``breaker`` if the endpoint was not asked,
    ``nan`` for a value that is null or not finite, else the endpoint's own word, or ``remote`` for one that is not well-formed.

    A try that times out, cannot connect or gets a status of 408, 429, 500, 502, 503 or 504 is repeated up to ``retries``
    times, after ``backoff_s``, then twice that, and so on. After ``breaker_failures`` failed tries in a row no request is
    sent for ``breaker_s``; then one try decides whether the endpoint is asked again.

    The bearer token comes from the environment variable ``token_variable`` of the reward's process (or from the file that
    the variable with _FILE at its end names), or from ``token_file`` on its node; the token is in no option, log or message.
    The URL is in all of these, so it must hold no secrets. Proxies are not used.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    name: str
    url: str
    token_variable: str = ""
    token_file: str = ""  # neither: no Authorization header
    timeout_s: float = 60.0  # of one try; a reply that comes slowly is given up after at most twice that
    retries: int = 3
    backoff_s: float = 0.5
    batch_size: int = 32  # samples of a request, unless one set has more
    breaker_failures: int = 5
    breaker_s: float = 30.0
    media: str = "picture"  # the kind that the endpoint scores: picture, clip, sound, scene or structure

    def __post_init__(self) -> None:
        if self.media not in KINDS:
            raise ConfigError(f"media must be one of {', '.join(KINDS)}, got {self.media!r}")
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"HttpReward {self.name!r} wants a url like https://host/score; this is none")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"the url of HttpReward {self.name!r} holds a user or password; use token_variable")
        if self.token_variable and self.token_file:
            raise ConfigError(f"HttpReward {self.name!r} has token_variable and token_file; give one of them")
        if not 0 <= self.retries <= 10:
            raise ConfigError(f"retries must be 0 to 10, got {self.retries}")
        for option in ("batch_size", "breaker_failures"):
            if getattr(self, option) < 1:
                raise ConfigError(f"{option} must be at least 1, got {getattr(self, option)}")
        for option in ("timeout_s", "backoff_s", "breaker_s"):
            if not 0 < getattr(self, option) < math.inf:
                raise ConfigError(f"{option} must be above 0 seconds, got {getattr(self, option)}")

    @property
    def takes(self) -> type[Media]:
        return KINDS[self.media]

    def load(self, device: str) -> HttpScorer:
        if self.token_file:
            token = secrets.from_file(self.token_file, f"token_file of HttpReward {self.name!r}")
        elif self.token_variable:
            token = secrets.from_environment(self.token_variable)
        else:
            return HttpScorer(self, {})
        if not token:
            raise ConfigError(
                f"HttpReward {self.name!r} takes its token from {self.token_variable}, which is not set; "
                "set it in the environment of the reward's node"
            )
        return HttpScorer(self, {"Authorization": f"Bearer {token}"})


class HttpScorer:
    """Sends samples to the endpoint. ``requests`` counts all tries, ``retried`` those that were not a request's first."""

    def __init__(self, reward: HttpReward, authorization: dict[str, str]) -> None:
        self.reward = reward
        self.breaker = Breaker(reward.breaker_failures, reward.breaker_s)
        self.requests = self.retried = 0
        self._client = Client(reward.url, authorization, reward.timeout_s)
        self._words: set[str] = set()

    def score_sets(self, prompts: Sequence[Prompt], media: Media, sets: Sequence[slice]) -> Scores:
        """The scores of N samples; a set is never split. Raises `ScoringFailed` where replies do not fit together."""
        return _joined([self._ask(prompts, media, some) for some in _batches(sets, self.reward.batch_size)])

    def _ask(self, prompts: Sequence[Prompt], media: Media, sets: Sequence[slice]) -> Scores:
        """The scores of one request, which is tried again where that may help."""
        part, word, body = slice(sets[0].start, sets[-1].stop), "breaker", b""
        samples = part.stop - part.start
        for attempt in range(1 + self.reward.retries):
            if not self.breaker.lets_through(time.monotonic()):
                break
            if attempt:
                self.retried += 1
                time.sleep(min(self.reward.backoff_s * 2 ** (attempt - 1), MAX_PAUSE_S))
            body = body or _body(prompts, rows(media, part), sets)
            self.requests += 1
            try:
                reply = self._client.post(body, REPLY_BYTES + REPLY_BYTES_PER_SAMPLE * samples)
                scores = _parsed(reply, samples)
            except Failed as failure:
                word = failure.word
                self._note(failure)
                if not failure.passing:
                    break
            else:
                self.breaker.succeeded()
                return replace(scores, reasons=[self._bounded(reason) for reason in scores.reasons or ()])
        return masked(samples, word)

    def _note(self, failure: Failed) -> None:
        self.breaker.failed(time.monotonic())
        pause = "" if self.breaker.opened is None else f"; not asked again for {self.reward.breaker_s:g} s"
        log.warning("reward %s: %s%s", self.reward.name, failure, pause)

    def _bounded(self, reason: str) -> str:
        """The endpoint's reason if it is a word and one of its first `MAX_WORDS`, else "remote"."""
        if not reason:
            return ""
        if _WORD.fullmatch(reason) and (reason in self._words or len(self._words) < MAX_WORDS):
            self._words.add(reason)
            return reason
        return "remote"


class Breaker:
    """Stops requests to a failing endpoint: for ``pause_s`` after ``failures`` in a row, and again after each further one."""

    def __init__(self, failures: int, pause_s: float) -> None:
        self.failures, self.pause_s = failures, pause_s
        self.opened: float | None = None  # monotonic seconds; None while it is closed
        self._in_a_row = 0

    def lets_through(self, now: float) -> bool:
        return self.opened is None or now - self.opened >= self.pause_s

    def succeeded(self) -> None:
        self.opened, self._in_a_row = None, 0

    def failed(self, now: float) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self.opened = now


def _parsed(reply: bytes, samples: int) -> Scores:
    try:
        return parse_reply(reply, samples)
    except ValueError as error:
        raise Failed("reply", str(error)) from error


def _body(prompts: Sequence[Prompt], media: Media, sets: Sequence[slice]) -> bytes:
    request = Request(
        prompts=[prompts[each.start] for each in sets], samples=[each.stop - each.start for each in sets], media=media
    )
    return request_body(request)


def _batches(sets: Sequence[slice], most: int) -> Iterator[list[slice]]:
    """Batches of whole sets: each has at most ``most`` samples, unless one set has more."""
    batch: list[slice] = []
    for each in sets:
        if batch and each.stop - batch[0].start > most:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _joined(replies: Sequence[Scores]) -> Scores:
    """The scores of all replies, in order."""
    uncertainty = _beside("uncertainty", replies)
    return Scores(
        [value for reply in replies for value in reply.values],
        [reason for reply in replies for reason in reply.reasons or ()],
        uncertainty=None if uncertainty is None else uncertainty.tolist(),
        parts=_beside("parts", replies),
        features=_beside("features", replies),
    )


def _beside(name: str, replies: Sequence[Scores]) -> np.ndarray | None:
    """[N, ...] numbers beside the values, with NaN for replies without them; None where no reply has any."""
    found = [getattr(reply, name) for reply in replies]
    forms = {np.shape(one)[1:] for one in found if one is not None}
    if len(forms) > 1:
        raise ScoringFailed(f"the endpoint's {name} have the shapes {sorted(forms)} a sample; they must have one")
    for form in forms:
        blanks = [np.full((len(reply.values), *form), np.nan) for reply in replies]
        return np.concatenate([blank if one is None else one for one, blank in zip(found, blanks, strict=True)])
    return None
