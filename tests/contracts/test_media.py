"""The contract of media: their form, rows, joining, blobs and the pictures that people are shown."""

from __future__ import annotations

import numpy as np
import pytest

from drover.common import media as package
from drover.common.errors import BlobMissing, BlobTooLarge, CodecError, MediaError
from drover.common.media import blobs as module
from drover.common.media.blobs import pack, read, rows_of
from drover.common.media.clips import Clips
from drover.common.media.kinds import KINDS, kind_named
from drover.common.media.media import Media, arrays, facts, form, joined, of_kind, rows
from drover.common.media.pictures import Pictures
from drover.common.media.scenes import Scenes
from drover.common.media.sounds import Sounds
from drover.common.media.structures import Structures
from drover.common.protocols import BlobStore
from drover.common.transport.memory import MemoryBroker
from drover.common.types import MediaRef, TensorRef
from tests.common.media.made_up import one_of_each, stored
from tests.contracts.walk import classes

ALL = one_of_each(6)
each_kind = pytest.mark.parametrize("media", ALL, ids=[media.kind for media in ALL])


def same(one: Media, other: Media) -> bool:
    """Bit for bit, with NaN equal to itself."""
    pairs = zip(arrays(one).values(), arrays(other).values(), strict=True)
    return form(one) == form(other) and all(a.tobytes() == b.tobytes() for a, b in pairs)


def kept(media: Media) -> tuple[BlobStore, MediaRef]:
    store = MemoryBroker("media").blobs()
    return store, stored(media, "g1/media", store)


def test_every_kind_of_the_package_is_under_contract_and_goes_by_its_name() -> None:
    assert set(classes(package, "kind", "pictures")) == set(KINDS.values()) == {type(media) for media in ALL}
    assert list(KINDS) == ["picture", "clip", "sound", "scene", "structure"] == [media.kind for media in ALL]
    with pytest.raises(MediaError, match="no kind of media 'smell'; there are picture, clip, sound, scene, structure"):
        kind_named("smell")


@each_kind
def test_packed_media_are_read_again_bit_for_bit(media: Media) -> None:
    store, ref = kept(media)
    again = read(store, ref)
    assert same(again, media) and type(again) is type(media)
    assert [type(fact) for fact in facts(again).values()] == [type(fact) for fact in facts(media).values()]
    assert (ref.num_samples, ref.blobs) == (6, ("g1/media",))
    assert ref.nbytes == sum(array.nbytes for array in arrays(media).values())


