"""The shipped recipes as the command line offers them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import pytest

from drover.common.errors import ConfigError
from drover.deploy import catalogue
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Only, Training
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.worlds.shapes import PIPELINE

FLAGS = Path(__file__).with_name("recipe_flags.json")  # recipe -> its flags, each with its default in --help
GOLDEN: dict[str, dict[str, str]] = json.loads(FLAGS.read_text())


def flags(recipe: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Every flag of the recipe's own that its help lists, with its default."""
    with pytest.raises(SystemExit):
        catalogue.parse(catalogue.find(recipe), ["--help"])
    text = "\n".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    own = text.partition("run options")[0]
    entries = re.findall(r"^(--[a-z][a-z-]*).*?\((required|default:.*?)\)$", own, re.DOTALL | re.MULTILINE)
    return {flag: squeezed(default).replace(squeezed(str(PIPELINE)), "PIPELINE") for flag, default in entries}


def squeezed(text: str) -> str:
    """Without the white space at which help breaks its lines."""
    return "".join(text.split())


@pytest.mark.parametrize("recipe", GOLDEN)
def test_every_recipe_offers_its_flags_with_its_defaults(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # wider help has several columns
    assert flags(recipe, capsys) == GOLDEN[recipe]


def test_every_shipped_recipe_has_its_flags_listed():
    assert sorted(catalogue.recipes()) == sorted(GOLDEN)


FEW = Training(groups=2, samples=4)


def two_seeds(*, seed: int = 0, training: Training = FEW) -> RunConfig:
    return toy_ddpo()


def of_every_run(*, json: str = "") -> RunConfig:
    return toy_ddpo()


def misspelt(*, pools: Annotated[Pools, Only("actors", "actor")] = Pools()) -> RunConfig:  # noqa: B008
    return toy_ddpo()


def without_default(*, pools: Annotated[Pools, Only("actors")]) -> RunConfig:
    return toy_ddpo()


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (two_seeds, "training: --seed is an option of seed already; rename it, or leave it out with Only"),
        (of_every_run, "json: --json is an option of every run already; rename it"),
        (misspelt, "pools: Only names actor, and Pools has no such field"),
        (without_default, "pools: the fields that Only leaves out need values; give pools a default"),
    ],
)
def test_parameters_that_cannot_be_options_are_refused_with_the_edit(recipe, sentence):
    with pytest.raises(ConfigError, match=sentence):
        catalogue.parse(recipe, [])


def test_fields_that_are_no_option_keep_the_values_of_the_recipe():
    def wide(*, pools: Annotated[Pools, Only("actors")] = Pools(actors=2, actor_threads=3)) -> RunConfig:  # noqa: B008
        assert type(pools) is Pools and (pools.actors, pools.actor_threads) == (5, 3)
        return toy_ddpo()

    catalogue.parse(wide, ["--actors", "5"])
