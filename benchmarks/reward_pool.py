"""Measures a reward server between real streams: its rate against the same scorer offline, its delay, and its own CPU.

    python -m benchmarks.reward_pool [--quick] [--json] [--out FILE]

One server runs in a process of its own, on a real Redis, with messages as actors send them. *Offline* is the scorer in a
loop over full batches in memory. *HTTP* is the way of scripts: one picture a request to an `http.server` with the same
scorer.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import http_scorer, measure
from benchmarks.measure import Spread
from benchmarks.scorers import Sleeping, TwoTowersScorer
from drover.common.media.blobs import pack
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.metrics import NullMeter
from drover.common.prompts import Prompt
from drover.common.protocols import Scorer, Scores
from drover.common.transport import keys
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import Measurement, MediaRef, Purpose, RolloutGroup
from drover.reward_servers.serving.groups import Groups
from drover.reward_servers.serving.server import RewardServer

RATE_GOAL, DELAY_GOAL, LOAD = 0.9, 2.0, 0.8
RUN = REWARD = "pool"
PROMPT = "a red circle above a blue square"
SAMPLES = 8  # samples of a group
BLOBS = 16  # distinct media, which groups share: sharing does not change the cost of reading
IN_FLIGHT = 8
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Case:
    """A scorer, the pictures it gets, and the samples of its calls."""

    name: str
    scorer: Callable[[], Scorer]
    side: int  # pixels on a side
    max_batch: int
    calls: int  # full batches of one turn, offline and in the pool
    requests: int  # HTTP requests of one turn
    arrivals: int  # groups of one turn in which the delay is measured


CASES = (
    Case("20 ms + 1 ms a sample, 64 px", partial(Sleeping, 0.02, 0.001), 64, 128, 16, 60, 600),
    Case("20 ms + 1 ms a sample, 512 px", partial(Sleeping, 0.02, 0.001), 512, 128, 16, 60, 600),
    Case("two towers on the CPU, 64 px", TwoTowersScorer, 64, 64, 16, 160, 400),
    Case("two towers on the CPU, 512 px", TwoTowersScorer, 512, 64, 8, 80, 200),
)


# -------------------------------------------------------------------------------------------------- pool


class Metered:
    """A scorer that sums the CPU time of its calls."""

    def __init__(self, scorer: Scorer, spent_s: Any) -> None:
        self._scorer, self._spent_s = scorer, spent_s

    def __call__(self, prompts: Sequence[Prompt], media: Media) -> Scores:
        started_s = time.thread_time()
        scores = self._scorer(prompts, media)
        self._spent_s.value += time.thread_time() - started_s
        return scores


def serve(url: str, case: Case, ready: Any, stop: Any, scorer_s: Any, process_s: Any) -> None:
    """Run the server in its process, until ``stop``. ``scorer_s`` and ``process_s`` get the CPU seconds of each."""
    torch.set_num_threads(1)
    broker = RedisBroker(url, RUN)
    inbox = Groups(
        name="pool-0",
        reward=REWARD,
        rollouts=broker.stream(broker.keys.rollouts, keys.reward_group(REWARD), "pool-0"),
        measurements=broker.stream(broker.keys.measurements, groups=(keys.LEARNER,)),
        blobs=broker.blobs(),
        meter=NullMeter(),
    )
    scorer = Metered(case.scorer(), scorer_s)
    server = RewardServer(REWARD, scorer, inbox, inbox.meter, max_batch=case.max_batch)
    ready.set()

    def stopping() -> bool:
        process_s.value = time.process_time()
        return bool(stop.is_set())

    server.run(stopping)
    broker.close()


class Pool:
    """A running server, with the stream of rollouts before it and the stream of measurements behind it."""

    def __init__(self, url: str, case: Case) -> None:
        self._broker, self._case = RedisBroker(url, RUN), case
        self._rollouts = self._broker.stream(self._broker.keys.rollouts, groups=(keys.reward_group(REWARD),))
        self._measurements = self._broker.stream(self._broker.keys.measurements, keys.LEARNER, "learner")
        self._media, self._group = [_store(self._broker, self._case, number) for number in range(BLOBS)], 0
        self._scorer_s, self._process_s = SPAWN.Value("d", 0.0), SPAWN.Value("d", 0.0)
        self._stop, ready = SPAWN.Event(), SPAWN.Event()
        shared = (ready, self._stop, self._scorer_s, self._process_s)
        self._process = SPAWN.Process(target=serve, args=(url, case, *shared), daemon=True)
        self._process.start()
        assert ready.wait(120), "the server did not start"

    def close(self) -> None:
        self._stop.set()
        self._process.join(30)
        self._broker.forget()
        self._broker.close()

    def own_cpu_s(self) -> float:
        """Return the CPU seconds of the server's process so far, without those of its scorer."""
        time.sleep(0.6)  # the server updates them at least every half second
        return float(self._process_s.value - self._scorer_s.value)

    def rate(self) -> float:
        """Return samples/s of a saturated server, from the answers of the first call to those of the last but one."""
        groups = self._case.calls * self._case.max_batch // SAMPLES
        for _ in range(groups):
            self._put()
        calls: dict[
            float, tuple[float, int]
        ] = {}  # seconds of scoring, equal in all answers of a call -> (time, groups)
        for _ in range(groups):
            measurement, at_s = self._take(30.0)
            first_s, so_far = calls.get(measurement.scoring_s, (at_s, 0))
            calls[measurement.scoring_s] = (first_s, so_far + 1)
        ends_s, sizes = zip(*list(calls.values())[:-1], strict=True)
        return float(SAMPLES * sum(sizes[1:]) / (ends_s[-1] - ends_s[0]))

    def delays(self, groups_s: float, seed: int) -> list[float]:
        """Return for each group the seconds from its due time until its measurement is read. Groups are due at random times."""
        started_s, first = time.monotonic(), self._group
        due = [started_s + at_s for at_s in _arrivals(groups_s, self._case.arrivals, seed)]
        delays: list[float] = []
        while len(delays) < len(due):
            put, now_s = self._group - first, time.monotonic()
            if put < len(due) and due[put] <= now_s:
                self._put()
                continue
            for delivery in self._measurements.take(100, due[put] - now_s if put < len(due) else 30.0):
                assert isinstance(delivery.message, Measurement)
                delays.append(time.monotonic() - due[delivery.message.group - first])
                self._measurements.ack(delivery)
        return delays

    def _put(self) -> None:
        self._rollouts.put(_rollout(self._group, self._media[self._group % BLOBS]))
        self._group += 1

    def _take(self, wait_s: float) -> tuple[Measurement, float]:
        (delivery,) = self._measurements.take(1, wait_s)
        at_s = time.monotonic()
        self._measurements.ack(delivery)
        assert isinstance(delivery.message, Measurement) and all(delivery.message.valid)
        return delivery.message, at_s


