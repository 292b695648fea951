"""The configuration: options of every recipe as the command reads them, and fields of a `RunConfig`.

Only a run's description, a `ConfigError`, or the command's own usage error (exit 2; help exits 0) may come out.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path

from drover.common.errors import ConfigError
from drover.deploy import catalogue
from drover.deploy.catalogue import parse
from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.shapes import shapes_ddpo
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.intake.tasks import RecordSteps
from drover.learner.spec import OptimizerSpec

RECIPE_FLAGS = Path(__file__).parent.parent / "deploy" / "recipes" / "recipe_flags.json"
FLAGS: dict[str, dict[str, str]] = json.loads(RECIPE_FLAGS.read_text())
WORDS = [
    "0",
    "1",
    "2",
    "3",
    "8",
    "-1",
    "1000000000000000000000000",
    "1e3",
    "1e400",
    "-0.0",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "",
    " ",
    "None",
    "True",
    "\u0661\u0662",
    "1_0",
    "0x10",
    "\x00",
    "a" * 5000,
    "\U0001f9ff",
    "../../etc/passwd",
    "$(id)",
    "--",
    "-",
    "--help",
    "[",
    "{}",
    "1,2",
    "mean",
    "preference",
    "composition",
    "fairness",
    "jpeg_small",
]
INTS = [0, 1, 2, 3, 7, -1, -(10**9), 10**6, 2**31, 2**63, 10**30]
FLOATS = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "x", "float32", "float16", "bfloat16", "mean", "sum", "samples", "steps", "\x00", "a" * 10_000]
PARSED_SHARE = 0.2  # of the inputs go through the command's parser, which takes far longer than the rest


@contextmanager
def judge(parsed_share: float = PARSED_SHARE) -> Iterator[Callable[[random.Random], str]]:
    """Gives the function that `drive` calls with each generator: one configuration, parsed or constructed."""
    recipes = [catalogue.find(name) for name in catalogue.recipes()]
    built = [toy_ddpo(), shapes_ddpo()]

    def one(draw: random.Random) -> str:
        return (
            parsed(draw, draw.choice(recipes))
            if draw.random() < parsed_share
            else constructed(draw, draw.choice(built))
        )

    yield one


def parsed(draw: random.Random, recipe: Callable[..., RunConfig]) -> str:
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            config, _ = parse(recipe, arguments(draw, recipe))
    except ConfigError:
        return "option refused"
    except SystemExit as exit:
        assert exit.code in (0, 2), exit.code
        return "usage" if exit.code else "help"
    assert len(config.fingerprint) == 16
    return "options taken"


def arguments(draw: random.Random, recipe: Callable[..., RunConfig]) -> list[str]:
    own = list(FLAGS[recipe.__name__])
    others = ["--run-name", "--runs-dir", "--resume", "--plain", "--json", "--one-process", "--autoscale"]
    words: list[str] = []
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        option = draw.choice(own + others if draw.random() < 0.95 else ["--nothing", "-x", "stray", ""])
        words.append(option + "=" + draw.choice(WORDS) if draw.random() < 0.2 else option)
        words += [draw.choice(WORDS) for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
    return words


def constructed(draw: random.Random, config: RunConfig) -> str:
    try:
        changes = dict(change(draw, config) for _ in range(draw.choice((1, 2, 4))))
        changed = replace(config, **changes)
    except ConfigError:
        return "field refused"
    assert len(changed.fingerprint) == 16
    return "fields taken"


def change(draw: random.Random, config: RunConfig) -> tuple[str, object]:
    """A field and an unusual value of its type. Raises `ConfigError` where a part of the configuration refuses its own fields."""
    match draw.randrange(6):
        case 0:
            return "pools", Pools(**_some(draw, config.pools))
        case 1:
            return "optimizer", OptimizerSpec(**{"lr": 0.1, **_some(draw, config.optimizer)})
        case 2:
            return "record", RecordSteps(draw.choice(INTS), draw.choice(INTS), draw.random() < 0.5)
    name = draw.choice(
        [field.name for field in fields(RunConfig) if _hostile(draw, getattr(config, field.name)) is not None]
    )
    return name, _hostile(draw, getattr(config, name))


def _some(draw: random.Random, part: object) -> dict[str, object]:
    names = [field.name for field in fields(part) if _hostile(draw, getattr(part, field.name)) is not None]  # type: ignore[arg-type]
    return {name: _hostile(draw, getattr(part, name)) for name in draw.sample(names, k=min(2, len(names)))}


def _hostile(draw: random.Random, value: object) -> object:
    """An unusual value of the same type; None where the type is none of those below."""
    match value:
        case bool():
            return draw.random() < 0.5
        case int():
            return draw.choice(INTS)
        case float():
            return draw.choice(FLOATS)
        case str():
            return draw.choice(TEXTS)
        case tuple():
            return draw.choice([(), value, value * 2, value[::-1]])
    return None
