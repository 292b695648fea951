"""Kills or cuts off parts of a run at random moments (strikes), and compares its weights with those of an undisturbed run."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.chaos.own_redis import OwnRedis
from benchmarks.chaos.service import Service
from benchmarks.chaos.three_nodes import ThreeNodes
from benchmarks.chaos.victims import Scene, Strike, Victim

GROUPS, SAMPLES, CHECKPOINT_EVERY = 4, 64, 5
EVALUATED = 2 * 512  # samples of the two evaluations
BETWEEN = 8  # updates between two strikes, on average
EDGE = 3  # updates without strikes at both ends
AHEAD = 2  # updates until a run has recovered: the first may already have had all its samples
STRUCK_S = 600.0  # time for the run to recover, on a busy machine

DRAWN = GROUPS * SAMPLES  # samples of an update


@dataclass(slots=True)
class Outcome:
    """The result of one run with strikes."""

    victim: str
    kills: int = 0
    recovered: int = 0
    recovery_s: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    lost: int = -1  # groups that ended otherwise than trained
    twice: int = -1  # groups trained beyond one for each place
    again: int = -1  # samples drawn beyond those of an undisturbed run
    most_again: int = 0
    same_bits: bool = False
    starts: int = 0
    usual_s: float = 0.0
    trouble: str = ""

    @property
    def balanced(self) -> bool:
        """Whether issued groups equal ended ones, with none open at the end."""
        ledger = self.ledger
        ended = sum(ledger.get(ending, 0) for ending in ("trained", "empty", "failed", "stale"))
        return bool(ledger) and ledger["issued"] == ended and ledger["in_flight"] == 0

    @property
    def passed(self) -> bool:
        """Whether the run recovered each time, lost nothing, trained nothing twice, and has the same weights."""
        whole = not self.trouble and self.balanced and self.same_bits and self.recovered == self.kills
        return whole and self.lost == self.twice == 0 and self.again <= self.most_again

    def quantile(self, share: float) -> float:
        """Return the quantile of the recovery times in seconds, by nearest rank."""
        ranked = sorted(self.recovery_s)
        return ranked[math.ceil(share * len(ranked)) - 1] if ranked else float("nan")

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "p50_s": self.quantile(0.5),
            "p95_s": self.quantile(0.95),
            "passed": self.passed,
        }


def iterations(kills: int) -> int:
    """Return the iterations that a run with that many strikes needs."""
    return kills * BETWEEN + 2 * EDGE + AHEAD


def run_arguments(kills: int) -> tuple[str, ...]:
    counts = {"iterations": iterations(kills), "groups": GROUPS, "samples": SAMPLES}
    counts["checkpoint-every"] = CHECKPOINT_EVERY
    return tuple(text for name, count in counts.items() for text in (f"--{name}", str(count)))


def undisturbed(folder: Path, kills: int, arguments: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Return the weights of a run without strikes: in one process, or in as many ranks as ``arguments`` say."""
    alone = () if "--learner-ranks" in arguments else ("--one-process",)
    given = (*run_arguments(kills), *arguments, "--pause-s", "0", *alone)
    with Service(folder, arguments=given) as service:
        service.until(lambda: service.finished, "end of the undisturbed run")
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "toy.safetensors")


def torment(
    victim: Victim,
    folder: Path,
    kills: int,
    reference: dict[str, torch.Tensor],
    *,
    seed: int,
    say: Callable[[str], None],
) -> Outcome:
    """Make one run with ``kills`` strikes. An error ends it and is noted in the outcome's ``trouble``."""
    outcome = Outcome(victim.name, most_again=kills * victim.most)
    with ExitStack() as stack:
        scene = _scene(victim, folder, kills, random.Random(seed), stack)
        try:
            _strike_at_random(scene, victim.strike, kills, outcome, say)
            scene.service.until(lambda: scene.service.finished, "end of the run")
            _judge(scene.service, outcome, reference)
        except (TimeoutError, RuntimeError, OSError) as error:
            outcome.trouble = f"{type(error).__name__}: {error}"
        outcome.starts = scene.service.starts
    return outcome


def _scene(victim: Victim, folder: Path, kills: int, chance: random.Random, stack: ExitStack) -> Scene:
    """Start the run, with a Redis or a cluster of its own if the victim needs it."""
    given = (*run_arguments(kills), *victim.arguments)
    beside = folder.with_name(f"{folder.name}-ground")
    if victim.three_nodes:
        cluster = stack.enter_context(ThreeNodes(beside))
        service = Service(folder, arguments=given, env=cluster.env, prefix=cluster.head.prefix, beside=cluster.look)
        return Scene(stack.enter_context(service), chance, None, cluster)
    if victim.own_redis:
        beside.mkdir(parents=True)
        redis = stack.enter_context(OwnRedis(beside))
        service = Service(folder, arguments=given, env={"DROVER_REDIS_URL": redis.url})
        return Scene(stack.enter_context(service), chance, redis, None)
    return Scene(stack.enter_context(Service(folder, arguments=given)), chance, None, None)


def _strike_at_random(scene: Scene, strike: Strike, kills: int, outcome: Outcome, say: Callable[[str], None]) -> None:
    service, chance = scene.service, scene.chance
    usual_s = 0.3
    for moment in sorted(chance.sample(range(EDGE, iterations(kills) - EDGE - AHEAD), kills)):
        service.until(_reaches(service, moment), f"update {moment}")
        time.sleep(chance.uniform(0.0, usual_s))
        service.look()
        usual_s = usual(service)
        before, struck_s = service.furthest, time.monotonic()
        for name, value in strike(scene).items():
            outcome.measured.setdefault(name, []).append(value)
        outcome.kills += 1
        goal = before + AHEAD
        service.until(_reaches(service, goal), f"update {goal} after a strike", patience_s=STRUCK_S)
        reached_s = next(update.at_s for update in service.updates if update.number >= goal)
        outcome.recovered += 1
        outcome.recovery_s.append(max(0.0, reached_s - struck_s - AHEAD * usual_s))
        say(f"{outcome.victim} {outcome.kills}/{kills} at update {before}: {outcome.recovery_s[-1]:.1f} s")
    outcome.usual_s = usual(service)


def _reaches(service: Service, number: int) -> Callable[[], bool]:
    return lambda: service.furthest >= number


def usual(service: Service) -> float:
    """Return the median seconds from one update to the next."""
    gaps = [b.at_s - a.at_s for a, b in zip(service.updates, service.updates[1:], strict=False) if b.number > a.number]
    return statistics.median(gaps) if gaps else 0.3


def _judge(service: Service, outcome: Outcome, reference: dict[str, torch.Tensor]) -> None:
    ledger = {name: int(count) for name, count in service.summary["ledger"].items()}
    places = int(service.summary["updates"]) * GROUPS
    outcome.ledger = ledger
    outcome.lost = ledger["issued"] - ledger["trained"]
    outcome.twice = max(0, ledger["trained"] - places)
    outcome.again = sum(samples for _, samples in service.work("actor")) - places * SAMPLES - EVALUATED
    found = weights(service.folder)
    outcome.same_bits = found.keys() == reference.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in reference.items()
    )
