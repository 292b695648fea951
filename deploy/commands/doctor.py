"""``drover doctor``: checks everything that a run needs before it starts, and prints problems with their fixes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from drover.common.errors import ConfigError
from drover.common.words import counted
from drover.deploy.commands.checks import machine
from drover.deploy.commands.checks import recipe as recipes
from drover.deploy.commands.checks.finding import Finding, guarded, problem
from drover.deploy.commands.checks.ray_cluster import ray_cluster
from drover.deploy.commands.checks.redis_server import redis_server
from drover.deploy.config import RunConfig

SIGNS = {"ok": "ok      ", "advice": "advice  ", "problem": "PROBLEM "}


@dataclass(frozen=True)
class DoctorOptions:
    """Check this machine, its Ray and Redis, and a recipe; exit code 1 when something would make a run fail."""

    recipe: tyro.conf.Positional[tuple[str, ...]] = ()
    """A recipe to check as well; its options come last, after --: drover doctor shapes_ddpo -- --actors 6."""
    runs_dir: Path = Path("runs")
    """Folder in which run folders shall be made."""
    environments: bool = False
    """Ask pip whether it finds the packages of rewards that need an environment of their own; may take a minute."""
    json: bool = False
    """Print JSON, for scripts."""


def run(options: DoctorOptions) -> int:
    """Check and print the findings; return the exit code: 0, or 1 if there is a problem."""
    findings = examine(options)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(report(findings))
    return int(any(finding.state == "problem" for finding in findings))


def examine(options: DoctorOptions) -> list[Finding]:
    """Return every finding, basic needs first."""
    config, trouble = _build(options.recipe)
    found = [
        *machine.python(),
        *machine.device(),
        *machine.disk(options.runs_dir),
        *machine.shared_memory(),
        *machine.ports(),
        *guarded("redis", redis_server),
        *guarded("ray", lambda: ray_cluster(options.runs_dir, config)),
        *trouble,
    ]
    if config is not None:
        found += guarded("recipe", lambda: recipes.recipe(config))
        found += recipes.environments(config, ask=options.environments)
    return found


def _build(words: tuple[str, ...]) -> tuple[RunConfig | None, list[Finding]]:
    if not words:
        return None, []
    try:
        built = recipes.build(words)
    except ConfigError as error:
        return None, [problem("recipe", error)]
    return (None, [built]) if isinstance(built, Finding) else (built, [])


def report(findings: list[Finding]) -> str:
    """Return a text for people: a line for each finding, and its fix below."""
    lines, indent = [], " " * len(SIGNS["ok"])
    for finding in findings:
        lines.append(f"{SIGNS[finding.state]}{finding.check}: {finding.found}".replace("\n", f"\n{indent}"))
        if finding.fix:
            lines.append(f"{indent}-> {finding.fix}")
    problems = sum(finding.state == "problem" for finding in findings)
    lines.append(counted(problems, "problem") if problems else "ready to train")
    return "\n".join(lines)
