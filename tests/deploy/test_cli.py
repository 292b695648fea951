"""The command line as a user meets it, without a process of its own: no Ray, one process, tiny runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drover.deploy.catalogue import find, recipes
from drover.deploy.run_folder.results import RunFolder
from tests.deploy.in_place import one_line, small, train

OWN = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Only
from tests.deploy.in_place import small


@dataclass(frozen=True)
class Mine:
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str):
        return lambda prompts, media: Scores([float(image[0, 0, 0]) for image in media.pixels])


def mine(*, iterations: int = 2, far: bool = False) -> RunConfig:
    """My own recipe.

    Args:
        iterations: How often.
        far: Whether to go far.
    """
    return small(recipe="mine", iterations=iterations, rewards=(Mine(),))


@dataclass(frozen=True, kw_only=True)
class Road:
    """Where it goes."""

    miles: int
    """How many miles it goes."""
    sign: Path | None = None
    """What stands there."""

    def __post_init__(self) -> None:
        if self.miles < 0:
            raise ConfigError(f"miles must not be below 0, got {self.miles}")


def far(*, road: Road = Road(miles=3), pools: Annotated[Pools, Only("actors")] = Pools(actors=2)) -> RunConfig:
    """Far away."""
    return small(recipe=f"far_{road.miles}_{road.sign}", rewards=(Mine(),), pools=pools)


broken = 3
'''


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "own_recipe.py"
    path.write_text(OWN)
    return path


TOY = ("train", "toy_ddpo", "--one-process", "--plain")


def test_help_teaches_the_commands(drover):
    for arguments in (["--help"], ["-h"]):
        code, out, _ = drover(*arguments)
        assert code == 0
        assert all(word in out for word in ("drover train RECIPE", "drover sample", "drover status", "runs/NAME/"))


def test_the_help_of_a_recipe_names_every_parameter_with_meaning_and_default(drover):
    code, out, _ = drover("train", "toy_ddpo", "--help")
    assert code == 0
    for word in (
        "--max-lag",
        "How many versions old",
        "--iterations",
        "150",
        "--one-process",
        "--run-name",
        "--resume",
    ):
        assert word in out, word


@pytest.mark.parametrize("command", ["sample", "status"])
def test_the_other_commands_have_help_too(drover, command):
    code, out, _ = drover(command, "--help")
    assert code == 0 and f"usage: drover {command}" in out


def test_without_a_command_or_recipe_the_usage_is_shown_and_the_exit_code_says_misused(drover):
    assert drover()[0] == 2
    code, out, _ = drover("train")
    assert code == 2 and "usage: drover train RECIPE" in out and "toy_ddpo\n    Move the end point" in out
    assert drover("train", "--help")[0] == 0


def test_benchmarks_are_named_in_a_checkout_and_refused_elsewhere(drover, monkeypatch):
    code, _, err = drover("bench", "wire")
    assert code == 2 and "go to the root of a checkout" in one_line(err)
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    code, out, _ = drover("bench")
    names = "chaos, checkpoint, efficiency, evaluation, fleet, joint, peers, plan, reward_pool, weights, wire"
    assert code == 0 and f"benchmarks: {names}" in out
    code, _, err = drover("bench", "wires")
    assert code == 2 and "there is no benchmark 'wires'; there are chaos" in one_line(err)


def test_an_unknown_command_names_the_known_ones(drover):
    code, _, err = drover("trian")
    assert code == 2 and "recipes, train, sample, status" in one_line(err)


def test_the_recipes_are_listed_with_their_first_sentence(drover):
    code, out, _ = drover("recipes")
    assert code == 0 and "toy_ddpo\n    Move the end point" in out and "shapes_ddpo\n    Teach" in out
    assert set(json.loads(drover("recipes", "--json")[1])) == set(recipes())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("toy_dpo", "did you mean toy_ddpo?"),
        ("shape_ddpo", "did you mean shapes_ddpo?"),
        ("xyz", "there are .*toy_ddpo"),
    ],
)
def test_an_unknown_recipe_is_answered_with_what_was_meant(drover, name, hint):
    code, _, err = drover("train", name)
    assert code == 2 and re.search(hint, one_line(err)), err


def test_an_unknown_parameter_is_refused_with_what_was_meant(drover):
    code, out, err = drover(*TOY, "--max-lagg", 1)
    assert code == 2 and "--max-lag" in out + err


@pytest.mark.parametrize("value", ["many", "1.5", ""])
def test_a_value_of_another_type_is_refused(drover, value):
    code, out, err = drover(*TOY, "--iterations", value)
    assert code == 2 and "iterations" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", 0], "iterations must be at least 1, got 0"),
        (["--max-lag", -1], "max_lag must be 0 (strictly on-policy) or more"),
        (["--lr", 0], "lr and grad_clip must be positive"),
        (["--lr", "nan"], "lr and grad_clip must be positive"),
        (["--actors", 0], "need at least one actor to sample them"),
        (["--run-name", "../elsewhere"], "cannot be a folder"),
        (["--resume", "nothing"], "no run to resume"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_an_impossible_value_is_one_line_and_exit_code_2_and_leaves_nothing(drover, tmp_path, arguments, message):
    code, _, err = drover(*TOY, *arguments)
    assert code == 2 and message in one_line(err)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("option", "value"), [("--metrics-port", 70000), ("--metrics-port", -1), ("--metrics-host", "a..b")]
)
def test_a_port_or_host_that_is_none_is_refused_and_leaves_nothing(drover, tmp_path, option, value):
    code, _, err = drover("train", "toy_ddpo", "--plain", option, value)
    assert code == 2 and "cannot serve metrics on" in one_line(err)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("words", [("--runs-dir=~/runs",), ("--runs-dir", "~/runs"), ("--runs-dir=~",)], ids=" ".join)
def test_a_tilde_is_the_home_also_where_no_shell_put_it_there(drover, tmp_path, monkeypatch, words):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    named = train(
        small(),
        tmp_path / "home" / words[-1].removeprefix("--runs-dir=").removeprefix("~").strip("/"),
        name="far",
        stop_after=1,
    )
    code, out, _ = drover("status", *words)
    assert code == 0 and "far: lost: " in out
    assert named.folder.path.is_dir() and not (tmp_path / "~").exists()


def test_the_home_of_nobody_is_refused_and_not_made_here(drover, tmp_path):
    code, _, err = drover(*TOY, "--runs-dir=~no-such-user/runs")
    assert code == 2 and "'~no-such-user/runs' names no folder here" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_says_what_came_of_it_and_status_remembers(drover, tmp_path):
    options = ("--iterations", 3, "--samples", 16, "--run-name", "first")
    code, out, _ = drover(*TOY, *options)
    assert code == 0
    assert "held-out anywhere/point: -" in out and "(512 samples, the same prompts and noise" in out
    assert "3 updates, 192 samples" in out and "summary.json" in out
    assert (tmp_path / "runs" / "first" / "toy.safetensors").exists()
    code, out, _ = drover("status")
    assert code == 0 and "first: finished; 3 updates, 192 samples; held out: anywhere/point -" in out
    assert json.loads(drover("status", "first", "--json")[1])["first"]["ledger"]["trained"] == 12
    code, _, err = drover(*TOY, *options)
    assert code == 2 and "pass --resume" in one_line(err)


def test_the_kept_and_skipped_rows_of_a_prompt_file_are_counted_before_training(drover, tmp_path):
    (tmp_path / "prompts.txt").write_text("here\n\nthere\nhere\n")
    (tmp_path / "filed.py").write_text(
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "from drover.deploy.config import RunConfig\nfrom drover.learner.files.prompts import read_prompts\n"
        "from tests.deploy.in_place import small\n"
        "def filed() -> RunConfig:\n"
        "    prompts = read_prompts(Path('prompts.txt')).train\n"
        "    return small(iterations=1, tasks=(replace(small().tasks[0], prompts=prompts),))\n"
    )
    code, out, _ = drover("train", "filed.py:filed", "--one-process", "--plain")
    said = "prompts.txt: 2 prompts, 2 to train on, 0 held out; 2 skipped (1 blank, 1 repeated)"
    assert code == 0 and out.splitlines()[0] == said
    assert said not in drover("train", "filed.py:filed", "--one-process", "--json")[1]


def test_with_json_the_summary_is_all_that_is_printed(drover):
    code, out, err = drover(*TOY, "--iterations", 2, "--samples", 16, "--json")
    summary = json.loads(out)
    assert code == 0 and err == ""
    assert summary["updates"] == 2 and summary["recipe"] == "toy_ddpo" and summary["run"].startswith("toy_ddpo-")
    assert summary["command_s"] > 0


def test_a_file_of_ones_own_is_a_recipe_with_its_own_parameters(drover, own, tmp_path):
    code, out, _ = drover("train", f"{own}:mine", "--help")
    assert code == 0 and "My own recipe." in out and "--far" in out
    code, out, _ = drover("train", f"{own}:mine", "--one-process", "--json", "--iterations", 3)
    assert code == 0 and json.loads(out)["recipe"] == "mine" and json.loads(out)["updates"] == 3


def test_fields_of_ones_own_dataclass_are_options_with_their_docstrings_and_checks(drover, own):
    code, out, _ = drover("train", f"{own}:far", "--help")
    assert code == 0 and "How many miles it goes. (default: 3)" in out and "--actors INT" in out
    assert "--learner-ranks" not in out and "--evaluators" not in out  # pools offers --actors only
    code, out, _ = drover("train", f"{own}:far", "--one-process", "--json", "--miles", 4, "--sign", "here")
    assert code == 0 and json.loads(out)["recipe"] == "far_4_here"
    code, _, err = drover("train", f"{own}:far", "--miles", "-1")
    assert code == 2 and one_line(err) == "drover: miles must not be below 0, got -1\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:mine", "there is no file nowhere.py"),
        ("{own}:other", "defines no function 'other'"),
        ("{own}:broken", "defines no function 'broken'"),
        ("{folder}:mine", "there is no file"),
    ],
)
def test_a_file_that_holds_no_recipe_is_one_clear_error(drover, own, name, message):
    code, _, err = drover("train", name.format(own=own, folder=own.parent))
    assert code == 2 and message in one_line(err)


def test_a_shipped_recipe_is_found_by_name():
    assert find("toy_ddpo")().recipe == "toy_ddpo"


def test_a_run_that_fails_leaves_exit_code_1_and_the_reason(drover, tmp_path):
    path = tmp_path / "blind.py"
    path.write_text(
        "from tests.deploy.in_place import Fickle, small\n"
        "from drover.deploy.config import RunConfig\n"
        "def blind() -> RunConfig:\n    '''Never a value.'''\n    return small(rewards=(Fickle(raises=True),))\n"
    )
    code, _, err = drover("train", f"{path}:blind", "--one-process", "--json")
    assert code == 1 and "no sample of the task 'point' had a valid reward for 3 iterations" in one_line(err)


def test_status_of_nothing_and_of_an_unknown_run(drover):
    assert drover("status")[:2] == (0, "no runs in runs\n")
    code, _, err = drover("status", "other")
    assert code == 2 and "there is no run 'other' in runs" in one_line(err)


def test_status_of_a_run_that_was_stopped_and_of_one_whose_process_is_gone(drover, tmp_path):
    done = train(small(), tmp_path / "runs", name="halved", stop_after=2)
    done.conclude()
    assert "halved: stopped, go on with --resume halved; 2 updates, 128 samples" in drover("status")[1]
    done.folder.summary.unlink()
    out = drover("status", "halved")[1]
    assert re.match(
        r"halved: lost: its process is gone, no report since \d{4}-\d\d-\d\d [\d:]{8}; go on with --resume halved; 2 updates",
        out,
    )


def test_status_of_a_run_that_has_not_reported_yet(drover, tmp_path):
    folder = RunFolder.create("young", tmp_path / "runs")
    code, out, _ = drover("status", "young")
    assert code == 0 and "young: starting (starting, no report yet); 0 updates" in out and "not evaluated yet" in out
    folder.release()
    assert "young: lost: its process is gone, no report ever" in drover("status", "young")[1]


def test_pictures_can_be_drawn_from_a_folder_and_the_same_seed_draws_the_same(drover, tiny_folder, tmp_path):
    options = ("--model", tiny_folder, "--count", 2, "--steps", 2)
    drawn = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / f"{name}.png"
        code, told, _ = drover("sample", *options, "--prompts", "a", "b", "--out", out, "--seed", seed)
        assert code == 0 and told.strip() == str(out)
        drawn[name] = np.asarray(Image.open(out))
    assert np.array_equal(drawn["one"], drawn["same"])
    assert not np.array_equal(drawn["one"], drawn["other"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "{tmp}/nowhere", "--prompts", "a"],
        ["--model", "{tiny}", "--prompts", "a", "--count", "0"],
        ["--model", "{tiny}", "--prompts", "a", "--steps", "0"],
        ["--model", "{tiny}", "--prompts", "a", "--eta", "2"],
    ],
    ids=["no model", "no pictures", "no steps", "eta 2"],
)
def test_pictures_that_cannot_be_drawn_are_one_line_and_exit_code_2(drover, tiny_folder, tmp_path, arguments):
    filled = [argument.format(tmp=tmp_path, tiny=tiny_folder) for argument in arguments]
    code, _, err = drover("sample", *filled, "--out", tmp_path / "x.png")
    assert code == 2, err
    one_line(err)
    assert not (tmp_path / "x.png").exists()


def test_sampling_without_a_model_or_prompts_is_misuse(drover):
    assert drover("sample")[0] == 2
    assert drover("sample", "--model", "x")[0] == 2
