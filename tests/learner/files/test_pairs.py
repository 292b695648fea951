import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drover.common.errors import ConfigError
from drover.common.media.media import joined
from drover.common.picture_files import square
from drover.common.protocols import Files, FileSource
from drover.common.records import BadRecord
from drover.learner.files.folder import ImageFolder
from drover.learner.files.webdataset import WebDataset
from drover.worlds.shapes import prompts as shapes_prompts
from drover.worlds.shapes.pairs import ShapesPairs


def encoded(colour, file_format="PNG", size=(12, 9), mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format=file_format, **options)
    return file.getvalue()


def grey(number) -> bytes:
    """A picture that can be told from its caption ``f"picture {number}"``."""
    return encoded((number, number, number))


def fill_folder(folder, numbers):
    for number in numbers:
        (folder / f"part {number % 3}").mkdir(exist_ok=True)
        (folder / f"part {number % 3}" / f"{number}.png").write_bytes(grey(number))
        (folder / f"part {number % 3}" / f"{number}.txt").write_text(f"picture\n {number}\n")
    return ImageFolder(folder=folder, resolution=8)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def sample(number, json_caption=False):
    caption = json.dumps({"caption": f"picture {number}"}) if json_caption else f"picture {number}"
    return [
        (f"{number:05d}.png", grey(number)),
        (f"{number:05d}.{'json' if json_caption else 'txt'}", caption.encode()),
    ]


def fill_tars(folder, numbers):
    half = len(numbers) // 2
    for name, part in (("a.tar", numbers[:half]), ("b.tar", numbers[half:])):
        write_tar(folder / name, [file for number in part for file in sample(number, json_caption=number % 2 == 0)])
    return WebDataset(path=folder, resolution=8)


PNG = encoded((200, 10, 10, 90), mode="RGBA")
JPEG = encoded((9, 9, 9), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")


def numbers_of(batch) -> list[int]:
    """The number of each pair, having checked that picture and caption belong together."""
    media, captions = batch.media, batch.names
    assert media.pixels.shape == (len(captions), 8, 8, 3)
    numbers = [int(caption.removeprefix("picture ")) for caption in captions]
    assert [int(picture.mean()) for picture in media.pixels] == numbers
    return numbers


FILLED = pytest.mark.parametrize("fill", [fill_folder, fill_tars], ids=["folder", "tars"])


@FILLED
def test_every_pair_comes_once_per_pass_and_passes_differ(tmp_path, fill):
    source = fill(tmp_path, list(range(24))).open(seed=3)
    passes = [[n for k in range(6) for n in numbers_of(source.batch(6 * p + k, 4))] for p in range(3)]
    assert all(sorted(one) == list(range(24)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


@FILLED
def test_a_batch_depends_on_seed_and_step_alone_so_a_resumed_run_goes_on_where_it_was(tmp_path, fill):
    pairs = fill(tmp_path, list(range(20)))
    source = pairs.open(seed=3)
    forwards = [numbers_of(source.batch(step, 7)) for step in range(12)]
    for step in (11, 4, 0):
        assert numbers_of(pickle.loads(pickle.dumps(pairs)).open(seed=3).batch(step, 7)) == forwards[step]
    assert [numbers_of(pairs.open(seed=4).batch(step, 7)) for step in range(12)] != forwards


@FILLED
def test_the_ranks_parts_make_up_the_batch_of_all(tmp_path, fill):
    source = fill(tmp_path, list(range(20))).open(seed=3)
    whole = numbers_of(source.batch(5, 8))
    assert whole == numbers_of(source.batch(10, 4)) + numbers_of(source.batch(11, 4))


def test_bad_pictures_of_a_folder_are_replaced_and_counted_by_reason(tmp_path):
    pairs = fill_folder(tmp_path, list(range(10)))
    (tmp_path / "part 0" / "3.png").write_bytes(grey(3)[:50])
    (tmp_path / "part 1" / "4.png").write_text("no picture")
    (tmp_path / "part 2" / "5.txt").write_bytes(b"picture caf\xe9")
    (tmp_path / "part 0" / "6.txt").write_text(" \n")
    (tmp_path / "part 1" / "7.txt").unlink()
    (tmp_path / "part 2" / "8.png").write_bytes(encoded(70_000, mode="I;16"))
    source = pairs.open(seed=1)
    seen = [numbers_of(source.batch(step, 9)) for step in range(8)]
    assert {number for batch in seen for number in batch} == {0, 1, 2, 9}
    assert source.skipped == {"damaged": 2, "not UTF-8": 1, "blank": 1, "no caption": 1, "not 8 bit": 1}
    assert numbers_of(pairs.open(seed=1).batch(6, 9)) == seen[6]  # the batches before do not matter


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_folder_with_a_metadata_table_goes_by_it(tmp_path, table):
    names = [f"train/{number}.png" for number in range(6)] + [
        "../x.png",
        "/etc/x.png",
        "train/0.png",
        "train/99.png",
        "",
    ]
    captions = [f"picture {number}" for number in range(6)] + ["out", "out", "again", "picture 99", "unnamed"]
    (tmp_path / "train").mkdir()
    for number in range(6):
        (tmp_path / "train" / f"{number}.png").write_bytes(grey(number))
    rows = list(zip(names, captions, strict=True))
    if table.endswith("jsonl"):
        lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in rows]
        (tmp_path / table).write_text("\n".join([*lines, "{"]))
    elif table.endswith("csv"):
        lines = [f"{name},{caption}" for name, caption in rows]
        (tmp_path / table).write_text("\n".join(["file_name,text", *lines, "one,two,three"]))
    else:
        pq.write_table(pa.table({"file_name": names, "text": captions}), tmp_path / table)
    source = ImageFolder(folder=tmp_path, resolution=8).open(seed=0)
    assert {number for step in range(4) for number in numbers_of(source.batch(step, 7))} == set(range(6))
    damage = {"metadata.jsonl": {"not JSON": 1}, "metadata.csv": {"wrong columns": 1}, "metadata.parquet": {}}[table]
    assert source.skipped == {"outside the folder": 2, "repeated": 1, "blank": 1, "no picture": 1} | damage


@pytest.mark.parametrize("name", ["two  spaces.png", " first.png", "last .png", "tab\there.png", "a\u00a0b.png"])
def test_a_file_name_in_a_table_is_a_path_whose_white_space_stays(tmp_path, name):
    (tmp_path / name).write_bytes(grey(4))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "picture 4"}))
    assert numbers_of(ImageFolder(folder=tmp_path, resolution=8).open(0).batch(0, 1)) == [4]


