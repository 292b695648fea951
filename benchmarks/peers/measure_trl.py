"""Measures TRL's DDPO on the shapes pipeline, with one core and with two, with a free reward and with a slow one.

    make bench-env
    .venv/bin/python -m benchmarks.peers.measure_trl

Prints one JSON line for each setting (fields: `benchmarks.peers.trl_ddpo.Figures`), each from a process of its own.
``load_before`` is the machine's load average just before: two threads on two cores are many times slower if another
process uses one of the cores, so compare only figures taken near 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from drover.worlds.shapes.prompts import HELDOUT_KINDS, KINDS, kind_prompt

ROOT = Path(__file__).resolve().parents[2]
PEER_PYTHON = ROOT / ".venv-trl/bin/python"
PIPELINE = ROOT / "worlds/shapes/models/text_to_image"
PROMPTS = tuple(kind_prompt(kind) for kind in KINDS if kind not in HELDOUT_KINDS)

THREADS = (1, 2)
REWARD_SLEEPS_S = (0.0, 0.2)  # seconds for each image; 0.2 is a scorer that training waits for


def measure(pipeline: Path, *, threads: int, reward_sleep_s: float, epochs: int) -> dict[str, Any]:
    """Return the figures of one run. Raises RuntimeError with the end of the peer's output if it fails."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Path(scratch) / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS))
        command = [str(PEER_PYTHON), "-m", "benchmarks.peers.trl_ddpo"]
        command += ["--pipeline", str(pipeline), "--prompts", str(prompts), "--epochs", str(epochs)]
        command += ["--threads", str(threads), "--reward-sleep-s", str(reward_sleep_s)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"the peer ended with code {run.returncode}:\n{run.stderr[-2000:]}")
    return {**json.loads(run.stdout.splitlines()[-1]), "load_before": round(load_before, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=PIPELINE, help="a diffusers Stable Diffusion folder")
    parser.add_argument("--epochs", type=int, default=11, help="of 8 samples; the first is not timed")
    options = parser.parse_args()
    if not PEER_PYTHON.exists():
        parser.error(f"the peer's environment {PEER_PYTHON.parent.parent} is missing; build it with `make bench-env`")
    if not (options.pipeline / "model_index.json").exists():
        parser.error(f"{options.pipeline} is not a diffusers pipeline folder: it has no model_index.json")
    for threads, sleep_s in itertools.product(THREADS, REWARD_SLEEPS_S):
        figures = measure(options.pipeline.resolve(), threads=threads, reward_sleep_s=sleep_s, epochs=options.epochs)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
