"""Table 5 of arXiv 2401.12244 on shapes: one model per task against one for all tasks: `python -m benchmarks.joint`.

The benchmark judges the untrained shapes model, models trained on one task, and models trained jointly on all three
held-out metrics, over several seeds. Every task gets the same number of iterations, alone or jointly. Runs that are
already in the folder are not repeated, so a stopped benchmark can go on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import measure
from benchmarks.measure import Spread, table

RUNS = Path("runs/joint")
SEEDS = [0, 1, 2]
ROUNDS = 20  # iterations of each task
MODELS = ("preference", "composition", "fairness", "joint")
METRICS = {"taste": "human preference", "composition": "composition", "parity": "parity error"}
FALLS = {"parity"}  # better when smaller; the reward is its negative

Found = dict[str, dict[str, list[float]]]  # model -> metric -> a value for each seed


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    seeds, rounds = (SEEDS[:1], 2) if chosen.quick else (SEEDS, ROUNDS)
    facts = measure.machine()
    found, seconds = collect(RUNS, seeds, rounds)
    picture = RUNS / ("quick.png" if chosen.quick else "joint.png")
    draw(found, picture)
    whole = {"seeds": seeds, "rounds": rounds, "held_out": found, "seconds": seconds, "picture": str(picture)}
    measure.show(chosen, facts, whole, [as_table(found, seeds), time_table(seconds)])


def collect(runs_dir: Path, seeds: Sequence[int], rounds: int) -> tuple[Found, dict[str, list[float]]]:
    """Make all missing runs; return the measurements and the seconds of all runs."""
    found: Found = {model: {metric: [] for metric in METRICS} for model in ("base", *MODELS)}
    seconds: dict[str, list[float]] = {model: [] for model in MODELS}
    for number, seed in enumerate(seeds):
        for place, model in enumerate(MODELS):
            done = f"{number * len(MODELS) + place + 1}/{len(seeds) * len(MODELS)}"
            summary = run(runs_dir, model, seed, rounds, done)
            for metric in METRICS:
                sign = -1 if metric in FALLS else 1
                if model == "joint":
                    found["base"][metric].append(sign * of_set(summary["reward_before"], metric))
                found[model][metric].append(sign * of_set(summary["reward_after"], metric))
            seconds[model].append(summary["command_s"])
    return found, seconds


def of_set(results: dict[str, float], metric: str) -> float:
    """Return the result of a reward that judges only one held-out set. Results are named SET/REWARD."""
    (value,) = (value for key, value in results.items() if key.endswith(f"/{metric}"))
    return value


def run(runs_dir: Path, model: str, seed: int, rounds: int, done: str) -> dict[str, Any]:
    """Return the summary of one run, which is made if it is missing."""
    name = f"{model}-{rounds}-seed{seed}"
    path = runs_dir / name / "summary.json"
    if not path.exists():
        began = time.monotonic()
        tasks = [] if model == "joint" else ["--tasks", model]
        command = [str(Path(sys.executable).with_name("drover")), "train", "shapes_joint", *tasks]
        command += ["--rounds", str(rounds), "--seed", str(seed), "--runs-dir", str(runs_dir), "--run-name", name]
        subprocess.run([*command, "--plain", "--json"], check=True, stdout=subprocess.DEVNULL)
        print(f"{done} {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def as_table(found: Found, seeds: Sequence[int]) -> Table:
    """Make the table of means over the seeds with standard deviations. Values worse than the base's are marked."""
    rows = []
    for model, metrics in found.items():
        cells = []
        for metric in METRICS:
            mean, base = statistics.mean(metrics[metric]), statistics.mean(found["base"][metric])
            spread = statistics.stdev(metrics[metric]) if len(seeds) > 1 else 0.0
            worse = mean > base if metric in FALLS else mean < base
            cells.append(f"{mean:.3f} ± {spread:.3f}{' worse' if worse and model != 'base' else ''}")
        rows.append([model if model in ("base", "joint") else f"only {model}", *cells])
    heads = [f"{words} {'down' if metric in FALLS else 'up'}" for metric, words in METRICS.items()]
    return table(f"held-out, {len(seeds)} seeds", ["trained on", *heads], rows)


def time_table(seconds: dict[str, list[float]]) -> Table:
    """Make the table of the seconds of a whole run."""
    rows = [[model, Spread.of(some).text()] for model, some in seconds.items()]
    return table("seconds of a run", ["trained on", "median (range)"], rows)


def draw(found: Found, path: Path) -> None:
    """Draw a panel for each metric, with a bar for each model, a dot for each seed, and a line for the base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for ax, (metric, words) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for x, (model, metrics) in enumerate(found.items()):
            colour = {"base": "#BBBBBB", "joint": "#009E73"}.get(model, "#56B4E9")
            ax.bar(x, statistics.mean(metrics[metric]), color=colour, zorder=2)
            ax.plot([x] * len(metrics[metric]), metrics[metric], "o", color="black", markersize=4, zorder=3)
        ax.axhline(statistics.mean(found["base"][metric]), color="black", linewidth=0.8, linestyle=":", zorder=4)
        values = [value for metrics in found.values() for value in metrics[metric]]
        margin = 0.4 * (max(values) - min(values)) or 0.1
        ax.set_ylim(max(0.0, min(values) - margin), max(values) + margin)
        ax.set_xticks(range(len(found)), [m if m in ("base", "joint") else f"only\n{m}" for m in found], fontsize=8)
        ax.set_title(f"{words} ({'lower' if metric in FALLS else 'higher'} is better)")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