def test_a_name_that_no_file_can_have_costs_itself_alone(tmp_path):
    (tmp_path / "0.png").write_bytes(grey(0))
    names = ["0.png", "nul\0.png", "half \ud83d.png", "x" * 5000, " ", None, 7, "."]
    rows = [json.dumps({"file_name": name, "text": "picture 0"}) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    source = ImageFolder(folder=tmp_path, resolution=8).open(0)
    assert {number for step in range(8) for number in numbers_of(source.batch(step, 8))} == {0}
    assert source.skipped == {"no picture": 3, "not UTF-8": 1, "blank": 1, "missing": 1, "not text": 1}


def test_a_byte_order_mark_is_no_part_of_a_caption_or_a_table(tmp_path):
    mark = b"\xef\xbb\xbf"
    folder, tars, table = (tmp_path / name for name in ("folder", "tars", "table"))
    for each in (folder, tars, table):
        each.mkdir()
    (folder / "4.png").write_bytes(grey(4))
    (folder / "4.txt").write_bytes(mark + b"picture 4\r\n")
    files = [("5.png", grey(5)), ("5.txt", mark + b"picture 5"), ("6.png", grey(6))]
    write_tar(tars / "a.tar", [*files, ("6.json", mark + b'{"caption": "picture 6"}')])
    (table / "7.png").write_bytes(grey(7))
    (table / "metadata.jsonl").write_bytes(mark + b'{"file_name": "7.png", "text": "\xef\xbb\xbfpicture 7"}')
    assert numbers_of(ImageFolder(folder=folder, resolution=8).open(0).batch(0, 1)) == [4]
    assert sorted(numbers_of(WebDataset(path=tars, resolution=8).open(0).batch(0, 2))) == [5, 6]
    assert numbers_of(ImageFolder(folder=table, resolution=8).open(0).batch(0, 1)) == [7]


def test_a_shard_that_git_left_as_a_pointer_is_counted_as_one(tmp_path):
    pairs = fill_tars(tmp_path, list(range(8)))
    (tmp_path / "c.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 33\n")
    source = pairs.open(seed=1)
    assert sorted(numbers_of(source.batch(0, 8))) == list(range(8)) and source.skipped == {"git LFS pointer": 1}


def test_bad_samples_of_a_tar_are_replaced_and_counted_by_reason(tmp_path):
    files = [
        *sample(0),
        *sample(1, json_caption=True),
        ("2.png", grey(2)),
        ("3.txt", b"no picture"),
        ("__meta__.txt", b"of the writer"),
        *(("4.PNG", grey(4)), ("4.json", b"{"), ("4.cls", b"7")),
        *(("5.png", grey(5)[:50]), ("5.txt", b"picture 5")),
        *(("6.png", grey(6)), ("6.json", b'{"caption": 6}')),
        *(("7.png", grey(7)), ("7.json", b"[]")),
        *(("other/0.png", grey(8)), ("other/0.txt", b"picture 8")),
        *(("9.json", b'{"caption": "not this"}'), ("9.png", grey(9)), ("9.txt", b"picture 9")),
    ]
    write_tar(tmp_path / "a.tar", files)
    source = WebDataset(path=tmp_path / "a.tar", resolution=8).open(seed=1)
    assert {number for step in range(4) for number in numbers_of(source.batch(step, 8))} == {0, 1, 8, 9}
    wanted = {"no caption": 1, "no picture": 1, "not JSON": 1, "damaged": 1, "not text": 1, "not an object": 1}
    assert source.skipped == wanted


@pytest.mark.parametrize(("damage", "kept"), [("cut short", 5), ("bad header", 4), ("not a tar", 0), ("empty", 0)])
def test_a_damaged_shard_gives_what_stands_before_the_damage_and_the_others_everything(tmp_path, damage, kept):
    pairs = fill_tars(tmp_path, list(range(20)))
    shard = tmp_path / "a.tar"
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    data = bytearray(shard.read_bytes())
    if damage == "cut short":
        data = data[: members[10].offset_data + 5]
    elif damage == "bad header":
        data[members[8].offset : members[8].offset + 20] = b"\xaa" * 20
    else:
        data = bytearray(b"no tar at all" * 200 if damage == "not a tar" else b"")
    shard.write_bytes(data)
    source = pairs.open(seed=1)
    drawn = {number for step in range(10) for number in numbers_of(source.batch(step, 10))}
    assert drawn == {*range(kept), *range(10, 20)}
    assert source.skipped["damaged shard"] == 1


def test_pictures_of_any_kind_become_upright_squares_of_8_bit_rgb_on_white():
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    left_red = Image.new("RGB", (40, 20), "blue")
    left_red.paste((255, 0, 0), (0, 0, 20, 20))
    file = io.BytesIO()
    left_red.save(file, format="JPEG", exif=turned, quality=95)
    upright = square(file.getvalue(), 16)
    assert upright[2, 8, 0] > 200 > upright[13, 8, 0] and upright[13, 8, 2] > 200
    assert (square(encoded((9, 9, 9, 0), mode="RGBA"), 4) == 255).all()
    assert (square(encoded(77, mode="L"), 4) == 77).all()
    assert np.abs(square(encoded((0, 0, 0, 0), "JPEG", mode="CMYK"), 4).astype(int) - 255).max() <= 2
    assert np.abs(square(encoded((40, 90, 160), "WEBP", lossless=True), 4) - np.array([40, 90, 160])).max() == 0


def tag(number, kind, count, value):
    """An EXIF entry; kind 2 is text, 3 a short number, 5 a fraction."""
    return struct.pack("<HHI", number, kind, count) + value


ORIENTATION = tag(0x112, 3, 1, struct.pack("<HH", 6, 0))
BROKEN_EXIF = {
    "resolution is text": ORIENTATION + tag(0x11A, 2, 4, b"72\0\0"),
    "model is a number": tag(0x110, 3, 1, struct.pack("<HH", 7, 0)) + ORIENTATION,
    "model is a fraction": tag(0x110, 5, 1, struct.pack("<I", 38)) + ORIENTATION,
    "orientation is text": tag(0x112, 2, 4, b"six\0"),
    "tags point outside": tag(0x8769, 4, 1, struct.pack("<I", 1 << 30)) + ORIENTATION,
}


@pytest.mark.parametrize("entries", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_photo_with_broken_exif_is_used_or_counted_and_the_others_come(tmp_path, entries):
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    block += struct.pack("<II", 1, 3)
    fill_folder(tmp_path, [0, 1])
    (tmp_path / "photo.jpg").write_bytes(encoded((9, 9, 9), "JPEG", size=(40, 32), exif=block))
    (tmp_path / "photo.txt").write_text("picture 9")
    pairs = ImageFolder(folder=tmp_path, resolution=8)
    for _ in ("the run", "the run resumed"):
        source = pairs.open(seed=1)
        drawn = {caption for step in range(3) for caption in source.batch(step, 3).names}
        assert {"picture 0", "picture 1"} <= drawn
        assert "picture 9" in drawn or source.skipped == {"damaged": 1}


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_picture_file_is_decoded_or_refused_with_a_reason(place, bytes_):
    for data in (PNG, JPEG):
        place = min(place, len(data) - 1)
        try:
            assert square(data[:place] + bytes_ + data[place + len(bytes_) :], 8).shape == (8, 8, 3)
        except BadRecord as bad:
            assert bad.reason in ("damaged", "too large", "not 8 bit")


def test_pictures_one_pixel_thin_are_covered_too():
    assert (square(encoded((7, 7, 7), size=(1, 3000)), 8) == 7).all()


def test_the_middle_of_a_wide_picture_is_kept():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    file = io.BytesIO()
    Image.fromarray(wide).save(file, format="PNG")
    assert (square(file.getvalue(), 10) == 200).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "damaged"),
        (encoded((1, 1, 1), "GIF"), "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 33\n", "git LFS pointer"),
        (encoded(0, size=(9000, 9000), mode="1"), "too large"),
        (encoded(0, size=(20_000, 20_000), mode="1"), "too large"),
    ],
    ids=["empty", "postscript", "gif", "git LFS pointer", "81 megapixels", "400 megapixels"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_unusable_picture_has_its_reason(data, reason):
    with pytest.raises(BadRecord, match=reason):
        square(data, 8)


def test_when_no_picture_can_be_used_the_error_counts_why(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
        (tmp_path / f"{number}.txt").write_text("a caption")
    source = ImageFolder(folder=tmp_path, resolution=8).open(seed=0)
    with pytest.raises(ConfigError, match=r"none of 5 pictures .* can be used \(skipped: 5 damaged\)"):
        source.batch(0, 2)


def test_a_folder_or_tar_with_nothing_to_read_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder .*gone; give one that holds pictures"):
        ImageFolder(folder=tmp_path / "gone", resolution=8).open(0)
    with pytest.raises(ConfigError, match="there is no tar at .*give an uncompressed .tar"):
        WebDataset(path=tmp_path, resolution=8).open(0)
    with tarfile.open(tmp_path / "zipped.tar", "w:gz"):
        pass
    with pytest.raises(ConfigError, match=r"holds no picture with a caption \(skipped: 1 damaged shard\); a sample is"):
        WebDataset(path=tmp_path, resolution=8).open(0)
    (tmp_path / "1.png").write_bytes(grey(1))
    with pytest.raises(
        ConfigError, match=r"holds no picture with a .txt beside it \(skipped: 1 no caption\); add some"
    ):
        ImageFolder(folder=tmp_path, resolution=8).open(0)
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,3\n")
    with pytest.raises(ConfigError, match="has no column 'text'; its columns are 'file_name', 'label'"):
        ImageFolder(folder=tmp_path, resolution=8).open(0)
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds metadata.jsonl and metadata.csv; leave one of them"):
        ImageFolder(folder=tmp_path, resolution=8).open(0)
    for description in (ImageFolder, WebDataset):
        with pytest.raises(ConfigError, match="resolution is a number of pixels, got 0"):
            description(**{"path" if description is WebDataset else "folder": tmp_path}, resolution=0)


def test_shapes_pairs_are_drawn_by_their_number_with_captions_of_the_world():
    pairs: Files = ShapesPairs()
    source: FileSource = pickle.loads(pickle.dumps(pairs)).open(seed=7)
    batch = source.batch(3, 8)
    media, captions = batch.media, batch.names
    assert media.pixels.shape == (8, 32, 32, 3)
    assert all(shapes_prompts.parse(caption) for caption in captions)
    later = [pairs.open(seed=7).batch(step, 4) for step in (6, 7)]
    assert (media.pixels == joined([part.media for part in later]).pixels).all()
    assert captions == [caption for part in later for caption in part.names]
    assert captions != pairs.open(seed=8).batch(3, 8).names
    assert len({picture.tobytes() for step in range(20) for picture in source.batch(step, 8).media.pixels}) == 160
    assert source.skipped == {}
