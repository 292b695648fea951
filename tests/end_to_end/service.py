"""Runs the `drover` command as its users do, in a process of its own, and reads its output and its run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from drover.common.types import Report
from drover.deploy.run_folder.results import RunFolder

DROVER = str(Path(sys.executable).with_name("drover"))
RECIPES = Path(__file__).with_name("recipes.py")
SLOW_TOY = f"{RECIPES}:slow_toy"
UPDATES = 20  # of the slow toy
ALL_TRAINED = {"issued": 80, "in_flight": 0, "trained": 80, "empty": 0, "failed": 0, "stale": 0}  # 4 groups in each
PATIENCE_S = 600.0  # for any step of a run on a busy machine


class Train:
    """One ``drover train``, in a session of its own. Leaving the context ends it and everything it started."""

    def __init__(
        self, recipe: str, *arguments: str, runs_dir: Path, name: str = "run", env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = RunFolder(runs_dir / name)
        self._out, self._err = runs_dir / f"{name}.out", runs_dir / f"{name}.err"
        command = [DROVER, "train", recipe, *arguments, "--runs-dir", str(runs_dir), "--run-name", name, "--plain"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, start_new_session=True, env={**clean_environment(), **(env or {})}
            )
        self.family: set[psutil.Process] = set()  # every process of the run that `look` has seen

    def __enter__(self) -> Train:
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        for process in (psutil.Process(self.process.pid), *self.family) if self.process.poll() is None else self.family:
            if process.is_running():
                process.kill()
        self.process.wait()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.folder.summary.read_text())

    @property
    def events(self) -> list[str]:
        return [report.text for report in self.folder.reports() if report.kind == "event"]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder.path / "toy.safetensors")

    def look(self) -> None:
        """Remember every process that the command has started so far."""
        if self.process.poll() is None:
            self.family.update(psutil.Process(self.process.pid).children(recursive=True))

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the command's end and return its exit code."""
        gives_up_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < gives_up_s, f"still running after {timeout_s:.0f} s: {self.out}\n{self.err}"
            time.sleep(0.2)
        return self.process.returncode

    def finish(self) -> dict[str, Any]:
        """Wait for an end with exit code 0 and return the run's summary."""
        code = self.end()
        assert code == 0, f"exit code {code}: {self.out}\n{self.err}"
        return self.summary

    def await_update(self, number: int) -> None:
        self.until(
            lambda: any(report.scalars.get("update", 0) >= number for report in self.updates()), f"update {number}"
        )

    def await_workers(self, *names: str) -> None:
        self.until(lambda: set(names) <= self.targets().keys(), f"metrics of {', '.join(names)}")

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until ``reached``. Fails when the command ends first."""
        gives_up_s = time.monotonic() + PATIENCE_S
        while not reached():
            self.look()
            assert self.process.poll() is None, f"ended before {what}: {self.out}\n{self.err}"
            assert time.monotonic() < gives_up_s, f"no {what} after {PATIENCE_S:.0f} s: {self.out}\n{self.err}"
            time.sleep(0.1)

    def updates(self) -> list[Report]:
        return [report for report in self.folder.reports() if report.kind == "update"]

    def targets(self) -> dict[str, str]:
        """Worker -> HOST:PORT of its metrics, as Prometheus is told."""
        path = self.folder.path / "metrics_targets.json"
        found = json.loads(path.read_text()) if path.exists() else []
        return {entry["labels"]["worker"]: entry["targets"][0] for entry in found}

    def worker(self, name: str) -> psutil.Process:
        """The process of that worker, found by the port of its metrics. Waits for the restart of one that has just died."""
        found: set[int] = set()

        def listens() -> bool:
            port = int(self.targets().get(name, ":0").rsplit(":", 1)[1])
            found.update(c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port)
            return bool(found)

        self.until(listens, f"{name} at its port")
        (pid,) = found
        return psutil.Process(pid)


def clean_environment() -> dict[str, str]:
    """This process's environment without the addresses of another Ray or Redis; Ray keeps its workers' priority normal."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DROVER_REDIS_URL")}
    return {**kept, "RAY_worker_niceness": "0"}


def drover(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that is expected to end soon."""
    environment = {**clean_environment(), **(env or {})}
    return subprocess.run([DROVER, *arguments], capture_output=True, text=True, env=environment, timeout=PATIENCE_S)


def command_lines(processes: Iterator[psutil.Process] | set[psutil.Process]) -> dict[int, str]:
    """Pid -> command line, of the processes that still run."""
    found = {}
    for process in processes:
        try:
            found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def survivors(processes: set[psutil.Process], *, wait_s: float = 10.0) -> dict[int, str]:
    """Pid -> command line of the processes that still run after at most ``wait_s``."""
    gives_up_s = time.monotonic() + wait_s
    while (alive := [p for p in processes if _lives(p)]) and time.monotonic() < gives_up_s:
        time.sleep(0.2)
    return command_lines(set(alive))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def account(summary: dict[str, Any]) -> dict[str, int]:
    """The run's ledger, which must balance with nothing left in flight."""
    ledger = summary["ledger"]
    ended = ledger["trained"] + ledger["empty"] + ledger["failed"] + ledger["stale"]
    assert ledger["issued"] == ended, ledger
    assert ledger["in_flight"] == 0, ledger
    return ledger


def assert_same(weights: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    """Assert that the weights are equal bit for bit."""
    assert weights.keys() == reference.keys()
    for name, tensor in reference.items():
        assert torch.equal(weights[name], tensor), (weights[name] - tensor).abs().max()


@contextmanager
def small_ray(num_cpus: int) -> Iterator[str]:
    """Start a Ray that runs join through RAY_ADDRESS; gives its address."""
    code = (
        "import ray, sys\n"
        f"ray.init(address='local', num_cpus={num_cpus}, include_dashboard=False, logging_level='error')\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
        "ray.shutdown()\n"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert host.stdin is not None
    assert host.stdout is not None
    try:
        yield host.stdout.readline().strip()
    finally:
        host.stdin.close()
        host.wait(timeout=60)
