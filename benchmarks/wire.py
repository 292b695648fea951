"""Measures traffic through Redis: bytes per trained sample against the fewest possible, and speed against plain redis-py.

    python -m benchmarks.wire [--quick] [--json] [--out FILE]

For the bytes, a real actor takes real orders on a real Redis, with a policy that has a model's sizes and computes nothing.
Pixels are left out of all columns: they go to the rewards. "Scripts" keep every latent of the chain and the one after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import redis
import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.measure import Spread
from drover.actors.sampler import Plain
from drover.actors.worker import Actor, ActorWiring
from drover.common import tensors
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.metrics import NullMeter
from drover.common.protocols import Canary, Prediction, Schedule
from drover.common.transport import keys
from drover.common.transport.codec import encode
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import GroupFailed, Measurement, Purpose, RolloutGroup, Stage, WorkItem
from drover.learner.intake.tasks import RecordSteps

BYTES_GOAL, SPEED_GOAL = 1.05, 0.7
FLOAT_BYTES = 4
PROMPT = "a red circle above a blue square"


@dataclass(frozen=True, slots=True)
class Case:
    """The sizes of a model, and the settings of a run's recording."""

    name: str
    latent_shape: tuple[int, ...]
    image_size: int  # pixels on a side
    steps: int
    record: RecordSteps
    samples: int
    storage: str


SHAPES = Case("shapes 32 px, 5 of 10 steps", (4, 8, 8), 32, 10, RecordSteps(count=5, first=7), 8, "float32")
SD2_RECORD = RecordSteps(count=5, first=47)
CASES = (
    SHAPES,
    Case("SD 2 512 px, 5 of 50 steps", (4, 64, 64), 512, 50, SD2_RECORD, 8, "float32"),
    Case("SD 2 512 px, 5 of 50 steps", (4, 64, 64), 512, 50, SD2_RECORD, 8, "float16"),
)


# ----------------------------------------------------------------------------------------- bytes per sample


