"""Held-out prompts through the same actors and rewards as training, always with the same seeds.

Orders of purpose ``eval`` need no slot: their number is fixed, and they are never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError
from common.protocols import Stream
from common.types import Purpose, TensorRef, WorkItem
from learner.assembler import Assembler
from learner.examples import MeasuredGroup

PROMPTS_PER_ORDER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """Which prompts, and how many samples of each. Parity between two moments needs the same spec and the same seed."""

    prompts: tuple[str, ...]
    samples_per_prompt: int

    def __post_init__(self) -> None:
        if not self.prompts or self.samples_per_prompt < 1:
            raise ConfigError(
                f"evaluation needs at least one held-out prompt and one sample of each, got {len(self.prompts)} prompts "
                f"x {self.samples_per_prompt}"
            )


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found: valid values by reward, and the pictures by prompt."""

    version: int
    values: dict[str, np.ndarray]  # reward -> valid values of all samples
    prompts: tuple[str, ...]
    media: tuple[TensorRef, ...]

    def scalars(self) -> dict[str, float]:
        found = {}
        for name, values in self.values.items():
            found[f"heldout/{name}/count"] = float(len(values))
            if len(values):
                found[f"heldout/{name}/mean"] = float(values.mean())
                found[f"heldout/{name}/std"] = float(values.std())
        return found


class Evaluation:
    """Issues one evaluation at a time and collects it, while training goes on or does not."""

    def __init__(
        self, spec: EvaluationSpec, work: Stream, assembler: Assembler, *, epoch: int, seed: int, fingerprint: str
    ) -> None:
        self._spec, self._work, self._assembler = spec, work, assembler
        self._epoch, self._seed, self._fingerprint = epoch, seed, fingerprint
        self._issued = 0  # orders ever issued; each evaluation repeats the same seeds under new numbers
        self._open: list[int] = []

    @property
    def running(self) -> bool:
        return bool(self._open)

    def issue(self) -> None:
        """Order every held-out prompt from the newest weights."""
        assert not self._open
        for start in range(0, len(self._spec.prompts), PROMPTS_PER_ORDER):
            group = self._issued
            self._issued += 1
            self._open.append(group)
            self._assembler.expect((Purpose.EVAL, group))
            self._work.put(
                WorkItem(
                    epoch=self._epoch,
                    group=group,
                    purpose=Purpose.EVAL,
                    prompts=self._spec.prompts[start : start + PROMPTS_PER_ORDER],
                    samples_per_prompt=self._spec.samples_per_prompt,
                    seed=self._seed,
                    draw=start // PROMPTS_PER_ORDER,
                    record=(),
                    fingerprint=self._fingerprint,
                )
            )

    @property
    def done(self) -> bool:
        """Whether every order of the running evaluation has ended."""
        known = self._assembler.complete.keys() | self._assembler.failed.keys()
        return all((Purpose.EVAL, group) in known for group in self._open)

    def collect(self) -> Evaluated:
        """What the evaluation found; the pictures stay in the blob store for whoever shows them. Only when `done`."""
        keys = [(Purpose.EVAL, group) for group in self._open]
        groups = [self._assembler.complete[key] for key in keys if key in self._assembler.complete]
        for key in keys:
            self._assembler.finish(key, keep_media=True)
        self._open = []
        return _summarise(groups)


def _summarise(groups: Sequence[MeasuredGroup]) -> Evaluated:
    names = groups[0].measurements if groups else ()
    values = {name: np.concatenate([g.values(name)[g.valid(name)] for g in groups]) for name in names}
    return Evaluated(
        version=min((g.rollout.version for g in groups), default=-1),
        values=values,
        prompts=tuple(prompt for g in groups for prompt in g.rollout.prompts),
        media=tuple(g.rollout.media for g in groups if g.rollout.media is not None),
    )