@each_kind
def test_a_group_heavier_than_a_blob_lies_in_several_and_rows_are_read_alone(
    media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = sum(array.nbytes for array in arrays(media).values()) // 6
    monkeypatch.setattr(module, "MAX_BLOB_BYTES", 4 * row_bytes + row_bytes // 2)
    store, ref = kept(media)
    assert ref.blobs == ("g1/media", "g1/media.1") and ref.num_samples == 6
    assert same(read(store, ref), media)
    for part in (slice(0, 2), slice(3, 5), slice(4, 6), slice(2, None), slice(0, 0), slice(6, 6)):
        assert same(read(store, ref, part), rows(media, part)), part
        assert rows_of(ref, part).num_samples == len(rows(media, part))
    assert rows_of(ref, slice(4, 6)).blobs == ("g1/media.1",)
    store.drop(ref.blobs)
    with pytest.raises(BlobMissing):
        read(store, ref)


def test_a_single_sample_heavier_than_a_blob_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOB_BYTES", 1 << 20)
    with pytest.raises(BlobTooLarge, match="a single sample takes 3 MiB, at most 1 travel"):
        pack(Pictures(np.zeros((1, 1024, 1024, 3), np.uint8)), "b")


def test_packing_copies_no_array() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    ((_, (part,)),), _ = pack(Pictures(pixels), "b")
    pixels[0, 0, 0, 0] = 9
    assert part[0] == 9


@each_kind
def test_a_reference_to_something_else_is_refused(media: Media) -> None:
    store, ref = kept(media)
    wrong = [
        MediaRef(kind="smell", arrays=ref.arrays, facts=ref.facts),
        MediaRef(kind=ref.kind, arrays=ref.arrays * 2, facts=ref.facts),
        MediaRef(kind=ref.kind, arrays=ref.arrays, facts=(*ref.facts, 1.0)),
        MediaRef(kind=ref.kind, arrays=((TensorRef(blob="g1/media", dtype="uint8", shape=(6, 2)),),), facts=ref.facts),
    ]
    for one in wrong:
        with pytest.raises(CodecError, match="'g1/media' holds no media of the kind"):
            read(store, one)


def test_a_reference_without_rows_or_with_unlike_chunks_cannot_be_made() -> None:
    chunk = TensorRef(blob="b", dtype="uint8", shape=(2, 4))
    for unlike in ((), ((),), ((chunk,), ()), ((chunk,), (chunk, chunk))):
        with pytest.raises(ValueError, match="equally many rows"):
            MediaRef(kind="picture", arrays=unlike)
    with pytest.raises(ValueError, match="equally many rows"):
        MediaRef(kind="picture", arrays=((chunk, TensorRef(blob="b", dtype="uint8", shape=(2, 5))),))


@each_kind
def test_rows_joined_again_are_the_whole(media: Media) -> None:
    parts = [rows(media, part) for part in (slice(0, 1), slice(1, 5), slice(5, 6))]
    assert [len(part) for part in parts] == [1, 4, 1]
    assert same(joined(parts), media)
    assert joined([media]) is media


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ALL[0], ALL[1]),
        (ALL[0], Pictures(np.zeros((1, 8, 8, 3), np.uint8))),
        (ALL[1], Clips(np.zeros((1, 5, 8, 6, 3), np.uint8), fps=8.0)),
        (ALL[2], Sounds(np.zeros((1, 2, 400), np.float32), rate=8000)),
    ],
)
def test_media_of_two_forms_are_not_joined(one: Media, other: Media) -> None:
    with pytest.raises(MediaError, match="only media of one form can be joined"):
        joined([one, other])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Pictures(np.zeros((2, 8, 6, 3))),
            r"Pictures.pixels is uint8 \[N, H, W, 3\], got float64 \[2, 8, 6, 3\]",
        ),
        (lambda: Pictures(np.zeros((2, 8, 6), np.uint8)), r"got uint8 \[2, 8, 6\]"),
        (lambda: Pictures(np.zeros((2, 3, 8, 6), np.uint8)), r"got uint8 \[2, 3, 8, 6\]"),
        (lambda: Pictures(np.zeros((2, 0, 6, 3), np.uint8)), r"got uint8 \[2, 0, 6, 3\]"),
        (lambda: Pictures([[1, 2, 3]]), "got list"),  # type: ignore[arg-type]
        (lambda: Clips(np.zeros((2, 8, 6, 3), np.uint8), 8.0), r"Clips.frames is uint8 \[N, F, H, W, 3\]"),
        (lambda: Clips(np.zeros((2, 4, 8, 6, 3), np.uint8), 0.0), "Clips.fps is a number above 0, got 0"),
        (lambda: Sounds(np.zeros((2, 400), np.float32), 16_000), r"Sounds.waves is float32 \[N, C, T\]"),
        (lambda: Sounds(np.zeros((2, 1, 400)), 16_000), "got float64"),
        (lambda: Scenes(np.zeros((2, 3, 10, 3), np.float32), 0.5), r"Scenes.states is float32 \[N, A, T, 4\]"),
        (lambda: Scenes(np.zeros((2, 3, 10, 4), np.float32), float("nan")), "Scenes.step_s is a number above 0"),
        (
            lambda: Structures(np.zeros((2, 4, 4, 4), bool), 0.1),
            r"Structures.occupied is uint8 \[N, X, Y, Z\], got bool",
        ),
    ],
)
def test_an_array_of_another_form_is_refused_with_the_form_that_is_wanted(make, said: str) -> None:
    with pytest.raises(MediaError, match=said):
        make()


def test_no_samples_are_media_too() -> None:
    for media in one_of_each(0):
        store, ref = kept(media)
        assert len(read(store, ref)) == 0
        assert media.pictures().shape[0] == 0


