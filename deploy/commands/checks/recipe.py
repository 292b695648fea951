"""The recipe: that it can be built, its model is there, and the environments of its rewards can be."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from drover.common.errors import ConfigError
from drover.deploy import catalogue
from drover.deploy.cluster.environments import BUILD_S, last_words, packages_of
from drover.deploy.commands.checks.finding import Finding, State
from drover.deploy.config import RunConfig


def build(words: Sequence[str]) -> RunConfig:
    """The run that ``RECIPE --option ...`` describes. Raises `ConfigError`, also for what tyro would refuse."""
    told = io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(told):
            config, _ = catalogue.parse(catalogue.find(words[0]), list(words[1:]))
    except SystemExit:
        fix = f"see drover train {words[0]} --help, and give its options after --"
        raise ConfigError(f"{words[0]} refuses these options ({_gist(told.getvalue())}); {fix}") from None
    return config


def _gist(text: str) -> str:
    """What tyro's framed message says, without the frame."""
    lines = [line.strip("│╭╮╰╯─┌┐└┘ \n") for line in text.splitlines()]
    return " ".join(line for line in lines if line and "help" not in line.lower())[:300]


def recipe(config: RunConfig) -> list[Finding]:
    """The model's files. Raises `ConfigError` where they are not."""
    config.model.check()
    pools = config.pools
    shape = f"{pools.actors} actors, {pools.reward_servers} servers of each reward, {pools.learner_ranks} learner ranks"
    return [Finding("recipe", "ok", f"{config.recipe}: {shape}; its model is there")]


def environments(config: RunConfig, *, ask: bool) -> list[Finding]:
    """Rewards with packages of their own. ``ask``: let pip look them up, which downloads what describes them."""
    found = []
    for reward in config.rewards:
        packages = packages_of(reward)
        if not packages:
            continue
        name = f"{reward.name} ({', '.join(packages)})"
        if not ask:
            found.append(
                Finding("environments", "ok", f"{name}: built at the start; --environments asks pip for it now")
            )
            continue
        trouble = _unresolved(packages)
        fix = "correct the reward's packages, or let this machine reach a package index (PIP_INDEX_URL)"
        state: State = "problem" if trouble else "ok"
        found.append(
            Finding("environments", state, f"{name}: {trouble or 'pip finds all of it'}", fix if trouble else "")
        )
    return found


def _unresolved(packages: Sequence[str]) -> str:
    """What pip says when it cannot find the packages; nothing when it can."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--dry-run"]
    command += ["--quiet", "--ignore-installed", "--no-deps", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    except subprocess.TimeoutExpired:
        return last_words("TimeoutError")
    return last_words(done.stderr) if done.returncode else ""
