"""Declare every metric once, and account for a role's time by part. Knows no monitoring system.

Names follow Prometheus: base units, the unit as suffix, ``_total`` on counters. Labels are bounded sets, never ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from drover.common.protocols import Meter
from drover.common.types import Ending

Clock = Callable[[], float]
"""Seconds from an arbitrary origin, never going back."""

OTHER = "other"
PARTS = ("compute", "wait_reward", "wait_data", "data", "weights", "back_pressure", "checkpoint")

ENDS = ("finished", "stopped", "failed")

LABEL_VALUES: Mapping[str, frozenset[str] | None] = {
    "role": frozenset({"actor", "evaluator", "reward", "learner", "driver"}),
    "part": frozenset({*PARTS, OTHER}),
    "ending": frozenset(ending.value for ending in Ending),
    "how": frozenset(ENDS),
    "reward": None,
    "set": None,
    "stream": None,
    "reader": None,
    "server": None,
    "reason": None,
    "version": None,
}
"""The values of each label. None: words of the recipe or its rewards, or numbers of servers, few but not known here."""


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The declaration of one metric.

    Example: ``Metric(name="drover_lag_versions", kind=Kind.GAUGE, unit="versions", help="Weight versions behind.")``.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""  # "" where the value has no unit, or the own unit of a reward
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds in the metric's unit, for histograms

    def __post_init__(self) -> None:
        stem = self.name.removesuffix("_total")
        assert self.name.startswith("drover_"), self.name
        assert self.name.endswith("_total") == (self.kind is Kind.COUNTER), self.name
        assert not self.unit or stem.endswith(f"_{self.unit}"), (self.name, self.unit)
        assert bool(self.buckets) == (self.kind is Kind.HISTOGRAM), self.name
        assert all(label in LABEL_VALUES for label in self.labels), self.labels


def check_call(verb: str, metric: object, labels: Mapping[str, str]) -> Metric:
    """Return the metric if ``verb`` ("add" or "set") and the labels fit its declaration. Raises ValueError otherwise."""
    if not isinstance(metric, Metric):
        raise ValueError(f"{metric!r} is no declared metric; pass one of the constants of common/metrics.py.")
    wanted = "set" if metric.kind is Kind.GAUGE else "add"
    if verb != wanted:
        raise ValueError(f"{metric.name} is a {metric.kind}; use meter.{wanted}, not meter.{verb}.")
    if labels.keys() != set(metric.labels):
        raise ValueError(f"{metric.name} has the labels {list(metric.labels)}, got {sorted(labels)}.")
    for label, value in labels.items():
        allowed = LABEL_VALUES[label]
        if allowed is not None and value not in allowed:
            raise ValueError(f"{metric.name}: {label}={value!r} is none of {sorted(allowed)}.")
    return metric


class NullMeter:
    """A `Meter` that keeps no values. It checks calls like the others, so that a wrong label also fails without monitoring."""

    def add(self, metric: object, value: float = 1.0, **labels: str) -> None:
        check_call("add", metric, labels)

    def set(self, metric: object, value: float, **labels: str) -> None:
        check_call("set", metric, labels)


# ---------------------------------------------------------------------------------------- declarations


def _counter(name: str, unit: str, help: str, *labels: str) -> Metric:
    return Metric(name=f"drover_{name}_total", kind=Kind.COUNTER, unit=unit, help=help, labels=labels)


def _gauge(name: str, unit: str, help: str, *labels: str) -> Metric:
    return Metric(name=f"drover_{name}", kind=Kind.GAUGE, unit=unit, help=help, labels=labels)


def _histogram(name: str, unit: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name=f"drover_{name}", kind=Kind.HISTOGRAM, unit=unit, help=help, labels=labels, buckets=buckets)


# From one network round trip to a video sampled on a slow GPU, about two buckets a decade.
_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

GROUPS_ISSUED = _counter("groups_issued", "", "Groups ordered for training.")
GROUPS_ENDED = _counter("groups_ended", "", "Groups by ending; issued = in flight + all endings.", "ending")
GROUPS_IN_FLIGHT = _gauge("groups_in_flight", "", "Groups issued and not yet ended.")
SAMPLES = _counter("samples", "", "Samples drawn by actors.")
SAMPLING_S = _histogram("sampling_seconds", "seconds", "Time to sample one group.", _SECONDS)
TRAINED_SAMPLES = _counter("trained_samples", "", "Samples of the iterations that the learner finished.")

SCORING_S = _histogram("scoring_seconds", "seconds", "Time to score one batch.", _SECONDS, "reward")
REWARD_DELAY_S = _histogram(
    "reward_delay_seconds", "seconds", "From a group's arrival at a reward server to its scoring.", _SECONDS, "reward"
)
SCORED_SAMPLES = _counter("scored_samples", "", "Samples that reward servers answered for, masked ones too.", "reward")
REWARD_MEAN = _gauge("reward_mean", "", "Mean of the last trained batch, in the reward's own unit.", "reward")
HELDOUT_MEAN = _gauge("heldout_reward_mean", "", "Mean of the newest evaluation on held-out prompts.", "set", "reward")
MASKED_SAMPLES = _counter("masked_samples", "", "Samples without a valid value.", "reward", "reason")

QUEUE_BACKLOG = _gauge(
    "queue_backlog_messages", "messages", "Messages this reader has not yet acknowledged.", "stream", "reader"
)
QUEUE_AGE_S = _gauge(
    "queue_age_seconds",
    "seconds",
    "Age of the oldest message this reader has not yet acknowledged.",
    "stream",
    "reader",
)
REDELIVERIES = _counter("redeliveries", "", "Deliveries after the first attempt.", "stream")
DEAD_LETTERS = _counter("dead_letters", "", "Messages of that stream given up, kept as dead letters.", "stream")
REDIS_MEMORY_BYTES = _gauge("redis_memory_bytes", "bytes", "Memory that a Redis uses, for all its users.", "server")
REDIS_LIMIT_BYTES = _gauge("redis_memory_limit_bytes", "bytes", "Memory that it may use; 0 for no limit.", "server")
BLOB_READ_BYTES = _counter("blob_read_bytes", "bytes", "Tensor bytes fetched.", "role")
BLOB_WRITTEN_BYTES = _counter("blob_written_bytes", "bytes", "Tensor bytes stored.", "role")

WEIGHT_VERSION = _gauge("weight_version", "", "Newest weight version in use.", "role")
WEIGHT_SYNC_S = _histogram("weight_sync_seconds", "seconds", "Time to publish or load one version.", _SECONDS, "role")
CANARY = _gauge(
    "canary_tolerance_ratio", "ratio", "Canary here against the learner's, over what may be; above 1 it fails."
)
LAG = _gauge("lag_versions", "versions", "Largest age of the weights that sampled the last trained batch.")
LAG_BOUND = _gauge("lag_bound_versions", "versions", "The largest age that the run allows.")

UPDATES = _counter("updates", "", "Learner iterations finished.")
OPTIMIZER_STEP_S = _histogram("optimizer_step_seconds", "seconds", "Time of one optimizer step.", _SECONDS)
RATIO_FIRST = _gauge(
    "first_step_probability_ratio", "ratio", "Mean probability ratio of the first optimizer step; 1 on policy."
)
CLIP_FRACTION = _gauge(
    "clipped_ratio", "ratio", "Share of clipped probability ratios, mean over the iteration's optimizer steps."
)
GRAD_NORM = _gauge("gradient_norm", "", "Gradient norm before clipping, mean over the iteration's optimizer steps.")
LOSS = _gauge("loss", "", "Loss, mean over the iteration's optimizer steps.")
OVEROPTIMISATION_GAP = _gauge(
    "overoptimisation_gap",
    "",
    "Held-out gain of the learned reward minus that of the true one, each in its first standard deviations.",
)

ROLE_S = _counter(
    "role_seconds", "seconds", "Time of a role by part; the parts add up to the time since its start.", "role", "part"
)
WORKERS = _gauge("workers", "", "Processes that serve metrics.", "role")
WORKER_DEATHS = _counter("worker_deaths", "", "Processes that died and were replaced.", "role")
RESERVED_CPUS = _gauge("reserved_cpus", "", "CPUs set aside for the role's processes.", "role")
RESERVED_GPUS = _gauge("reserved_gpus", "", "GPUs set aside for the role's processes.", "role")
RUN_ENDED = _gauge("run_ended", "", "1 once the run has ended that way, until its driver is gone; else 0.", "how")
BUILD_INFO = _gauge("build_info", "", "Always 1; the label says what runs.", "version")

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


# --------------------------------------------------------------------------------------------- account


class Account:
    """Counts the seconds of one role's loop by part. Owned by the thread that runs the loop.

    At each moment exactly one part is charged: the innermost open one, else ``other``. The parts therefore add up to
    the time since the account was made.
    """

    def __init__(
        self, role: str, meter: Meter, *, parts: tuple[str, ...] = PARTS, clock: Clock = time.perf_counter
    ) -> None:
        self._role = role
        self._meter = meter
        self._clock = clock
        self._seconds = dict.fromkeys((*parts, OTHER), 0.0)
        self._open = [OTHER]
        self._mark = clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the block to ``name``; the part around it is not charged until the block ends or fails."""
        if name not in self._seconds:
            raise ValueError(f"{name!r} is no part of this account; it has {list(self._seconds)}.")
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds by part up to now, ``other`` included."""
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        now = self._clock()
        elapsed_s, self._mark = now - self._mark, now
        self._seconds[self._open[-1]] += elapsed_s
        self._meter.add(ROLE_S, elapsed_s, role=self._role, part=self._open[-1])
