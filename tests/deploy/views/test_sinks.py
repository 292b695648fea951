"""TensorBoard and W&B read back with their own readers; a sink that fails is left out, and the run goes on."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drover.common.errors import ConfigError
from drover.common.types import Report
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.views import sinks
from tests.common.media.made_up import pictures_in
from tests.deploy.in_place import small
from tests.deploy.made_up_run import run

PICTURE = pictures_in("gone", 2, 4, 4, 3)


class Listener:
    """A view that keeps the reports it gets."""

    def __init__(self) -> None:
        self.heard: list[Report] = []
        self.left = False

    def update(self, report: Report) -> None:
        self.heard.append(report)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True


def evaluated(folder: RunFolder, shade: int) -> Report:
    """An evaluation whose pictures, 3 prompts of 2 samples, have just been kept."""
    media = np.full((3, 2, 4, 4, 3), shade, np.uint8)
    np.savez_compressed(folder.path / "during.npz", media=media, prompts=np.array(["a", "b", "c"]))
    scalars = {"update": 7.0, "heldout/colour/mean": 0.5}
    prompts = ("a", "b", "c")
    return Report(
        kind="eval", at_s=30.0, version=7, scalars=scalars, text="during", prompts=prompts, media=(PICTURE,) * 3
    )


def told(
    tmp_path: Path, *names: Any, reports: list[Report] | None = None, shade: int = 90
) -> tuple[RunFolder, Listener]:
    folder, view = RunFolder.create("told", tmp_path), Listener()
    with sinks.beside(view, names, folder, small()) as beside:
        for report in run(5, 50) if reports is None else reports:
            beside.update(report)
        beside.update(evaluated(folder, shade))
    return folder, view


@pytest.mark.slow
def test_tensorboard_reads_every_scalar_by_update_and_the_grid_of_samples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, view = told(tmp_path, "tensorboard")
    found = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    updates = [report for report in run(5, 50) if report.kind == "update"]
    assert set(updates[0].scalars) <= set(found.Tags()["scalars"])
    series = found.Scalars("reward/colour/mean")
    assert [(event.step, event.value) for event in series] == [
        (index, pytest.approx(update.scalars["reward/colour/mean"])) for index, update in enumerate(updates, start=1)
    ]
    assert found.Scalars("heldout/colour/mean")[-1].step == 7
    (image,) = found.Images("heldout/pictures")
    assert (image.step, image.height, image.width) == (7, 3 * 4 + 2 * 2, 2 * 4 + 2)
    assert view.left and len(view.heard) == len(run(5, 50)) + 1


@pytest.mark.slow
def test_wandb_keeps_scalars_and_samples_offline_and_goes_on_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, view = told(tmp_path, "wandb")
    assert not [report.text for report in view.heard if report.kind == "event"]
    (kept,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    history, config = read(kept)
    assert [row["reward/colour/mean"] for row in history if "reward/colour/mean" in row] == [
        pytest.approx(report.scalars["reward/colour/mean"]) for report in run(5, 50) if report.kind == "update"
    ]
    (picture,) = [row for row in history if "heldout/pictures.path" in row]
    assert (picture["heldout/pictures.height"], picture["heldout/pictures.width"], picture["update"]) == (16, 10, 7)
    assert (kept.parent / "files" / picture["heldout/pictures.path"]).stat().st_size > 0
    assert (config["rewards"], config["pools/actors"]) == (["point"], 1)
    assert config["recipe"] == small().recipe
    assert str(tmp_path) not in str(config)
    assert kept.stem == f"run-{(folder.path / 'wandb_id').read_text()}"


def test_a_sink_that_fails_is_told_of_once_and_the_run_goes_on(tmp_path: Path) -> None:
    class Full:
        def __init__(self) -> None:
            self.calls = 0

        def scalars(self, values: dict[str, float], step: int, at_s: float) -> None:
            self.calls += 1
            raise OSError(28, "No space left on device")

        def pictures(self, *_: object) -> None: ...

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    full, folder, view = Full(), RunFolder.create("full", tmp_path), Listener()
    reports = run(5, 50)
    with sinks.Beside(view, folder, {"full": lambda: full}) as beside:
        for report in reports:
            beside.update(report)
    assert full.calls == 1
    said = [report.text for report in view.heard if report not in reports]
    assert said == ["full gets nothing more: [Errno 28] No space left on device"]
    assert [report.text for report in folder.reports()] == said, "and `drover status` can say it too"


def test_pictures_that_were_lost_are_not_replaced_by_older_ones(tmp_path: Path) -> None:
    class Gallery:
        def __init__(self) -> None:
            self.shades: list[int] = []

        def scalars(self, values: dict[str, float], step: int, at_s: float) -> None: ...

        def pictures(self, name: str, grid: np.ndarray, prompts: object, step: int) -> None:
            self.shades.append(int(grid[0, 0, 0]))

        def close(self) -> None: ...

    gallery, folder = Gallery(), RunFolder.create("lossy", tmp_path)
    with sinks.Beside(Listener(), folder, {"gallery": lambda: gallery}) as beside:
        kept = evaluated(folder, 10)
        beside.update(kept)
        beside.update(kept)  # this evaluation's pictures were lost: the file is still that of the evaluation before
        beside.update(evaluated(folder, 20))
    assert gallery.shades == [10, 20]


def test_a_missing_library_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--log-to wandb needs .* pip install wandb"):
        sinks.beside(Listener(), ("wandb",), RunFolder.create("run", tmp_path), small())


def test_without_sinks_the_view_is_all_there_is(tmp_path: Path) -> None:
    view = Listener()
    assert sinks.beside(view, (), RunFolder.create("run", tmp_path), small()) is view


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows of the history, config) of W&B's own file."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        if record.WhichOneof("record_type") == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config


def records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, after W&B's seven bytes: blocks of 32 KiB, at whose ends records are divided."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a heading was left in the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += 7 + length
        parts += content[at - length : at]
        if kind in (1, 4):  # whole, or the last of its parts
            yield parts
            parts = b""
