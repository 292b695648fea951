"""A run's reports, made up: two rewards that rise, a lag within its bound, accounts that add up."""

from __future__ import annotations

import math
import random

from drover.common.types import Report

SECONDS_PER_UPDATE = 4.0
SHARES = {
    "actor": {"compute": 0.7, "wait_data": 0.1, "weights": 0.05, "back_pressure": 0.1, "other": 0.05},
    "reward": {"compute": 0.3, "wait_data": 0.65, "other": 0.05},
    "learner": {"compute": 0.5, "wait_reward": 0.1, "wait_data": 0.25, "weights": 0.1, "other": 0.05},
}


def report(kind: str, at_s: float, text: str = "", /, **scalars: float) -> Report:
    """Keyword names have ``__`` for the slash: ``reward__colour__mean=0.4``."""
    named = {key.replace("__", "/"): float(value) for key, value in scalars.items()}
    return Report(kind=kind, at_s=at_s, version=0, scalars=named, text=text)


def update(index: int, total: int, at_s: float, rng: random.Random) -> Report:
    progress = 1 - math.exp(-index / 20)
    scalars = {
        "update": index,
        "updates_total": total,
        "reward/colour/mean": 0.31 + 0.5 * progress + rng.gauss(0, 0.02),
        "reward/colour/std": 0.2 - 0.1 * progress,
        "reward/colour/valid_share": 1.0,
        "reward/jpeg_size/mean": -31.0 + 6 * progress + rng.gauss(0, 0.5),
        "reward/jpeg_size/std": 4.0,
        "reward/jpeg_size/valid_share": 0.98,
        "ratio_first": 1.0 + rng.gauss(0, 2e-5),
        "clip_fraction_first": 0.0,
        "ratio": 1.0 + rng.gauss(0, 2e-4),
        "clip_fraction": 0.08 + rng.gauss(0, 0.01),
        "approx_kl": 2e-5 * (1 + rng.random()),
        "grad_norm": 0.4,
        "loss": -0.01,
        "lag_max": min(index - 1, 1),
        "lag_mean": min(index - 1, 1) * 0.7,
        "max_lag": 1,
        "samples": 256 * index,
        "samples_per_s": 64 + rng.gauss(0, 3),
        "ledger/issued": 32 * index + 24,
        "ledger/in_flight": 24,
        "ledger/trained": 32 * index - 2,
        "ledger/empty": 1,
        "ledger/failed": 1,
        "ledger/stale": 0,
        "pool/rollout": 3,
        "pool/reward/colour": 1,
        "pool/reward/jpeg_size": 1,
        "queue/work/backlog": 12,
        "queue/work/age_s": 1.4,
        "queue/colour/backlog": 3,
        "queue/colour/age_s": 0.2,
        "weights_sync_s": 0.05,
    }
    for role, shares in SHARES.items():
        for part, share in shares.items():
            scalars[f"account/{role}/{part}"] = share * SECONDS_PER_UPDATE * index
    return Report(kind="update", at_s=at_s, version=index, scalars=scalars, text="")


def run(updates: int = 50, total: int = 50) -> list[Report]:
    """The reports of a run, whole if ``updates`` is ``total``, else stopped after that many."""
    rng = random.Random(7)
    reports = [
        report("phase", 0.0, "loading the pipeline"),
        report("phase", 9.0, "evaluating before training"),
        report("eval", 20.0, "before", update=0, **_held_out(0.30, -31.2)),
    ]
    for index in range(1, updates + 1):
        reports.append(update(index, total, 20.0 + SECONDS_PER_UPDATE * index, rng))
        if index == 25:
            reports.append(report("event", 121.0, "rollout worker 2 died; replaced in 3.1 s"))
            reports.append(report("eval", 122.0, "during", update=25, **_held_out(0.66, -26.9)))
    if updates == total:
        end_s = 30.0 + SECONDS_PER_UPDATE * total
        reports.append(report("eval", end_s, "after", update=total, **_held_out(0.77, -25.4)))
        reports.append(report("end", end_s + 1, f"finished {total} updates"))
    return reports


def _held_out(colour: float, jpeg_size: float) -> dict[str, float]:
    means = {"heldout__colour__mean": colour, "heldout__jpeg_size__mean": jpeg_size}
    return means | {"heldout__colour__count": 64, "heldout__jpeg_size__count": 64}
