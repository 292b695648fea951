"""Checks a recipe: it can be built, its model is there, and the environments of its rewards can be built."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from drover.common.words import counted
from drover.deploy import catalogue
from drover.deploy.cluster.environments import BUILD_S, last_words, packages_of
from drover.deploy.commands.checks.finding import Finding, State
from drover.deploy.config import RunConfig

BOX = "│╭╮╰╯─┌┐└┘|+ "  # the characters of tyro's box around a message


def build(words: Sequence[str]) -> RunConfig | Finding:
    """Return the run that ``RECIPE --option ...`` describes, or tyro's message about the options. Raises `ConfigError`."""
    told = io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(told):
            config, _ = catalogue.parse(catalogue.find(words[0]), list(words[1:]))
    except SystemExit:
        found = "\n".join([f"{words[0]} refuses these options:", *_unframed(told.getvalue())])
        fix = f"see drover train {words[0]} --help, and give its options after --"
        return Finding("recipe", "problem", found, fix)
    return config


def _unframed(text: str) -> list[str]:
    """Return the lines of tyro's message without their box, and without its advice to read the help of another command."""
    lines = [line.strip(BOX) for line in text.splitlines()]
    return [line for line in lines if line.strip("-") and "full helptext" not in line]


def recipe(config: RunConfig) -> list[Finding]:
    """Check that the model's files are there. Raises `ConfigError` where they are not."""
    config.model.check()
    pools = config.pools
    servers, ranks = counted(pools.reward_servers, "server"), counted(pools.learner_ranks, "learner rank")
    shape = f"{counted(pools.actors, 'actor')}, {servers} of each reward, {ranks}"
    return [Finding("recipe", "ok", f"{config.recipe}: {shape}; its model is there")]


def environments(config: RunConfig, *, ask: bool) -> list[Finding]:
    """Check the rewards that have packages of their own. ``ask``: let pip look these up, which downloads their metadata."""
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
    """Return pip's message if it cannot find the packages; "" if it can."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--dry-run"]
    command += ["--quiet", "--ignore-installed", "--no-deps", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    except subprocess.TimeoutExpired:
        return last_words("TimeoutError")
    return last_words(done.stderr) if done.returncode else ""
