"""Call an objective and check its answer: a mistake in a user's objective becomes one sentence, with the user's line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from drover.common.errors import ConfigError
from drover.common.user_code import in_a_sentence
from drover.learner.examples import Credit, MeasuredGroup
from drover.learner.objective import LossOutput, Models, Objective


def credit_of(objective: Objective, groups: Sequence[MeasuredGroup]) -> Credit:
    """`Objective.credit` of an iteration's groups. Raises `DroverError`."""
    name = type(objective).__name__
    with in_a_sentence(f"{name}.credit failed"):
        credit = objective.credit(groups)
    if not isinstance(credit, Credit):
        raise ConfigError(
            f"{name}.credit returned {_kind(credit)}; return Credit(rows=..., weights=..., terms=...), "
            "or one by Credit.per_sample or Credit.pairs"
        )
    return credit


def loss_of(objective: Objective, models: Models, batch: Any) -> LossOutput:
    """`Objective.loss` of a batch. Raises `DroverError`."""
    name = type(objective).__name__
    with in_a_sentence(f"{name}.loss failed"):
        output = objective.loss(models, batch)
    if not isinstance(output, LossOutput):
        raise ConfigError(f"{name}.loss returned {_kind(output)}; return LossOutput(total=..., watched={{...}})")
    if output.watched.keys() != set(objective.watched):
        raise ConfigError(
            f"{name}.loss watches {sorted(output.watched)}, but the objective declares {sorted(objective.watched)}; "
            "make them equal, so that all ranks sum the same list"
        )
    for part, value in {"total": output.total, **{f"watched[{key!r}]": v for key, v in output.watched.items()}}.items():
        if not isinstance(value, Tensor) or value.dim():
            raise ConfigError(f"{name}.loss: {part} is {_kind(value)}; wanted a scalar tensor, the sum over the batch")
    return output


def _kind(value: object) -> str:
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
