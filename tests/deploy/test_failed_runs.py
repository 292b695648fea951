"""A run that fails shows its state, its reason and its log; its name is free again if it never began."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.deploy.conftest import Drover
from tests.deploy.in_place import one_line

RECIPES = '''
from dataclasses import dataclass
from drover.common.media.pictures import Pictures
from drover.deploy.config import RunConfig
from tests.deploy.in_place import Fickle, small


@dataclass(frozen=True)
class Unloadable:
    name: str = "point"
    takes = Pictures

    def load(self, device):
        return {}["weights"]


@dataclass(frozen=True)
class NoScorer(Unloadable):
    def load(self, device):
        device.upper()


@dataclass(frozen=True)
class Fades(Fickle):
    """Good for two updates."""

    def load(self, device):
        honest, calls = super().load(device), []

        def score(prompts, media):
            calls.append(1)
            if len(calls) > 20:
                raise ValueError("the judge has left")
            return honest(prompts, media)

        return score


def unloadable() -> RunConfig:
    return small(rewards=(Unloadable(),))


def raises(*, iterations: int) -> RunConfig:
    return small(rewards=(Fickle(raises=True),), iterations=iterations)


def no_scorer() -> RunConfig:
    return small(rewards=(NoScorer(),))


def fades() -> RunConfig:
    return small(rewards=(Fades(),), iterations=30)
'''


@pytest.fixture
def recipes(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(RECIPES)
    return "mine.py"


def test_a_reward_that_cannot_be_loaded_is_one_sentence_and_a_failed_run(
    drover: Drover, recipes: str, tmp_path: Path
) -> None:
    train = ("train", f"{recipes}:unloadable", "--one-process", "--plain", "--run-name", "a")
    code, _, err = drover(*train)
    reason = "the reward point cannot be loaded: KeyError: 'weights' at mine.py:14"
    assert (code, one_line(err)) == (1, f"drover: {reason}\n")
    assert drover("status")[1] == f"a: failed: {reason}; 0 updates, 0 samples; held out: not evaluated yet\n"
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert (summary["ended"], summary["reason"], summary["run"]) == ("failed", reason, "a")
    told = json.loads(drover("status", "a", "--json")[1])["a"]
    assert (told["state"], told["ended"], told["reason"]) == ("failed", "failed", reason)
    logged = (tmp_path / "runs" / "a" / "run.log").read_text()
    assert "loading the model" in logged
    assert 'return {}["weights"]' in logged, "the whole traceback"
    code, _, err = drover("train", f"{recipes}:no_scorer", *train[2:])
    assert code == 1, "the name was free again"
    assert one_line(err).endswith(
        "the reward point cannot be used: its load returned None; return the function that scores\n"
    )
    assert "KeyError" not in (tmp_path / "runs" / "a" / "run.log").read_text(), "nothing is left of the former run"


def test_a_reward_that_never_answers_is_told_of_before_training_and_fails_a_run_of_any_length(
    drover: Drover, recipes: str
) -> None:
    for iterations in (1, 2, 4):
        train = ("train", f"{recipes}:raises", "--iterations", str(iterations), "--one-process", "--plain")
        code, out, err = drover(*train, "--run-name", f"n{iterations}")
        assert code == 1, out
        assert "event: no held-out sample got a value of point (set anywhere)" in out or iterations == 1
        assert "no sample of the task 'point' had a valid reward" in one_line(err)
        assert re.search(r"; point: RuntimeError: no connection to the judge at \S*in_place\.py:\d+$", one_line(err))
    assert drover("status")[1].count(": failed: no sample of the task 'point' had a valid reward") == 3


def test_a_run_that_fails_on_its_way_keeps_what_it_did_and_can_be_resumed(
    drover: Drover, recipes: str, tmp_path: Path
) -> None:
    train = ("train", f"{recipes}:fades", "--one-process", "--plain")
    code, _, err = drover(*train, "--run-name", "a")
    assert code == 1
    assert "ValueError: the judge has left at mine.py:33" in one_line(err)
    said = drover("status")[1]
    assert said.startswith("a: failed: no sample of the task 'point' had a valid reward for 3 iterations")
    assert (tmp_path / "runs" / "a" / "curves.png").exists()
    code, _, err = drover(*train, "--run-name", "a")
    assert code == 2
    assert "holds a failed run; pass --resume a" in one_line(err)


def test_a_misuse_leaves_no_run_but_what_was_begun_stays(drover: Drover, recipes: str, tmp_path: Path) -> None:
    toy = ("train", "toy_ddpo", "--one-process", "--plain", "--samples", "16", "--run-name", "a")
    assert drover(*toy, "--log-to", "no-such-sink")[0] == 2
    assert drover("status")[1] == "no runs in runs\n"
    assert drover(*toy, "--iterations", "2")[0] == 0
    assert drover(*toy[:-2], "--resume", "a", "--iterations", "3", "--lr", "0.1")[0] == 2
    assert drover("status")[1].startswith("a: finished; 2 updates")
