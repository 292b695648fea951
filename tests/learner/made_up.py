"""Groups as the learner gets them: made up where only their messages matter, really sampled where tensors do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from drover.common import tensors
from drover.common.diffusion.chain import Recording
from drover.common.policies import conditioning
from drover.common.protocols import BlobStore, Kernel, Policy
from drover.common.types import GroupFailed, Measurement, Purpose, RolloutGroup, Stage, Transitions
from drover.learner.examples import Credit, Measured, MeasuredGroup
from tests.actors.drawn import sample
from tests.common.media.made_up import pictures_in


def rollout(group: int, *, samples: int = 4, attempt: int = 1, epoch: int = 0, **fields) -> RolloutGroup:
    """A group without recorded steps; its media lies in blob ``GROUP.ATTEMPT``."""
    usual = {
        "purpose": Purpose.TRAIN, "version": 0, "prompts": ("a",), "samples_per_prompt": samples, "fingerprint": "f",
        "task": "t", "rewards": ("point",),
        "media": pictures_in(f"{group}.{attempt}", samples, 1, 2, 3), "latents": None,
        "transitions": None, "worker": "actor-0", "sampling_s": 0.1,
    }  # fmt: skip
    return RolloutGroup(epoch=epoch, group=group, attempt=attempt, **{**usual, **fields})


def measurement(
    group: int,
    values: Sequence[float],
    *,
    reward: str = "point",
    attempt: int = 1,
    epoch: int = 0,
    purpose: Purpose = Purpose.TRAIN,
    **fields,
) -> Measurement:
    """A reward server's measurement with these values; NaN values are masked."""
    return Measurement(
        epoch=epoch, group=group, attempt=attempt, purpose=purpose, reward=reward, values=tuple(values),
        valid=tuple(not math.isnan(v) for v in values), reasons=tuple("nan" if math.isnan(v) else "" for v in values),
        uncertainty=None, worker="reward-0", scoring_s=0.0, waited_s=0.0, **fields,
    )  # fmt: skip


def failure(group: int, *, attempt: int = 1, epoch: int = 0, reason: str = "latents are not finite") -> GroupFailed:
    return GroupFailed(
        epoch=epoch, group=group, attempt=attempt, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason=reason
    )


def measured(group: int, **values: Sequence[float]) -> MeasuredGroup:
    """A complete group: ``measured(3, point=[1, 2], size=[5, 6])``."""
    (samples,) = {len(column) for column in values.values()}
    return MeasuredGroup(
        rollout(group, samples=samples, rewards=tuple(values)),
        {name: answer(column) for name, column in values.items()},
    )


def record(
    policy: Policy, kernel: Kernel, group: int, *, samples: int, steps: Sequence[int], prompt: str = "a red circle"
) -> Recording:
    """Recorded steps of really sampled trajectories."""
    recording = sample(
        policy, kernel, conditioning.rows(policy.encode([prompt]), [0] * samples),
        indices=range(samples), record=steps, seed=0, group=group,
    ).recording  # fmt: skip
    assert recording is not None
    return recording


def recorded(policy: Policy, kernel: Kernel, blobs: BlobStore, group: int, *, samples: int, steps, **fields):
    """Sampled steps as `record` makes them, in a message whose tensors are in the blob ``steps.GROUP``."""
    made = record(policy, kernel, group, samples=samples, steps=steps)
    parts, refs = tensors.pack(f"steps.{group}", {"states": made.states, "log_probs": made.log_probs})
    blobs.put(f"steps.{group}", parts)
    usual = {
        "steps": made.steps, "times": made.times, "next_times": made.next_times, "before": made.before,
        "after": made.after, "states": refs["states"], "log_probs": refs["log_probs"],
    }  # fmt: skip
    return rollout(group, samples=samples, prompts=("a red circle",), transitions=Transitions(**{**usual, **fields}))


def answer(values: Sequence[float]) -> Measured:
    """One reward's answer as arrays; NaN values are masked."""
    column = np.array(values, np.float64)
    return Measured(column, ~np.isnan(column))


def credit(*weights: Sequence[float]) -> Credit:
    """A weight for every sample of each group, all counted."""
    columns = [np.array(column, np.float64) for column in weights]
    return Credit.per_sample(columns, [np.ones(len(column), bool) for column in columns])


def by_group(credit: Credit) -> list[np.ndarray]:
    """The weights [N] of each group, in the order of the groups."""
    groups = credit.rows[:, 0, 0]
    return [credit.weights[groups == group, 0] for group in np.unique(groups)]
