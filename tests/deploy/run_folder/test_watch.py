"""Media of every kind as the watcher shows them: pictures are kept, drawn before and after, and never end a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drover.common.errors import BlobMissing
from drover.common.media.blobs import rows_of
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Report
from drover.deploy.run_folder.pictures import SamplePair, samples_png
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.summary import conclude
from drover.deploy.run_folder.watch import Watcher
from tests.common.media.made_up import one_of_each, stored
from tests.deploy.in_place import View


class Seat:
    """A watcher with its run folder and blobs; `evaluated` sends the learner's report of an evaluation."""

    def __init__(self, path: Path) -> None:
        broker = MemoryBroker("watch")
        self.blobs, self.reports = broker.blobs(), broker.stream(broker.keys.reports, groups=("watcher",))
        self.folder = RunFolder.create("seen", path)
        self.watcher = Watcher(broker.stream(broker.keys.reports, "watcher"), self.blobs, self.folder, View())

    def evaluated(self, moment: str, groups: dict[str, Media], shown: int = 2) -> None:
        """Report an evaluation that shows the first ``shown`` samples of each prompt's media."""
        refs = [
            rows_of(stored(media, f"{moment}.{number}", self.blobs), slice(shown))
            for number, media in enumerate(groups.values())
        ]
        report = Report(
            kind="eval", at_s=1.0, version=0, scalars={}, text=moment, prompts=tuple(groups), media=tuple(refs)
        )
        self.reports.put(report)
        self.watcher.poll(0.0)

    def kept(self, moment: str) -> np.ndarray:
        return np.load(self.folder.path / f"{moment}.npz")["media"]


@pytest.fixture
def seat(tmp_path: Path) -> Seat:
    return Seat(tmp_path)


@pytest.mark.parametrize("number", range(5))
def test_media_of_every_kind_are_drawn_before_and_after(seat: Seat, number: int) -> None:
    before, after = (one_of_each(3, seed)[number] for seed in (1, 2))
    for moment, media in (("before", before), ("after", after)):
        seat.evaluated(moment, {"a": media, "b": media})
        assert np.array_equal(seat.kept(moment), np.stack([media.pictures()[:2]] * 2))
    conclude(seat.folder, {})
    assert seat.folder.samples.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BlobMissing):
        seat.blobs.get("before.0")


def test_pictures_are_drawn_to_the_byte_as_their_pixels_are(seat: Seat) -> None:
    moments = {moment: np.random.default_rng(seed).integers(0, 256, (2, 2, 8, 6, 3), np.uint8)
               for seed, moment in enumerate(("before", "after"))}  # fmt: skip
    for moment, pixels in moments.items():
        seat.evaluated(moment, {"one": Pictures(pixels[0]), "two": Pictures(pixels[1])})
    conclude(seat.folder, {})
    wanted = samples_png(SamplePair(before=moments["before"], after=moments["after"], prompts=["one", "two"]))
    assert seat.folder.samples.read_bytes() == wanted


def test_sets_of_different_sizes_are_shown_beside_each_other_on_white(seat: Seat) -> None:
    small, wide = Pictures(np.zeros((2, 4, 6, 3), np.uint8)), Pictures(np.zeros((2, 5, 9, 3), np.uint8))
    seat.evaluated("before", {"small": small, "wide": wide})
    seat.evaluated("after", {"small": small, "wide": wide})
    kept = seat.kept("before")
    assert kept.shape == (2, 2, 5, 9, 3)
    assert (kept[0, :, :4, :6] == 0).all() and (kept[0, :, 4:] == 255).all() and (kept[0, :, :, 6:] == 255).all()
    conclude(seat.folder, {})
    assert seat.folder.samples.exists()


def test_prompts_that_one_moment_lost_are_left_out_and_the_others_drawn(seat: Seat) -> None:
    black, white = (Pictures(np.full((2, 8, 8, 3), level, np.uint8)) for level in (0, 255))
    seat.evaluated("before", {"a": black, "b": white, "c": black})
    seat.evaluated("after", {"a": white, "c": white})
    conclude(seat.folder, {})
    media = np.stack([black.pixels] * 2), np.stack([white.pixels] * 2)
    wanted = samples_png(SamplePair(before=media[0], after=media[1], prompts=["a", "c"]))
    assert seat.folder.samples.read_bytes() == wanted


def test_moments_that_share_no_prompt_have_no_common_picture(seat: Seat) -> None:
    media = Pictures(np.zeros((2, 8, 8, 3), np.uint8))
    seat.evaluated("before", {"a": media})
    seat.evaluated("after", {"b": media})
    assert conclude(seat.folder, {})["ended"] == "stopped"
    assert not seat.folder.samples.exists()


def test_pictures_that_are_gone_cost_the_pictures_alone_and_leave_no_blob(
    seat: Seat, caplog: pytest.LogCaptureFixture
) -> None:
    media = Pictures(np.zeros((2, 8, 8, 3), np.uint8))
    there, gone = stored(media, "there", seat.blobs), stored(media, "gone", seat.blobs)
    seat.blobs.drop(["gone"])
    seat.reports.put(
        Report(kind="eval", at_s=1.0, version=0, scalars={}, text="during", prompts=("a", "b"), media=(there, gone))
    )
    seat.watcher.poll(0.0)
    assert [report.text for report in seat.folder.reports()] == ["during"]
    assert "the pictures of the evaluation during training are gone" in caplog.text
    assert not (seat.folder.path / "during.npz").exists()
    with pytest.raises(BlobMissing):
        seat.blobs.get("there")