class Sized:
    """A policy with a model's sizes that computes nothing: the number of bytes does not depend on their values."""

    parts = 1
    empty = ""

    def __init__(self, case: Case) -> None:
        self.schedule: Schedule = DiscreteSchedule(torch.linspace(0.999, 0.005, 1000, dtype=torch.float64))
        self.latent_shape = case.latent_shape
        self.trainable: nn.Module = nn.Linear(1, 1)
        self._side = case.image_size

    def encode(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {"text": torch.zeros(len(names), 1)}

    def predict(self, x: Tensor, time: Tensor, cond: object) -> Prediction:
        return Prediction(x0=x * 0.1, noise=x)

    def decode(self, x0: Tensor, cond: object) -> Pictures:
        return Pictures(np.zeros((len(x0), self._side, self._side, 3), np.uint8))

    def to_latents(self, media: Media) -> Tensor:
        return torch.zeros(len(media), *self.latent_shape)

    def output(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        return x

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise


class Published:
    """A weight subscriber with one version that needs no loading."""

    def latest(self) -> int:
        return 0

    def load(self, version: int, into: nn.Module) -> Canary | None:
        return None


def bytes_per_sample(url: str, case: Case, groups: int) -> dict[str, Any]:
    """Return the mean bytes of a sample: as stored, by Redis' count of its input, the fewest possible, and as scripts do."""
    broker = RedisBroker(url, "wire")
    readers = (keys.LEARNER, keys.reward_group("truth"))
    rollouts = broker.stream(broker.keys.rollouts, keys.LEARNER, "learner", groups=readers)
    scorer = broker.stream(broker.keys.rollouts, keys.reward_group("truth"), "truth", groups=readers)
    work = broker.stream(broker.keys.work, groups=(keys.ACTORS,))
    wiring = ActorWiring(
        work=broker.stream(broker.keys.work, keys.ACTORS, "actor-0"),
        rollouts=broker.stream(broker.keys.rollouts, groups=readers),
        failures=broker.stream(broker.keys.measurements, groups=(keys.LEARNER,)),
        blobs=broker.blobs(),
        weights=Published(),
        meter=NullMeter(),
    )
    sampler = Plain(Renoise(case.steps, Ddim(eta=1.0)))
    storage = tensors.dtype_named(case.storage)
    actor = Actor(
        "actor-0",
        Sized(case),
        sampler,
        wiring,
        first_condition="",
        fingerprint="0" * 16,
        storage=storage,
        device="cpu",
    )
    stored, counted, least = [], [], []
    for group in range(groups + 1):  # the first is not counted: it also sends the Lua scripts
        record = case.record.at(0, group)
        work.put(_order(group, case.samples, record))
        before = _redis_input(broker)
        assert actor.run_once(5.0)
        after = _redis_input(broker)
        (delivery,) = rollouts.take(1, 5.0)
        rollout = delivery.message
        assert isinstance(rollout, RolloutGroup) and rollout.transitions is not None and rollout.media is not None
        steps_bytes = len(broker.blobs().get(rollout.transitions.states.blob))
        if group:
            stored.append(steps_bytes + len(encode(rollout)))
            counted.append(after - before - rollout.media.nbytes - _asking_bytes(broker))
            least.append(_least_bytes(case, record))
        rollouts.ack(delivery)
        for to_score in scorer.take(1, 5.0):
            scorer.ack(to_score)
        broker.blobs().drop(rollout.blobs)
    broker.forget()
    broker.close()
    scripts = 2 * case.steps * prod(case.latent_shape) * FLOAT_BYTES + case.steps * FLOAT_BYTES
    per_sample = 1 / (groups * case.samples)
    return {
        "case": case.name,
        "storage": case.storage,
        "least": sum(least) * per_sample,
        "stored": sum(stored) * per_sample,
        "redis_input": sum(counted) * per_sample,
        "scripts": float(scripts),
        "stored_ratio": sum(stored) / sum(least),
        "redis_ratio": sum(counted) / sum(least),
        "scripts_ratio": scripts / (sum(least) * per_sample),
    }


def _order(group: int, samples: int, record: tuple[int, ...]) -> WorkItem:
    return WorkItem(
        epoch=0,
        group=group,
        purpose=Purpose.TRAIN,
        task="wire",
        rewards=("wire",),
        prompts=(PROMPT,),
        samples_per_prompt=samples,
        seed=0,
        draw=group,
        record=record,
        fingerprint="0" * 16,
    )


def _least_bytes(case: Case, record: Sequence[int]) -> int:
    """Return the fewest bytes of one group: each state at either end of a recorded step once, and a log-prob per step."""
    states = set(record) | {step + 1 for step in record}
    width = tensors.dtype_named(case.storage).itemsize
    return case.samples * (len(states) * prod(case.latent_shape) * width + len(record) * FLOAT_BYTES)


def _redis_input(broker: RedisBroker) -> int:
    """Return the bytes that Redis has read from its clients so far, by its own count."""
    return int(broker.link.client.info("stats")["total_net_input_bytes"])


def _asking_bytes(broker: RedisBroker) -> int:
    """Return the bytes that one call of `_redis_input` itself adds to the count."""
    before = _redis_input(broker)
    return _redis_input(broker) - before


# ------------------------------------------------------------------------------------------------- speed


def speeds(url: str, nbytes: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Return MB/s of payloads that are one by one stored, announced, taken, read, acknowledged and dropped."""
    broker = RedisBroker(url, "speed")
    bare = redis.Redis.from_url(url)
    count = _count(lambda n: _through_broker(broker, nbytes, n), seconds)
    found = measure.alternate(
        repeats,
        {
            "drover": lambda: nbytes * count / 1e6 / _through_broker(broker, nbytes, count),
            "bare": lambda: nbytes * count / 1e6 / _through_bare(bare, nbytes, count),
        },
    )
    broker.forget()
    broker.close()
    bare.close()
    pairs = measure.ratio(found["drover"], found["bare"])
    return {
        "nbytes": nbytes,
        "messages": count,
        "drover_mb_s": Spread.of(found["drover"]).as_dict(),
        "bare_mb_s": Spread.of(found["bare"]).as_dict(),
        "ratio": pairs.as_dict(),
    }


def _count(run: Callable[[int], float], seconds: float) -> int:
    """Return the number of messages that take about that many seconds."""
    run(2)
    return max(2, int(seconds / (run(4) / 4)))


def _through_broker(broker: RedisBroker, nbytes: int, count: int) -> float:
    """Return the seconds through drover: the message is a real one, its payload a tensor that is read back as a tensor."""
    writer = broker.stream(broker.keys.measurements, groups=(keys.LEARNER,))
    reader = broker.stream(broker.keys.measurements, keys.LEARNER, "learner")
    blobs, payload = broker.blobs(), torch.zeros(1, nbytes // FLOAT_BYTES)
    started = time.perf_counter()
    for number in range(count):
        parts, refs = tensors.pack(f"{number}/features", {"features": payload})
        blobs.put(f"{number}/features", parts)
        writer.put(_measurement(number, refs["features"]))
        (delivery,) = reader.take(1, 5.0)
        assert isinstance(delivery.message, Measurement) and delivery.message.features is not None
        tensors.read(blobs, delivery.message.features)
        reader.ack(delivery)
        blobs.drop([delivery.message.features.blob])
    elapsed_s = time.perf_counter() - started
    reader.close()
    return elapsed_s


def _measurement(number: int, features: Any) -> Measurement:
    return Measurement(
        epoch=0,
        group=number,
        attempt=1,
        purpose=Purpose.TRAIN,
        reward="truth",
        values=(0.0,),
        valid=(True,),
        reasons=("",),
        uncertainty=None,
        features=features,
        worker="truth-0",
        scoring_s=0.0,
        waited_s=0.0,
    )


def _through_bare(client: redis.Redis, nbytes: int, count: int) -> float:
    """Return the seconds through plain redis-py: the same commands, with a message and a payload that stay bytes."""
    failed = GroupFailed(epoch=0, group=0, attempt=1, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason="x" * 200)
    message, payload = encode(failed), bytes(nbytes)
    client.delete("bare")
    client.xgroup_create("bare", "group", id="0", mkstream=True)
    started = time.perf_counter()
    for number in range(count):
        client.set(f"bare:{number}", payload)
        client.xadd("bare", {"m": message})
        reply: Any = client.xreadgroup("group", "consumer", {"bare": ">"}, count=1, block=5000)
        entry, _ = reply[0][1][0]
        assert len(client.get(f"bare:{number}") or b"") == nbytes
        client.xack("bare", "group", entry)
        client.delete(f"bare:{number}")
    elapsed_s = time.perf_counter() - started
    client.delete("bare")
    return elapsed_s


# --------------------------------------------------------------------------------------------------- main


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    torch.set_num_threads(1)
    facts = measure.machine()
    with EmbeddedRedis() as server:
        groups = 4 if chosen.quick else 64
        sizes = [bytes_per_sample(server.url, case, groups if case is SHAPES else groups // 4 + 1) for case in CASES]
        payloads = (64 << 10, 1 << 20) if chosen.quick else (64 << 10, 1 << 20, 8 << 20)
        seconds, repeats = (0.05, 5) if chosen.quick else (0.15, 31)  # short turns: both sides meet the same load
        speed = [speeds(server.url, nbytes, seconds, repeats) for nbytes in payloads]
    measure.show(chosen, facts, {"bytes": sizes, "speed": speed}, [_bytes_table(sizes), _speed_table(speed)])


def _bytes_table(sizes: Sequence[dict[str, Any]]) -> Any:
    columns = ["kB per trained sample", "stored as", "least"]
    columns += [column for way in ("blob + message", "Redis input", "scripts") for column in (way, "ratio")]
    rows = [
        (
            found["case"],
            found["storage"],
            f"{found['least'] / 1e3:.2f}",
            f"{found['stored'] / 1e3:.2f}",
            f"{found['stored_ratio']:.3f}",
            f"{found['redis_input'] / 1e3:.2f}",
            f"{found['redis_ratio']:.3f}",
            f"{found['scripts'] / 1e3:.1f}",
            f"{found['scripts_ratio']:.1f}",
        )
        for found in sizes
    ]
    return measure.table(f"Bytes from actor to learner, goal: ratio <= {BYTES_GOAL}", columns, rows)


def _speed_table(speed: Sequence[dict[str, Any]]) -> Any:
    rows = [
        (
            f"{found['nbytes'] / (1 << 20):.4g} MiB",
            *(_spread(found[key]).text() for key in ("drover_mb_s", "bare_mb_s", "ratio")),
        )
        for found in speed
    ]
    columns = ("payload", "drover MB/s", "bare redis-py MB/s", "drover / bare")
    return measure.table(f"Through streams and blobs, goal: ratio >= {SPEED_GOAL}", columns, rows)


def _spread(found: dict[str, float]) -> Spread:
    return Spread(found["median"], found["min"], found["max"])


if __name__ == "__main__":
    main()