def _pictures(case: Case, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, case.side, case.side, 3), np.uint8)


def _store(broker: RedisBroker, case: Case, number: int) -> MediaRef:
    ((blob, parts),), ref = pack(Pictures(_pictures(case, SAMPLES, number)), f"{number}/media")
    broker.blobs().put(blob, parts)
    return ref


def _rollout(group: int, media: MediaRef) -> RolloutGroup:
    return RolloutGroup(
        epoch=0,
        group=group,
        attempt=1,
        purpose=Purpose.TRAIN,
        task=REWARD,
        rewards=(REWARD,),
        version=0,
        prompts=(PROMPT,),
        samples_per_prompt=SAMPLES,
        fingerprint="0" * 16,
        media=media,
        latents=None,
        transitions=None,
        worker="actor-0",
        sampling_s=0.0,
    )


# ---------------------------------------------------------------------------------------------- comparisons


def offline(case: Case, scorer: Scorer) -> tuple[float, float, float]:
    """Return (samples/s, median seconds of a full call, median seconds of a call with one group) of the scorer alone."""
    pixels, prompts = _pictures(case, case.max_batch, 0), [Prompt(PROMPT)] * case.max_batch
    full_s, single_s = (
        [_seconds(scorer, prompts[:n], Pictures(pixels[:n])) for _ in range(case.calls)] for n in (None, SAMPLES)
    )
    return case.max_batch * len(full_s) / sum(full_s), statistics.median(full_s), statistics.median(single_s)


def _seconds(scorer: Scorer, prompts: Sequence[Prompt], media: Media) -> float:
    started_s = time.perf_counter()
    scorer(prompts, media)
    return time.perf_counter() - started_s


def ideal_p99_s(case: Case, groups_s: float, seeds: Sequence[int], price: tuple[float, float]) -> float:
    """Return the 99th percentile of the delay, for the same arrivals, of an ideal server without any cost of its own.

    The ideal server scores all waiting groups, up to a full call, as soon as its scorer is free. A call takes price[0]
    seconds and price[1] for each group.
    """
    found = []
    for seed in seeds:
        arrivals, delays, free_s, first = _arrivals(groups_s, case.arrivals, seed), [], 0.0, 0
        while first < len(arrivals):
            starts_s = max(free_s, arrivals[first])
            batch = [at_s for at_s in arrivals[first : first + case.max_batch // SAMPLES] if at_s <= starts_s]
            free_s = starts_s + price[0] + price[1] * len(batch)
            delays += [free_s - at_s for at_s in batch]
            first += len(batch)
        found.append(statistics.quantiles(delays, n=100)[98])
    return statistics.median(found)


def _arrivals(groups_s: float, count: int, seed: int) -> list[float]:
    """Return ``count`` random arrival times in seconds from now, on average ``groups_s`` groups a second."""
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.expovariate(groups_s) for _ in range(count)))


