"""One reward for callers in other threads: each waits for its own samples, and a call of the scorer has those of several.

What scores is the `RewardServer` of a run, on streams in memory: its batches, its time limit, and one poisoned request
spoiling no other's are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from threading import Event, Lock

import numpy as np
import torch

from drover.common import tensors
from drover.common.errors import ScoringFailed
from drover.common.protocols import Meter, Scorer, Scores, SetScorer
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Measurement, Purpose, RolloutGroup
from drover.reward_servers.http.body import as_sets
from drover.reward_servers.serving.server import RewardServer, RewardWiring

LOOK_S = 0.5

log = logging.getLogger(__name__)


class Window:
    """Open within its context. `score` may be called by many threads at once."""

    def __init__(
        self, reward: str, scorer: Scorer | SetScorer, meter: Meter, *, max_batch: int, deadline_s: float
    ) -> None:
        """``max_batch`` samples go to the scorer at once; a call that takes longer than ``deadline_s`` is left behind."""
        self._reward, self._broker = reward, MemoryBroker("serve")
        keys = self._broker.keys
        self._put = self._broker.stream(keys.rollouts, groups=("reward",))
        self._answers = self._broker.stream(keys.measurements, "window")
        wiring = RewardWiring(
            rollouts=self._broker.stream(keys.rollouts, "reward"),
            measurements=self._broker.stream(keys.measurements),
            blobs=self._broker.blobs(),
            meter=meter,
        )
        self._server = RewardServer("serve", reward, scorer, wiring, max_batch=max_batch, deadline_s=deadline_s)
        self._numbers, self._lock, self._stop = count(1), Lock(), Event()
        self._waiting: dict[int, Future[Measurement]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="window")
        self._ends: list[Future[None]] = []

    def __enter__(self) -> Window:
        self._ends = [
            self._threads.submit(self._server.run, self._stop.is_set),
            self._threads.submit(self._deliver),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        self._broker.close()

    def check(self) -> None:
        """Raise whatever ended the server, which answers nobody from then on."""
        for end in self._ends:
            if end.done():
                end.result()

    def score(self, prompts: Sequence[str], media: np.ndarray, wait_s: float) -> Scores:
        """Of N samples, media [N, H, W, 3] uint8. Raises `ScoringFailed` when no answer comes within ``wait_s``."""
        number, answer = next(self._numbers), Future[Measurement]()
        parts, refs = tensors.pack(f"{number}", {"media": torch.from_numpy(media)})
        names, each = as_sets(prompts)
        with self._lock:
            self._waiting[number] = answer
        try:
            self._broker.blobs().put(f"{number}", parts)
            self._put.put(
                RolloutGroup(
                    epoch=0,
                    group=number,
                    attempt=1,
                    purpose=Purpose.EVAL,
                    task="",
                    rewards=(self._reward,),
                    version=0,
                    prompts=names,
                    samples_per_prompt=each,
                    fingerprint="",
                    media=refs["media"],
                    latents=None,
                    transitions=None,
                    worker="",
                    sampling_s=0.0,
                )
            )
            found = answer.result(wait_s)
        except TimeoutError as error:
            raise ScoringFailed(f"no scores within {wait_s:g} s") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)
            self._broker.blobs().drop([f"{number}"])  # whoever is no longer waited for is not scored
        return Scores(found.values, found.reasons, found.uncertainty)

    def _deliver(self) -> None:
        """Give every measurement to whoever waits for it."""
        while not self._stop.is_set():
            for delivery in self._answers.take(64, LOOK_S):
                measurement = delivery.message
                assert isinstance(measurement, Measurement), measurement
                self._answers.ack(delivery)
                with self._lock:
                    answer = self._waiting.pop(measurement.group, None)
                if answer is not None:
                    answer.set_result(measurement)
