"""Measures which part of the service's wall time x cores goes into the model itself, and which parts go elsewhere.

    python -m benchmarks.efficiency [--quick] [--json] [--out FILE]

"Alone" are the network calls of a run in one process with one thread, without anything else. "Service" is `drover train`
with all its processes. Efficiency is the seconds that the same work takes alone over wall time x cores, in the steady
part of the run: after the first updates, and before the actors run out of orders at its end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Spread
from drover.deploy.config import RunConfig
from drover.deploy.options import Training
from drover.deploy.recipes.shapes import shapes_ddpo

GOAL = 0.90
FIRST_UPDATE = 3  # the run is steady from here on
LOOK_S = 0.05
RUN_TIMEOUT_S = 1800.0
ROLES = ("learner", "actor", "reward")
ROOT = Path(__file__).resolve().parents[1]
_ROLE_SECONDS = re.compile(r'drover_role_seconds_total\{part="(\w+)",role="(\w+)"\} (\S+)')


# ------------------------------------------------------------------------------------------------- alone


@dataclass(frozen=True, slots=True)
class Unit:
    """The seconds of one network call of each kind."""

    sample_step: float  # one guided UNet call on as many groups as an actor takes at once, divided by these groups
    decode: float  # the images of a group
    encode: float  # one prompt
    learn: float  # forward and backward of one recorded step, in a full micro-batch
    optimizer: float  # one step


class Alone:
    """The networks of a run and its roles' calls of them, without the service."""

    def __init__(self, config: RunConfig) -> None:
        from drover.common.policies.guided import Guided

        policy: Any = config.model.build("cpu")
        self._config, self._guided = config, isinstance(policy, Guided)
        self._policy = policy.policy if self._guided else policy
        self._unet, self._vae = self._policy.trainable, self._policy.pipeline.vae
        self._parameters = [p for p in self._unet.parameters() if p.requires_grad]
        spec = config.optimizer
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-12, betas=spec.betas, weight_decay=0.0)

    def measure(self, calls: int) -> Unit:
        """Return the means over ``calls`` calls of each kind; the kinds take turns."""
        kinds: dict[str, Callable[[], None]] = {
            "sample_step": self._sample_step,
            "decode": self._decode,
            "encode": self._encode,
            "learn": self._learn,
            "optimizer": self._optimizer.step,
        }
        found = measure.alternate(calls, {name: partial(_seconds, call) for name, call in kinds.items()})
        means = {name: sum(values) / len(values) for name, values in found.items()}
        means["learn"] /= self._config.batch_size
        means["sample_step"] /= self._config.pools.actor_groups
        self._optimizer.zero_grad(set_to_none=True)
        return Unit(**means)

    def _call(self, batch: int) -> Tensor:
        rows = 2 * batch if self._guided else batch
        x, time = torch.randn(rows, *self._policy.latent_shape), torch.full((rows,), 501)
        text = self._policy.encode(["a red circle"])["text"].expand(rows, -1, -1)
        output: Tensor = self._unet(x, time, encoder_hidden_states=text).sample
        return output

    @torch.no_grad()
    def _sample_step(self) -> None:
        self._call(self._config.samples * self._config.pools.actor_groups)

    @torch.no_grad()
    def _decode(self) -> None:
        self._vae.decode(torch.randn(self._config.samples, *self._policy.latent_shape))

    @torch.no_grad()
    def _encode(self) -> None:
        tokenizer, encoder = self._policy.pipeline.tokenizer, self._policy.pipeline.text_encoder
        length = tokenizer.model_max_length
        encoder(tokenizer("a red circle", padding="max_length", max_length=length, return_tensors="pt").input_ids)

    def _learn(self) -> None:
        self._call(self._config.batch_size).square().mean().backward()