def test_one_kind_does_not_pass_for_another() -> None:
    assert of_kind(ALL[0], Pictures) is ALL[0]
    with pytest.raises(MediaError, match="Pictures were wanted, got Sounds"):
        of_kind(ALL[2], Pictures)


# ------------------------------------------------------------------------------------------- the pictures of it


@each_kind
def test_each_sample_has_a_picture_of_its_own_that_depends_on_no_other(media: Media) -> None:
    shown = media.pictures()
    assert shown.dtype == np.uint8 and shown.ndim == 4 and shown.shape[0] == 6 and shown.shape[3] == 3
    assert len({picture.tobytes() for picture in shown}) == 6
    assert all(np.array_equal(rows(media, slice(i, i + 1)).pictures()[0], shown[i]) for i in range(6))


def test_pictures_are_shown_as_they_are() -> None:
    assert ALL[0].pictures() is ALL[0].pixels  # type: ignore[attr-defined]


def test_a_clip_is_a_strip_of_its_first_last_and_two_frames_between() -> None:
    frames = np.broadcast_to(np.arange(10, dtype=np.uint8)[None, :, None, None, None], (1, 10, 4, 6, 3))
    strip = Clips(frames.copy(), fps=5.0).pictures()[0]
    assert strip.shape == (4, 4 * 6 + 3 * 2, 3)
    assert [int(strip[0, column, 0]) for column in (0, 8, 16, 24)] == [0, 3, 6, 9]
    assert (strip[:, 6:8] == 255).all()
    assert Clips(frames[:, :1].copy(), fps=5.0).pictures().shape == (1, 4, 6, 3)


def test_a_tone_is_a_bright_line_at_its_height() -> None:
    rate, seconds = 16_000, np.arange(32_000) / 16_000
    tones = np.stack([np.sin(2 * np.pi * pitch * seconds) for pitch in (500, 2000, 6000)])[:, None].astype(np.float32)
    for picture, pitch in zip(Sounds(tones, rate).pictures(), (500, 2000, 6000), strict=True):
        brightest = picture.sum(axis=2).sum(axis=1).argmax()
        assert brightest == pytest.approx(96 * (1 - pitch / 8000), abs=1.5)


def test_silence_and_broken_waves_are_shown_all_the_same() -> None:
    waves = np.zeros((3, 1, 10), np.float32)
    waves[1], waves[2] = np.nan, 1.0
    shown = Sounds(waves, rate=10).pictures()
    assert not shown[:2].any() and shown[2].any()


def test_from_above_the_ego_agent_is_blue_and_who_is_absent_is_left_out() -> None:
    states = np.zeros((2, 2, 5, 4), np.float32)
    states[:, 0, :, 0] = np.linspace(0, 50, 5)  # drives to the right
    states[:, 1, :, 1] = np.linspace(-25, 25, 5)  # drives upwards
    states[1, 1] = np.nan
    both, alone = Scenes(states, step_s=0.5).pictures()
    blue, grey = ((both == colour).all(axis=-1) for colour in ((0, 114, 178), (130, 130, 130)))
    assert np.ptp(np.argwhere(blue)[:, 1]) > 120 > 20 > np.ptp(np.argwhere(blue)[:, 0])
    assert np.ptp(np.argwhere(grey)[:, 0]) > 120
    assert not (alone == (130, 130, 130)).all(axis=-1).any() and (alone == (0, 114, 178)).all(axis=-1).any()
    nobody = Scenes(np.full((1, 2, 5, 4), np.nan, np.float32), step_s=0.5).pictures()
    assert (nobody == 255).all()


def test_a_structure_is_seen_from_the_front_the_side_and_above() -> None:
    occupied = np.zeros((1, 4, 3, 5), np.uint8)
    occupied[0, 3, 0, :] = 1  # a pole at the right, in front
    shown = Structures(occupied, voxel_m=1.0).pictures()[0, ..., 0]
    assert shown.shape == (5, 4 + 3 + 4 + 2 * 2)
    front, side, above = shown[:, :4], shown[:, 6:9], shown[:, 11:]
    assert (front[:, 3] < 255).all() and (front[:, :3] == 255).all()
    assert (side[:, 0] < 255).all() and (side[:, 1:] == 255).all()
    assert above[4, 3] == 0 and (above < 255).sum() == 1
