import errno
import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drover.common.errors import CheckpointError, ConfigError
from drover.common.types import Report
from drover.deploy.run_folder.history import History
from drover.deploy.run_folder.pictures import SamplePair, curves_png, samples_png
from drover.deploy.run_folder.results import RunFolder
from tests.deploy.made_up_run import report, run

RATIOS = {"ratio_first", "clip_fraction_first", "ratio", "clip_fraction", "approx_kl"}
LOSSES = {"loss", "grad_norm"}


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writes beyond that size fail after a part of them was written, as on a full disk, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def test_reports_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    written = run(50)
    for each in written:
        folder.append(each)
    assert folder.reports() == written
    assert folder.metrics.read_text().count("\n") == len(written)


def test_numbers_that_are_not_finite_stay_valid_json_and_read_as_nan(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.append(report("update", 1.0, update=1, loss=math.inf, grad_norm=math.nan))
    assert "Infinity" not in folder.metrics.read_text() and "NaN" not in folder.metrics.read_text()
    scalars = folder.reports()[0].scalars
    assert scalars["update"] == 1 and math.isnan(scalars["loss"]) and math.isnan(scalars["grad_norm"])


def test_a_run_of_that_name_is_not_overwritten_and_both_ways_out_are_named(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    with pytest.raises(ConfigError, match=r"shapes-7 holds a started run; pass --resume .* another --run-name"):
        RunFolder.create("shapes-7", tmp_path)
    folder.write_summary({"ended": "finished"})
    folder.release()
    with pytest.raises(ConfigError, match="holds a finished run"):
        RunFolder.create("shapes-7", tmp_path)
    for resume in ("must", "may"):
        again = RunFolder.create("shapes-7", tmp_path, resume=resume)
        assert again.path == folder.path
        again.release()


def test_resuming_what_never_ran_is_an_error_that_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run to resume at .*begin it with --run-name"):
        RunFolder.create("shapes-7", tmp_path, resume="must")
    assert RunFolder.create("shapes-7", tmp_path, resume="may").checkpoints.is_dir()


def test_a_run_of_another_process_is_neither_resumed_nor_begun_until_that_process_is_gone(tmp_path: Path) -> None:
    program = "import sys; from drover.deploy.run_folder.results import RunFolder; from pathlib import Path\n"
    program += "folder = RunFolder.create('run', Path(sys.argv[1])); print('runs', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "runs\n"
    with pytest.raises(ConfigError, match=rf"run is being run by process {other.pid} on .*; stop that first"):
        RunFolder.create("run", tmp_path, resume="may")
    other.kill()
    other.communicate()
    assert RunFolder.create("run", tmp_path, resume="may").path.is_dir()


@pytest.mark.parametrize("name", ["", "../elsewhere", "a/b", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a folder"):
        RunFolder.create(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="cannot create"):
        RunFolder.create("shapes-7", tmp_path / "runs")


def test_half_a_line_left_by_a_crash_is_ignored_and_cut_when_resuming(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.append(report("phase", 1.0, "evaluating"))
    with folder.metrics.open("a") as file:
        file.write('{"kind": "upd')
    assert len(folder.reports()) == 1
    folder.release()
    resumed = RunFolder.create("shapes-7", tmp_path, resume="must")
    resumed.append(report("phase", 2.0, "training"))
    assert [each.text for each in resumed.reports()] == ["evaluating", "training"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.append(report("phase", 1.0, "evaluating"))
    with folder.metrics.open("a") as file:
        file.write("[]\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2 is no report"):
        folder.reports()


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.append(report("phase", 1.0, "evaluating"))
    before = folder.metrics.read_bytes()
    with files_limited_to(len(before) + 40), pytest.raises(CheckpointError, match=r"metrics\.jsonl.*free space"):
        folder.append(report("phase", 2.0, "training " * 20))
    assert folder.metrics.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_named_with_the_fix(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space there") as caught:
        folder.append(report("phase", 1.0, "evaluating"))
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC


def test_a_summary_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.write_summary({"colour": 0.3})
    with files_limited_to(4096), pytest.raises(CheckpointError, match=r"summary\.json.*free space"):
        folder.write_summary({"colour": "x" * 10_000})
    assert json.loads(folder.summary.read_text()) == {"colour": 0.3}
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "checkpoints", "summary.json"]
    folder.write_summary({"colour": 0.7})
    assert json.loads(folder.summary.read_text()) == {"colour": 0.7}


@pytest.mark.parametrize("content", ["", "[]", '{"ended": "finished"'])
def test_a_run_whose_summary_is_damaged_has_not_finished_and_can_be_gone_on_with(tmp_path: Path, content: str) -> None:
    folder = RunFolder.create("shapes-7", tmp_path)
    folder.write_summary({"ended": "finished"})
    assert folder.finished
    folder.release()
    folder.summary.write_text(content)
    assert not RunFolder.create("shapes-7", tmp_path, resume="may").finished
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged .*; delete it, and --resume shapes-7 writes"):
        folder.read_summary()


@pytest.mark.parametrize("root", ["~", "~/runs", "~no-such-user/runs"])
def test_no_folder_is_made_that_is_called_like_a_home(tmp_path: Path, root: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'~.*' names no folder here; write the whole path"):
        RunFolder.create("shapes-7", Path(root))
    assert list(tmp_path.iterdir()) == []


def test_fifty_updates_draw_curves_of_1600_by_1000(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    folder = RunFolder.create("shapes-7", tmp_path)
    for each in run(50):
        folder.append(each)
    folder.draw_curves()
    drawn = pixels(folder.curves.read_bytes())
    assert drawn.shape == (1000, 1600, 3)
    assert drawn.std() > 20
    # Every third of the page holds ink, and the stacked areas hold the colour of the actors' largest share of time.
    assert all(third.std() > 10 for third in np.array_split(drawn, 3))
    assert (drawn == (0x00, 0x72, 0xB2)).all(axis=-1).mean() > 0.03
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("updates", [0, 1])
def test_a_run_that_has_barely_begun_is_drawn(updates: int) -> None:
    assert pixels(curves_png(History.of(run(updates, 50)), title="shapes-7")).shape == (1000, 1600, 3)


def test_nothing_but_rewards_is_drawn_with_the_other_panels_empty() -> None:
    reports = [report("update", i, update=i, **{f"reward__r{r}__mean": i * r for r in range(7)}) for i in range(1, 4)]
    empty = pixels(curves_png(History(), title="$x"))
    assert np.abs(pixels(curves_png(History.of(reports), title="$x")).astype(int) - empty).mean() > 1


def test_a_method_without_a_ratio_has_its_loss_and_gradient_drawn_and_no_zeros() -> None:
    def drawn(reports: list[Report]) -> np.ndarray:
        return pixels(curves_png(History.of(reports), title="x"))

    ratio = [replace(each, scalars={k: v for k, v in each.scalars.items() if k not in LOSSES}) for each in run(50)]
    assert np.array_equal(drawn(ratio), drawn(run(50))), "a method with a ratio has the same panels as ever"
    plain = [replace(each, scalars={k: v for k, v in each.scalars.items() if k not in RATIOS}) for each in run(50)]
    blue = (drawn(plain)[400:650] == (0x00, 0x72, 0xB2)).all(axis=-1).any(axis=0)
    assert all(blue[x : x + 400].any() for x in range(0, 1600, 400)), "loss, gradient norm, lag, speed"
    assert not History.of(plain).has_ratio


def test_the_time_of_evaluators_is_drawn_where_there_are_any() -> None:
    blue = (0x00, 0x72, 0xB2)  # of computing
    spent = [{f"account__{role}__compute": 2.0 * i for role in ("actor", "evaluator")} for i in range(1, 4)]
    reports = [report("update", i, update=i, **each) for i, each in enumerate(spent, start=1)]
    row = (pixels(curves_png(History.of(reports), title="x"))[700:] == blue).all(axis=-1).any(axis=0)
    assert row[:800].any(), "panels one and two of four hold actors and evaluators"
    filled = [row[x : x + 400].mean() for x in range(0, 1600, 400)]
    assert min(filled[:2]) > 0.5 > max(filled[2:])


def watched(update: int, truth: float, proxy: float) -> Report:
    found = {"truth": truth, "proxy": proxy, "gap": proxy - truth}
    return report(
        "eval", update, update=update, **{f"overoptimisation__{name}": value for name, value in found.items()}
    )


def test_a_watched_proxy_that_parts_from_the_truth_is_a_line_of_its_own() -> None:
    evaluations = [watched(0, 0.0, 0.0), watched(10, 0.5, 0.5), watched(20, -1.0, 2.0)]
    history = History.of([*run(50)[:40], *evaluations])
    assert history.watched("gap") == ([0, 10, 20], [0.0, 0.0, 3.0])
    drawn = pixels(curves_png(history, title="x"))
    assert drawn.shape == (1000, 1600, 3)
    green = (drawn[:350] == (0x00, 0x9E, 0x73)).all(axis=-1)  # the colour of the truth's line; no reward's panel has it
    assert green[:, 1100:].sum() > 50 and not green[:, :1100].any()


def small_pair(num_prompts: int = 2, num_seeds: int = 3, size: int = 32) -> SamplePair:
    """A pair of sample grids in which each image has one colour of its own."""
    rng = np.random.default_rng(0)
    before, after = (
        np.broadcast_to(
            rng.integers(0, 255, (num_prompts, num_seeds, 1, 1, 3), dtype=np.uint8),
            (num_prompts, num_seeds, size, size, 3),
        )
        for _ in range(2)
    )
    prompts = [f"a red circle and ${number} other things, " * 5 for number in range(num_prompts)]
    return SamplePair(before=before, after=after, prompts=prompts)


def colour_area(drawn: np.ndarray, colour: np.ndarray) -> int:
    return int((drawn == colour).all(axis=-1).sum())


@pytest.mark.parametrize(("size", "drawn_size"), [(32, 96), (40, 120), (128, 128), (512, 256)])
def test_every_sample_is_drawn_at_a_legible_size_in_its_own_pixels(size: int, drawn_size: int) -> None:
    pair = small_pair(size=size)
    drawn = pixels(samples_png(pair))
    for images in (pair.before, pair.after):
        for image in images.reshape(-1, size, size, 3):
            assert colour_area(drawn, image[0, 0]) == pytest.approx(drawn_size**2, abs=20)


def test_before_stands_left_of_after() -> None:
    pair = small_pair(num_prompts=1, num_seeds=1)
    drawn = pixels(samples_png(pair))
    columns = [np.argwhere((drawn == images[0, 0, 0, 0]).all(axis=-1))[:, 1] for images in (pair.before, pair.after)]
    assert columns[0].max() < columns[1].min()


def test_samples_that_do_not_match_are_refused() -> None:
    images = np.zeros((2, 3, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="1 prompts do not match"):
        SamplePair(before=images, after=images, prompts=["one"])
    with pytest.raises(ValueError, match="do not match"):
        SamplePair(before=images, after=images[:, :2], prompts=["one", "two"])