# --------------------------------------------------------------------------------------------------- main


def measured(url: str, case: Case, repeats: int) -> dict[str, Any]:
    """Measure one case."""
    scorer, pool = case.scorer(), Pool(url, case)
    pictures = _pictures(case, case.requests, 0)
    with http_scorer.serving(case.scorer) as port:
        rates: dict[str, list[Any]] = measure.alternate(
            repeats,
            {
                "offline": lambda: offline(case, scorer),
                "pool": pool.rate,
                "http": lambda: http_scorer.rate(port, PROMPT, pictures, 1),
                "http_many": lambda: http_scorer.rate(port, PROMPT, pictures, IN_FLIGHT),
            },
        )
    best, full_s, single_s = zip(*rates["offline"], strict=True)
    call_s, one_s = statistics.median(full_s), statistics.median(single_s)
    group_s = (call_s - one_s) / (case.max_batch // SAMPLES - 1)
    before_s, groups_s = pool.own_cpu_s(), LOAD * statistics.median(rates["pool"]) / SAMPLES
    turns = [pool.delays(groups_s, seed) for seed in range(repeats)]
    own_s = (pool.own_cpu_s() - before_s) / (repeats * case.arrivals)
    pool.close()
    cuts = [statistics.quantiles(turn, n=100) for turn in turns]
    return {
        "case": case.name,
        "max_batch": case.max_batch,
        "offline_samples_s": Spread.of(best).as_dict(),
        "pool_samples_s": Spread.of(rates["pool"]).as_dict(),
        "ratio": measure.ratio(rates["pool"], best).as_dict(),
        "http_samples_s": Spread.of(rates["http"]).as_dict(),
        "http_many_samples_s": Spread.of(rates["http_many"]).as_dict(),
        "over_http": measure.ratio(rates["pool"], rates["http"]).as_dict(),
        "over_http_many": measure.ratio(rates["pool"], rates["http_many"]).as_dict(),
        "call_s": call_s,
        "p50_s": Spread.of([cut[49] for cut in cuts]).as_dict(),
        "p99_s": Spread.of([cut[98] for cut in cuts]).as_dict(),
        "p99_calls": Spread.of([cut[98] / call_s for cut in cuts]).as_dict(),
        "ideal_p99_calls": ideal_p99_s(case, groups_s, range(repeats), (one_s - group_s, group_s)) / call_s,
        "own_cpu_s": own_s,
    }


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    torch.set_num_threads(1)
    facts = measure.machine()
    repeats = 1 if chosen.quick else 5
    with EmbeddedRedis() as server:
        found = [measured(server.url, case, repeats) for case in (CASES[::2] if chosen.quick else CASES)]
    measure.show(chosen, facts, {"pools": found}, [_rate_table(found), _delay_table(found)])


def _rate_table(found: Sequence[dict[str, Any]]) -> Any:
    names = ("offline_samples_s", "pool_samples_s", "ratio", "http_samples_s", "over_http", "http_many_samples_s")
    rows = [(one["case"], *(_text(one[name]) for name in (*names, "over_http_many"))) for one in found]
    columns = ("samples/s", "offline", "pool", "pool / offline", "HTTP", "pool / HTTP", f"HTTP x {IN_FLIGHT}")
    return measure.table(
        f"Saturated, goal: pool / offline >= {RATE_GOAL}", (*columns, f"pool / HTTP x {IN_FLIGHT}"), rows
    )


def _delay_table(found: Sequence[dict[str, Any]]) -> Any:
    rows = [
        (
            one["case"],
            measure.significant(1000 * one["call_s"]),
            *(_text({key: 1000 * value for key, value in one[name].items()}) for name in ("p50_s", "p99_s")),
            _text(one["p99_calls"]),
            measure.significant(one["ideal_p99_calls"]),
            measure.significant(1000 * one["own_cpu_s"]),
        )
        for one in found
    ]
    columns = (
        f"at {LOAD:.0%} load",
        "full call, ms",
        "p50, ms",
        "p99, ms",
        "p99 / full call",
        "ideal",
        "own CPU, ms a group",
    )
    return measure.table(f"Delay of random arrivals, goal: p99 <= {DELAY_GOAL} full calls", columns, rows)


def _text(found: dict[str, float]) -> str:
    return Spread(found["median"], found["min"], found["max"]).text()


if __name__ == "__main__":
    main()