def _seconds(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of the call: with one thread, these are its wall seconds on a quiet machine."""
    started = time.process_time()
    call()
    return time.process_time() - started


# ----------------------------------------------------------------------------------------------- service


@dataclass(frozen=True, slots=True)
class Moment:
    """The clocks and accounts of the service when one of its updates was seen. Clocks have arbitrary origins."""

    wall_s: float
    cpu_s: float  # CPU seconds of all its processes so far
    parts: dict[str, dict[str, float]]  # role -> part -> seconds so far
    scraped_s: dict[str, float]  # role -> time at which its parts were read
    scalars: dict[str, float]


def run_service(arguments: Sequence[str], first: int, last: int) -> tuple[Moment, Moment]:
    """Run the service; return its moments at the updates ``first`` and ``last``.

    Raises RuntimeError with the end of its output if it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-c",
            "from drover.deploy.cli import main; main()",
            "train",
            "shapes_ddpo",
            *arguments,
        ]
        command += ["--run-name", "efficiency", "--runs-dir", scratch, "--json"]
        with (Path(scratch) / "said").open("w+b") as said:
            service = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
            try:
                moments = _watch(service, Path(scratch) / "efficiency", {first, last})
            finally:
                if service.poll() is None:
                    service.terminate()
                service.wait(60)
            if moments.keys() != {first, last} or service.returncode != 0:
                said.seek(0)
                raise RuntimeError(f"the run ended with code {service.returncode}: {said.read()[-2000:].decode()}")
    return moments[first], moments[last]


def _watch(service: subprocess.Popen[bytes], folder: Path, updates: set[int]) -> dict[int, Moment]:
    """Return update -> moment for the given updates, taken as they come, when the run has ended."""
    found: dict[int, Moment] = {}
    seen, ends_s = 0, time.monotonic() + RUN_TIMEOUT_S
    while service.poll() is None and time.monotonic() < ends_s:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if (folder / "metrics.jsonl").exists() else []
        for line in lines[seen:]:
            report = json.loads(line)
            update = int(report["scalars"].get("update", -1))
            if report["kind"] == "update" and update in updates:
                found[update] = _moment(service.pid, folder, report)
        seen = len(lines)
        time.sleep(LOOK_S)
    return found


def _moment(pid: int, folder: Path, report: Mapping[str, Any]) -> Moment:
    scalars: dict[str, float] = report["scalars"]
    wall_s = report["at_s"]
    cpu_s = family_cpu_s(pid)
    learner = {key.rsplit("/")[-1]: value for key, value in scalars.items() if key.startswith("account/learner/")}
    parts, scraped_s = {"learner": learner}, {"learner": wall_s}
    for target in json.loads((folder / "metrics_targets.json").read_text()):
        for role, account in _scrape(target["targets"][0]).items():
            if role == "learner":  # its account is exact in the report of the update
                continue
            mine = parts.setdefault(role, {})
            for part, seconds in account.items():
                mine[part] = mine.get(part, 0.0) + seconds
            scraped_s[role] = time.monotonic()
    return Moment(wall_s, cpu_s, parts, scraped_s, scalars)


def _scrape(target: str) -> dict[str, dict[str, float]]:
    """Read role -> part -> seconds from a worker's metrics."""
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for part, role, seconds in _ROLE_SECONDS.findall(text):
        found.setdefault(role, {})[part] = float(seconds)
    return found


def family_cpu_s(pid: int) -> float:
    """Return the CPU seconds (user and system) of a process, its living descendants, and the children that they waited for."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(spent.get(member, 0.0) for member in family)


# --------------------------------------------------------------------------------------------- comparison


def compare(config: RunConfig, unit: Unit, start: Moment, end: Moment) -> dict[str, Any]:
    """Compute the efficiency of one run's steady part, and the account of every role."""
    iterations = int(end.scalars["update"] - start.scalars["update"])
    groups = iterations * config.groups
    taught = int(end.scalars["ledger/trained"] - start.scalars["ledger/trained"])
    alone = {
        "sampling": groups * config.sampler.kernel.num_steps * unit.sample_step,
        "decoding": groups * unit.decode,
        "encoding": 2 * _new_prompts(config, int(start.scalars["update"]), iterations) * unit.encode,
        "learning": taught * config.samples * (config.record.count if config.record else 1) * unit.learn,
        "optimizer": iterations * config.updates * unit.optimizer,
    }
    wall_s, cpu_s = end.wall_s - start.wall_s, end.cpu_s - start.cpu_s
    alone_s, samples = sum(alone.values()), groups * config.samples
    return {
        "updates": iterations,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "alone_s": alone_s,
        "alone": alone,
        "efficiency": alone_s / (wall_s * measure.cores()),
        "of_cpu": alone_s / cpu_s,
        "samples_per_s": samples / wall_s,
        "samples_per_s_per_core": samples / wall_s / measure.cores(),
        "roles": {role: _account(config, role, start, end) for role in ROLES},
    }


