"""A reward server for tests: its streams are in memory, and prompts make its scorers fail, hang or mask."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import numpy as np

from drover.common.media.pictures import Pictures
from drover.common.metrics import MASKED_SAMPLES, NullMeter
from drover.common.protocols import Scores, Stream
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Measurement, Purpose, RolloutGroup
from drover.reward_servers.serving.groups import Groups
from drover.reward_servers.serving.server import RewardServer
from tests.common.media.made_up import stored as put

NAN = math.nan


class Brightness:
    """The mean of each picture's first channel. Some prompts make it fail or hang; it notes the size of every call."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # number of samples of each call
        self.seen: list[str] = []
        self.gate = Event()  # calls wait while it is cleared; a call with the prompt "hang" waits for `wake`
        self.gate.set()
        self.wake = Event()

    def __call__(self, prompts, media):
        self.calls.append(len(media))
        self.seen += prompts
        assert self.gate.wait(10)
        if "hang" in prompts:
            assert self.wake.wait(10)
        if "raise" in prompts:
            raise ValueError("cannot look at this")
        values = [float(image[..., 0].mean()) for image in media.pixels]
        if "short" in prompts:
            values.pop()
        if "words" in prompts:
            return Scores(["bright"] * len(values))
        if "few reasons" in prompts:
            return Scores(values, [""])
        broken = {"nan": NAN, "infinite": math.inf}
        values = [broken.get(prompt, value) for prompt, value in zip(prompts, values, strict=False)]
        reasons = ["refused" if prompt == "refused" else "" for prompt in prompts]
        return Scores(values, reasons, [0.5] * len(values) if "unsure" in prompts else None)


class Thorough(Brightness):
    """`Brightness` with three parts and two features a sample. The prompt "nan part" breaks a part of its last sample."""

    def __call__(self, prompts, media):
        scores = super().__call__(prompts, media)
        values = np.array(scores.values, np.float32)[:, None]
        parts, features = values * np.float32([1, 2, 3]), np.concatenate([values, -values], axis=1)
        if "nan part" in prompts:
            parts[len(prompts) - 1 - prompts[::-1].index("nan part"), 1] = NAN
        if "flat" in prompts:
            parts = parts[:, 0]
        return replace(scores, parts=parts, features=features)


class Counting:
    """The field "count" of each prompt."""

    def __call__(self, prompts, media):
        return Scores([float(prompt.fields.get("count", -1)) for prompt in prompts])


class Meter(NullMeter):
    def __init__(self) -> None:
        self.masked: Counter[str] = Counter()

    def add(self, metric, value=1.0, **labels):
        super().add(metric, value, **labels)
        if metric is MASKED_SAMPLES and value:
            self.masked[labels["reason"]] += value


class Spread:
    """The difference between a picture and the darkest of its set."""

    def __init__(self) -> None:
        self.sets: list[list[slice]] = []

    def score_sets(self, prompts, media, sets):
        self.sets.append(list(sets))
        level = media.pixels[:, 0, 0, 0].astype(float)
        values = np.concatenate([level[rows] - level[rows].min() for rows in sets])
        assert [prompts[rows.start : rows.stop] for rows in sets] == [
            [prompts[r.start]] * (r.stop - r.start) for r in sets
        ]
        return Scores(values)


class Desk:
    """A reward server with its streams; `bring` puts a group of pictures, all of the given brightness."""

    def __init__(self, scorer=None, **options) -> None:
        self.broker, self.scorer, self.meter = MemoryBroker("rewards"), scorer or Brightness(), Meter()
        keys = self.broker.keys
        self.rollouts = self.broker.stream(keys.rollouts, "reward:brightness")
        self.measurements = self.broker.stream(keys.measurements, "learner")
        self.inbox = self.inbox_of("reward-0", self.rollouts)
        self.server = RewardServer("brightness", self.scorer, self.inbox, self.meter, **options)

    def inbox_of(self, name: str, rollouts: Stream) -> Groups:
        return Groups(
            name=name, reward="brightness", rollouts=rollouts, measurements=self.measurements,
            blobs=self.broker.blobs(), meter=self.meter,
        )  # fmt: skip

    def bring(self, group: int, *levels: int, prompts=("a",), size=(2, 2), stored=True, **fields) -> None:
        media = Pictures(np.stack([np.full((*size, 3), level, np.uint8) for level in levels]))
        ref = put(media, f"{group}/media", self.broker.blobs())
        if not stored:
            self.broker.blobs().drop(ref.blobs)
        usual = {
            "epoch": 4, "attempt": 1, "purpose": Purpose.TRAIN, "version": 0, "fingerprint": "f", "latents": None,
            "task": "t", "rewards": ("brightness",),
            "media": ref, "transitions": None, "worker": "actor-0", "sampling_s": 0.1,
        }  # fmt: skip
        each = len(levels) // len(prompts)
        self.rollouts.put(RolloutGroup(group=group, prompts=prompts, samples_per_prompt=each, **{**usual, **fields}))

    def answers(self) -> dict[int, Measurement]:
        while self.server.run_once(0.0):
            pass
        assert self.rollouts.backlog()[0] == 0, "everything taken is acknowledged"
        return {d.message.group: d.message for d in self.measurements.take(100, 0.0)}

    @contextmanager
    def working(self) -> Iterator[Future[None]]:
        """Run the server on a thread of its own until the block ends."""
        stop = Event()
        with ThreadPoolExecutor(1) as thread:
            end = thread.submit(self.server.run, stop.is_set)
            try:
                yield end
            finally:
                stop.set()
                self.scorer.gate.set()

    def said(self, count: int) -> dict[int, Measurement]:
        """Wait for ``count`` measurements of any server at work and return them by group."""
        found: dict[int, Measurement] = {}
        until(lambda: len(self._said(found)) >= count)
        return found

    def _said(self, found: dict[int, Measurement]) -> dict[int, Measurement]:
        for delivery in self.measurements.take(100, 0.0):
            found[delivery.message.group] = delivery.message
        return found

    def other(self):
        """Another consumer of the same pool."""
        return self.broker.stream(self.broker.keys.rollouts, "reward:brightness")


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.002)
