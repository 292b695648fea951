"""The shipped recipes as the command line offers them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drover.deploy import catalogue
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