def _new_prompts(config: RunConfig, first: int, iterations: int) -> int:
    """Return the number of prompts that first occur in these iterations; actor and learner each encode them once."""
    order = config.learner_spec().order
    at = [order.prompt(place) for place in range((first + iterations) * config.groups)]
    return len(set(at)) - len(set(at[: first * config.groups]))


def _account(config: RunConfig, role: str, start: Moment, end: Moment) -> dict[str, Any]:
    """Return the parts of the role's time between the two moments as shares of that time, and the sum of these shares."""
    workers = {"learner": 1, "actor": config.pools.actors, "reward": config.pools.reward_servers}[role]
    wall_s = (end.scraped_s[role] - start.scraped_s[role]) * workers
    before = start.parts[role]
    spent = {part: seconds - before.get(part, 0.0) for part, seconds in end.parts[role].items()}
    shares = {part: seconds / wall_s for part, seconds in sorted(spent.items(), key=lambda item: -item[1])}
    return {"shares": shares, "sum": sum(shares.values())}


# --------------------------------------------------------------------------------------------------- main


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    torch.set_num_threads(1)
    iterations, repeats, calls = (8, 1, 5) if chosen.quick else (16, 3, 30)
    config = shapes_ddpo(training=Training(iterations=iterations, groups=64, samples=8))
    last = iterations - config.max_lag - 1  # from here on there are no new orders, and actors run out of work
    alone = Alone(config)
    sides: dict[str, Callable[[], Any]] = {
        "alone": lambda: alone.measure(calls),
        "service": lambda: run_service(["--iterations", str(iterations)], FIRST_UPDATE, last),
    }
    found = measure.alternate(repeats, sides, warmups=0)
    runs = [compare(config, unit, *moments) for unit, moments in zip(found["alone"], found["service"], strict=True)]
    measure.show(chosen, facts, {"efficiency": runs}, [_summary_table(runs), _alone_table(runs), _roles_table(runs)])


def _of(runs: Sequence[dict[str, Any]], key: str) -> Spread:
    return Spread.of([run[key] for run in runs])


def _summary_table(runs: Sequence[dict[str, Any]]) -> Any:
    rows = [
        ("steady part, s", _of(runs, "wall_s").text()),
        (f"x {measure.cores()} cores, s", measure.significant(_of(runs, "wall_s").median * measure.cores())),
        ("CPU time of the service, s", _of(runs, "cpu_s").text()),
        ("the same work alone, s", _of(runs, "alone_s").text()),
        ("efficiency: alone / (wall x cores)", _of(runs, "efficiency").text()),
        ("alone / CPU time", _of(runs, "of_cpu").text()),
        ("samples / s", _of(runs, "samples_per_s").text()),
        ("samples / s / core", _of(runs, "samples_per_s_per_core").text()),
    ]
    return measure.table(f"shapes_ddpo, {runs[0]['updates']} updates, goal: efficiency >= {GOAL}", ("", "median"), rows)


def _alone_table(runs: Sequence[dict[str, Any]]) -> Any:
    kinds = list(runs[0]["alone"])
    medians = {kind: Spread.of([run["alone"][kind] for run in runs]).median for kind in kinds}
    whole = sum(medians.values())
    rows = [(kind, measure.significant(s), f"{s / whole:.1%}") for kind, s in medians.items()]
    return measure.table("The work alone", ("", "s", "share"), rows)


def _roles_table(runs: Sequence[dict[str, Any]]) -> Any:
    parts = list(dict.fromkeys(part for run in runs for role in ROLES for part in run["roles"][role]["shares"]))
    rows = []
    for role in ROLES:
        shares = [Spread.of([run["roles"][role]["shares"].get(part, 0.0) for run in runs]).median for part in parts]
        total = Spread.of([run["roles"][role]["sum"] for run in runs])
        rows.append((role, *(f"{share:.1%}" for share in shares), f"{total.low:.1%}-{total.high:.1%}"))
    return measure.table("Where each role's time goes, of its wall time", ("role", *parts, "sum"), rows)


if __name__ == "__main__":
    main()
