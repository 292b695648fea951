"""The Ray cluster that runs would join: that it lets us in, its nodes agree, fit the recipe, and share the run folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.checks.finding import Finding
from deploy.checks.recipe import wanted
from deploy.config import RunConfig

PATIENCE_S = 120.0  # for joining, and for every node to start a process


def ray_cluster(runs_dir: Path, config: RunConfig | None) -> list[Finding]:
    """Whether the cluster is what ``config`` asks for, if that is given. Raises `ConfigError`."""
    version = metadata.version("ray")
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        return [Finding("ray", "ok", f"Ray {version}; RAY_ADDRESS is unset, so a run starts its own here")]
    from deploy.cluster import check_answers

    check_answers(address)
    said, folder = _ask(address, runs_dir)
    if isinstance(said, Finding):
        return [said]
    return [_resources(said, config, version), *_nodes(said, folder)]


def _ask(address: str, runs_dir: Path) -> tuple[Finding | dict[str, Any], Path | None]:
    """What the cluster says of itself; nodes look for a file that lies in the runs' folder meanwhile, if there is one."""
    folder = runs_dir.absolute() if os.access(runs_dir, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        command = [sys.executable, "-m", "deploy.checks.ray_probe", address, file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            found = f"the Ray at {address} did not let us in within {PATIENCE_S:.0f} s"
            return Finding("ray", "problem", found, "look at `ray status`, and at the firewall between its nodes"), None
    if done.returncode == 0:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said, folder
    return _refused(address, done.stdout + done.stderr), None


def _refused(address: str, words: str) -> Finding:
    if "uthenticat" in words or "token" in words:
        fix = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        return Finding("ray", "problem", f"the Ray at {address} checks tokens and refuses ours", fix)
    if "ersion mismatch" in words:
        fix = "use the same image, or the same constraints.txt, everywhere"
        return Finding("ray", "problem", f"the Ray at {address} has another version of Ray or Python", fix)
    last = ([line.strip() for line in words.splitlines() if line.strip()] or ["it gives no reason"])[-1]
    return Finding("ray", "problem", f"cannot join the Ray at {address}: {last[:300]}", "look at `ray status` there")


def _resources(said: Mapping[str, Any], config: RunConfig | None, version: str) -> Finding:
    have = said["resources"]
    asked = wanted(config, gpus=have.get("GPU", 0.0) > 0) if config is not None else {}
    offers = ", ".join(
        f"{have[name]:g} {name}" for name in ("CPU", "GPU", "rollout", "reward", "learner") if name in have
    )
    found = f"Ray {version}, {len(said['nodes'])} nodes with {offers or 'nothing to compute with'}"
    short = [f"{count:g} {name}" for name, count in asked.items() if have.get(name, 0.0) < count]
    if short:
        fix = "add nodes, or lower --actors, --actor-threads or --learner-ranks"
        return Finding("ray", "problem", f"{found}; the recipe asks for {' and '.join(short)}", fix)
    return Finding("ray", "ok", found)


def _nodes(said: Mapping[str, Any], folder: Path | None) -> list[Finding]:
    found = []
    mine = {"python": sys.version.split()[0], "drover": metadata.version("drover"), "torch": metadata.version("torch")}
    for node in said["nodes"]:
        name = f"node {node['address']} ({', '.join(node['marks']) or 'unmarked'})"
        if "error" in node:
            found.append(Finding("ray", "problem", f"{name}: {node['error']}", "look at the logs of its raylet"))
            continue
        for package, version in mine.items():
            if node[package] != version:
                fix = "use the same image on every node"
                found.append(Finding("ray", "problem", f"{name} has {package} {node[package]}, here is {version}", fix))
        if folder is not None and not node["file"] and _writes_runs(node, said):
            fix = "give --runs-dir a place that the head and the learner's nodes share"
            found.append(Finding("ray", "problem", f"{name} does not see {folder}: checkpoints would be lost", fix))
    return found


def _writes_runs(node: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """The learner's ranks do: on marked nodes where there are such nodes, else anywhere."""
    return "learner" in node["marks"] or not any("learner" in other["marks"] for other in said["nodes"])
