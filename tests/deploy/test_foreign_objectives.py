"""A user's objective that raises an error or returns a wrong value ends its run with one sentence and the user's line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.conftest import Drover
from tests.deploy.in_place import one_line

RECIPE = """
from dataclasses import dataclass, replace

import torch

from drover.deploy.config import RunConfig
from drover.learner.examples import Credit
from drover.learner.objective import LossOutput
from drover.learner.objectives.ddpo import Ddpo
from tests.deploy.in_place import small


@dataclass(frozen=True, kw_only=True)
class Mine:
    ddpo: Ddpo = Ddpo(weights={"point": 1.0}, clip=0.2, normalise="batch")

    @property
    def learns_from(self):
        return self.ddpo.learns_from

    @property
    def watched(self):
        return self.ddpo.watched

    @property
    def needs(self):
        return self.ddpo.needs

    def credit(self, groups):
        credit = self.ddpo.credit(groups)
        return CREDIT

    def loss(self, models, batch):
        output = self.ddpo.loss(models, batch)
        return LOSS


def mine() -> RunConfig:
    return small(objective=Mine())
"""
GOOD = {"CREDIT": "credit", "LOSS": "output"}


SCALAR = "wanted a scalar tensor, the sum over the batch"
WRONG = {
    (
        "CREDIT",
        "[credit]",
    ): "Mine.credit returned a list; return Credit(rows=..., weights=..., terms=...), or one by Credit.",
    ("CREDIT", "None"): "Mine.credit returned None; return Credit(",
    (
        "CREDIT",
        "groups[0].no_name",
    ): "Mine.credit failed: AttributeError: 'MeasuredGroup' object has no attribute 'no_name' at",
    ("CREDIT", "Credit(credit.weights, credit.weights, 1.0)"): "Mine.credit failed: ValueError: credit needs rows",
    ("LOSS", "output.total"): "Mine.loss returned a Tensor; return LossOutput(total=..., watched={...})",
    ("LOSS", "LossOutput(1.0, output.watched)"): f"Mine.loss: total is a float; {SCALAR}",
    (
        "LOSS",
        "LossOutput(output.total.repeat(3), output.watched)",
    ): f"Mine.loss: total is a tensor of shape [3]; {SCALAR}",
    ("LOSS", "LossOutput(output.total, {**output.watched, 'ratio': 1.0})"): f"watched['ratio'] is a float; {SCALAR}",
    ("LOSS", "LossOutput(total=output.total)"): "Mine.loss watches [], but the objective declares [",
    ("LOSS", "torch.ones(2) @ torch.ones(3)"): "Mine.loss failed: RuntimeError: ",
    ("LOSS", "{}['a']"): "Mine.loss failed: KeyError: 'a' at mine.py:35",
}


@pytest.mark.parametrize(
    ("part", "said"), WRONG.items(), ids=lambda value: value[1] if isinstance(value, tuple) else ""
)
def test_a_wrong_objective_is_one_sentence(drover: Drover, tmp_path: Path, part: tuple[str, str], said: str) -> None:
    source = RECIPE
    for name, code in {**GOOD, part[0]: part[1]}.items():
        source = source.replace(f"return {name}", f"return {code}")
    (tmp_path / "mine.py").write_text(source)
    code, _, err = drover("train", "mine.py:mine", "--one-process", "--plain")
    assert code in (1, 2), err
    assert said in one_line(err)
    if "failed" in said:
        assert re.search(r" at mine\.py:(31|35)\n$", err)
