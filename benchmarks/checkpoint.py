"""Measures how long a checkpoint stops training: written at once, or beside training; against a copy and a plain write.

    python -m benchmarks.checkpoint [--quick] [--json] [--out FILE]

One rank on the CPU with one thread, float32 weights with AdamW's two moments, on the disk of ``runs/``. "Lost besides" is
the time that a loop of matrix products, which stands for training, loses while the other thread writes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.measure import Spread
from drover.common.files import write_all
from drover.deploy.local import process_group
from drover.learner.saving.checkpoint import Checkpoints
from drover.learner.saving.shards import CHUNK

SIZES_MB = (13.0, 1700.0)  # weights and moments: the shapes UNet, a sixth of that of Stable Diffusion 1.5
LAYER_VALUES = 1 << 20  # as many as a large layer of Stable Diffusion has
PARTS = 4  # parts of the plain copy and write
UNIT_S = 0.25  # seconds of matrix products that give their rate
SIDES = {
    "stop": "behind: stopped for",
    "lost": "behind: lost besides",
    "at_once": "at once",
    "copy": "copy",
    "write": "write",
}


class Training:
    """Parameters with moments, ``nbytes`` in all, a checkpoint folder, and a loop of matrix products."""

    def __init__(self, nbytes: int, folder: Path) -> None:
        values = nbytes // 12
        layers = max(16, values // LAYER_VALUES)
        self.module = nn.ParameterList(torch.full((values // layers,), 0.5) for _ in range(layers))
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        for parameter in self.module.parameters():
            moments = {name: torch.full_like(parameter, 0.25) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
        self.checkpoints = Checkpoints(folder, keep=1)
        self._square = torch.full((256, 256), 0.5)
        self._update = 0

    def at_once(self) -> dict[str, float]:
        """Save; return the seconds until the checkpoint is whole, for which training would wait."""
        started = time.perf_counter()
        self._save()
        self.checkpoints.finish()
        return {"at_once": time.perf_counter() - started}

    def behind(self) -> dict[str, float]:
        """Save beside the products; return the seconds that these stop, and those lost until the checkpoint is whole."""
        rate = self._products(lambda elapsed_s: elapsed_s < UNIT_S)
        started = time.perf_counter()
        folder = self._save()
        stop = time.perf_counter() - started
        started = time.perf_counter()
        slowed = self._products(lambda _: not folder.exists())
        written = time.perf_counter() - started
        self.checkpoints.finish()
        return {"stop": stop, "written": written, "lost": max(0.0, written * (1 - slowed / rate))}

    def _save(self) -> Path:
        self._update += 1
        return self.checkpoints.save(self._update, self.module, self.optimizer, {})

    def _products(self, more: Callable[[float], bool]) -> float:
        """Return matrix products a second."""
        started, count = time.perf_counter(), 0
        while more(time.perf_counter() - started) or not count:
            self._square @ self._square
            count += 1
        return count / (time.perf_counter() - started)


class Floor:
    """Measures the least work of a checkpoint: one copy of its bytes in memory and one write, in parts to save memory."""

    def __init__(self, nbytes: int, folder: Path) -> None:
        self._source, self._target = (torch.ones(nbytes // PARTS, dtype=torch.uint8) for _ in range(2))
        self._path = folder / "plain"

    def copy(self) -> float:
        """Return the seconds of a copy by one thread, between memory that is already mapped."""
        started = time.perf_counter()
        for _ in range(PARTS):
            self._target.copy_(self._source)
        return time.perf_counter() - started

    def write(self) -> float:
        """Return the seconds of a write with fsync."""
        content = self._source.numpy().data
        started = time.perf_counter()
        with self._path.open("wb", buffering=0) as file:
            for _ in range(PARTS):
                for start in range(0, len(content), CHUNK):
                    write_all(file.fileno(), content[start : start + CHUNK])
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        self._path.unlink()
        return seconds


def measured(nbytes: int, repeats: int) -> dict[str, Any]:
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix=".checkpoint-") as made:
        folder = Path(made)
        training = Training(nbytes, folder)
        first = training.behind()["stop"]  # maps its memory
        sides: dict[str, Callable[[], Any]] = {"behind": training.behind, "at_once": training.at_once}
        floor = Floor(nbytes, folder)
        found = measure.alternate(repeats, {**sides, "copy": floor.copy, "write": floor.write})
    seconds = {
        "stop": [each["stop"] for each in found["behind"]],
        "lost": [each["lost"] for each in found["behind"]],
        "written": [each["written"] for each in found["behind"]],
        "at_once": [each["at_once"] for each in found["at_once"]],
        "copy": found["copy"],
        "write": found["write"],
    }
    return {
        "nbytes": nbytes,
        "first_stop_s": first,
        **{f"{side}_s": Spread.of(values).as_dict() for side, values in seconds.items()},
        "stop_per_copy": measure.ratio(seconds["stop"], seconds["copy"]).as_dict(),
        "at_once_per_stop": measure.ratio(seconds["at_once"], seconds["stop"]).as_dict(),
        "at_once_per_write": measure.ratio(seconds["at_once"], seconds["write"]).as_dict(),
    }


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    torch.set_num_threads(1)
    sizes = [int(size * 1e6) for size in (SIZES_MB[:1] if chosen.quick else SIZES_MB)]
    with process_group(Path()):
        found = [measured(nbytes, 3 if chosen.quick or nbytes > 1e9 else 9) for nbytes in sizes]
    measure.show(chosen, facts, {"checkpoint": found}, [_seconds_table(found), _ratio_table(found)])


def _seconds_table(found: Sequence[dict[str, Any]]) -> Any:
    rows = [
        (
            f"{one['nbytes'] / 1e6:,.0f} MB",
            *(_spread(one[f"{side}_s"], 1e3).text() for side in SIDES),
            measure.significant(one["first_stop_s"] * 1e3),
        )
        for one in found
    ]
    return measure.table("A checkpoint, ms", ("", *SIDES.values(), "first stop"), rows)


def _ratio_table(found: Sequence[dict[str, Any]]) -> Any:
    rows = [
        (
            f"{one['nbytes'] / 1e6:,.0f} MB",
            *(_spread(one[name]).text(2) for name in ("stop_per_copy", "at_once_per_stop", "at_once_per_write")),
        )
        for one in found
    ]
    return measure.table("Ratios", ("", "stop / one copy", "at once / stop", "at once / one write"), rows)


def _spread(found: dict[str, float], scale: float = 1.0) -> Spread:
    return Spread(found["median"] * scale, found["min"] * scale, found["max"] * scale)


if __name__ == "__main__":
    main()
