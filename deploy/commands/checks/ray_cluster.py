"""Checks the Ray cluster that runs would join: it admits us, its nodes agree, hold the recipe, and see the run folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from drover.common.errors import ConfigError
from drover.common.words import counted
from drover.deploy.cluster.ray_session import ONE_TRY, check_answers, cluster_address, refusal
from drover.deploy.commands.checks.finding import Finding, problem
from drover.deploy.commands.checks.ray_probe import MARKS, OFFERS
from drover.deploy.config import RunConfig

Nodes = list[dict[str, Any]]
"""The answer of each node; see `drover.deploy.commands.checks.ray_probe`."""

CROWD = 4  # processes a core, above which they mostly wait for each other
PATIENCE_S = 120.0  # for joining, and for every node to start a process


def ray_cluster(runs_dir: Path, config: RunConfig | None) -> list[Finding]:
    """Check the cluster that RAY_ADDRESS names, and that it has room for ``config`` if given. Raises `ConfigError`."""
    version = metadata.version("ray")
    address = cluster_address()
    if not address:
        found = f"Ray {version}; RAY_ADDRESS is unset, so a run starts its own here"
        return [Finding("ray", "ok", found), *(_alone(config) if config is not None else [])]
    check_answers(address)
    said, folder = _ask(address, runs_dir)
    if isinstance(said, Finding):
        return [said]
    return [_resources(said, config, version), *_nodes(said, folder)]


def _ask(address: str, runs_dir: Path) -> tuple[Finding | Nodes, Path | None]:
    """Return the nodes' answers and the folder that they were asked for.

    Each node looks for a temporary file in the folder of runs. The folder is None if this process cannot write there.
    """
    folder = runs_dir.absolute() if os.access(runs_dir, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        command = [sys.executable, "-m", "drover.deploy.commands.checks.ray_probe", address, file.name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE_S, env={**ONE_TRY, **os.environ}
            )
        except subprocess.TimeoutExpired:
            found = f"the Ray at {address} did not let us in within {PATIENCE_S:.0f} s"
            return Finding("ray", "problem", found, "look at `ray status`, and at the firewall between its nodes"), None
    if done.returncode:
        raise refusal(address, done.stdout + done.stderr)
    said: Nodes = json.loads(done.stdout.splitlines()[-1])
    return said, folder


def _alone(config: RunConfig) -> list[Finding]:
    """Check that this machine has room for the run, as training does. Raises `ConfigError` where it has not."""
    from drover.deploy.cluster import placing

    pools, _ = placing.plan(config, placing.this_machine(config), alone=True)
    processes, cores = sum(pool.size for pool in pools) + config.pools.learner_ranks, os.cpu_count() or 1
    if processes <= CROWD * cores:
        return []
    found = f"{processes} processes would share {counted(cores, 'CPU core')}, and each actor loads the model"
    return [Finding("ray", "advice", found, "lower --actors")]


def _resources(nodes: Nodes, config: RunConfig | None, version: str) -> Finding:
    from drover.deploy.cluster import placing

    have = {name: sum(node["resources"].get(name, 0.0) for node in nodes) for name in OFFERS}
    offers = ", ".join(f"{count:g} {name}" for name, count in have.items() if count)
    found = f"Ray {version}, {counted(len(nodes), 'node')} with {offers or 'nothing to compute with'}"
    if config is not None:
        try:
            placing.plan(config, [node["resources"] for node in nodes], alone=False)
        except ConfigError as error:
            missing = problem("ray", error)
            return replace(missing, found=f"{found}; {missing.found}")
    return Finding("ray", "ok", found)


def _nodes(nodes: Nodes, folder: Path | None) -> list[Finding]:
    found = []
    mine = {
        "python": sys.version.split()[0],
        "drover": metadata.version("drover-rl"),
        "torch": metadata.version("torch"),
    }
    for node in nodes:
        marks = ", ".join(mark for mark in MARKS if mark in node["resources"])
        name = f"node {node['address']} ({marks or 'unmarked'})"
        if "error" in node:
            found.append(Finding("ray", "problem", f"{name}: {node['error']}", "look at the logs of its raylet"))
            continue
        for package, version in mine.items():
            if node[package] != version:
                fix = "use the same image on every node"
                found.append(Finding("ray", "problem", f"{name} has {package} {node[package]}, here is {version}", fix))
        if folder is not None and not node["file"] and _writes_runs(node, nodes):
            fix = "give --runs-dir a place that the head and the learner's nodes share"
            found.append(Finding("ray", "problem", f"{name} does not see {folder}: checkpoints would be lost", fix))
    return found


def _writes_runs(node: Mapping[str, Any], nodes: Nodes) -> bool:
    """Return whether learner ranks, which write run folders, may run on the node: a marked one, or any without marks."""
    return "learner" in node["resources"] or not any("learner" in other["resources"] for other in nodes)
