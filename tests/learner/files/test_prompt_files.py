import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drover.common.errors import ConfigError
from drover.learner.files.prompts import read_prompts

NAMES = tuple(f"a drawing of thing {i}" for i in range(2000))


def write(file, prompts, column="prompt"):
    """The prompts, beside another column, in the format of the file's ending."""
    if file.suffix == ".txt":
        file.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"seed": 1, column: prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    elif file.suffix in (".csv", ".tsv"):
        between = {".csv": ",", ".tsv": "\t"}[file.suffix]
        quoted = ['"{}"'.format(prompt.replace('"', '""')) for prompt in prompts]
        rows = [f"seed{between}{column}", *(f"1{between}{prompt}" for prompt in quoted)]
        file.write_bytes("\r\n".join(rows).encode())
    else:
        table = pa.table({"seed": [1] * len(prompts), column: pa.array(prompts, pa.string())})
        pq.write_table(table, file, row_group_size=500)
    return file


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".PARQUET"])
def test_every_format_gives_the_same_prompts_in_the_files_order(tmp_path, suffix):
    prompts = ["a blüe cat, sitting", 'a sign that says "no"', "NA", "  a dog\t on a mat ", "a blüe cat,  sitting"]
    if suffix == ".PARQUET":
        pq.write_table(pa.table({"prompt": prompts}), tmp_path / f"prompts{suffix}")
    else:
        write(tmp_path / f"prompts{suffix}", prompts)
    split = read_prompts(tmp_path / f"prompts{suffix}")
    assert split.train == ("a blüe cat, sitting", 'a sign that says "no"', "NA", "a dog on a mat")
    assert (split.heldout, split.skipped) == ((), {"repeated": 1})


def test_a_table_like_diffusiondbs_metadata_is_read_by_the_name_of_its_column(tmp_path):
    columns = {
        "image_name": [f"{i}.png" for i in range(6000)],
        "prompt": pa.array([NAMES[i % 2000] for i in range(6000)]).dictionary_encode(),
        "seed": list(range(6000)),
        "cfg": [7.0] * 6000,
    }
    pq.write_table(pa.table(columns), tmp_path / "metadata.parquet", row_group_size=1700)
    assert len(read_prompts(tmp_path / "metadata.parquet").train) == 6000  # each has an image_name of its own
    split = read_prompts(tmp_path / "metadata.parquet", fields=(), heldout=0.1, seed=5)
    assert split.skipped == {"repeated": 4000} and split.fields == ()
    assert sorted(split.train + split.heldout) == sorted(NAMES)
    assert 160 <= len(split.heldout) <= 240


def test_no_prompt_is_on_both_sides_however_often_it_is_repeated_or_respelled(tmp_path):
    respelled = [*NAMES, *(name.upper() for name in NAMES), *(name.replace(" ", "  ") + " " for name in NAMES), *NAMES]
    split = read_prompts(write(tmp_path / "prompts.csv", respelled), heldout=0.3, seed=2)
    assert split.skipped == {"repeated": 4000}
    assert len(split.train) + len(split.heldout) == 4000
    assert not {prompt.lower() for prompt in split.train} & {prompt.lower() for prompt in split.heldout}


def test_rows_that_are_added_removed_or_reordered_move_no_other_prompt_across(tmp_path):
    whole = read_prompts(write(tmp_path / "whole.txt", NAMES), heldout=0.25, seed=9)
    part = read_prompts(write(tmp_path / "part.jsonl", NAMES[::-3]), heldout=0.25, seed=9)
    assert set(part.heldout) == set(whole.heldout) & set(NAMES[::-3])
    assert set(part.train) == set(whole.train) & set(NAMES[::-3])
    assert [prompt for prompt in whole.heldout if prompt in part.heldout] == list(part.heldout)


def test_another_seed_holds_out_others_and_a_larger_share_holds_out_the_same_and_more(tmp_path):
    file = write(tmp_path / "prompts.txt", NAMES)
    first, second, larger = (read_prompts(file, heldout=h, seed=s).heldout for h, s in ((0.1, 1), (0.1, 2), (0.2, 1)))
    assert len(set(first) & set(second)) < 40  # 20 by chance
    assert larger[: len(first)] == first
    assert 340 <= len(larger) <= 460


def test_reading_stops_at_the_limit_of_distinct_prompts(tmp_path):
    file = write(tmp_path / "prompts.jsonl", [NAMES[0], NAMES[0], *NAMES[1:]])
    with file.open("ab") as end:
        end.write(b"\xff never read\n" * 2)
    split = read_prompts(file, limit=1500)
    assert (split.train, split.skipped) == (NAMES[:1500], {"repeated": 1})


# --------------------------------------------------------------------------------------------------- fields

ROWS = (
    {"prompt": "two red apples", "objects": ["apple", "apple"], "count": 2, "share": 0.5, "strict": True, "note": None},
    {"prompt": "a  cat", "objects": [], "count": 1, "share": 1.0, "strict": False, "note": "any"},
    {"prompt": "a cat", "objects": [], "count": 1, "share": 0.25, "strict": False, "note": "any"},
    {"prompt": "a cat", "objects": [], "count": 1, "share": 0.25, "strict": False, "note": "any"},
)


def write_rows(file, rows):
    if file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]), delimiter={".csv": ",", ".tsv": "\t"}[file.suffix])
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_other_columns_are_fields_and_one_text_with_other_fields_is_another_prompt(tmp_path, suffix):
    prompts = read_prompts(write_rows(tmp_path / f"prompts{suffix}", ROWS))
    assert prompts.train == ("two red apples", "a cat", "a cat")
    assert [dict(prompt.fields) for prompt in prompts.train] == [
        {name: value for name, value in row.items() if name != "prompt"} for row in ROWS[:3]
    ]
    assert prompts.fields == ("objects", "count", "share", "strict", "note")
    assert (prompts.skipped, prompts.left_out) == ({"repeated": 1}, {})


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_fields_of_csv_are_texts_and_columns_without_a_name_are_none(tmp_path, suffix):
    rows = [{"": i, "prompt": "a cat", "count": i // 2, " place": " at home"} for i in range(4)]
    prompts = read_prompts(write_rows(tmp_path / f"prompts{suffix}", rows))
    assert [dict(prompt.fields) for prompt in prompts.train] == [
        {"count": count, "place": " at home"} for count in ("0", "1")
    ]
    assert prompts.skipped == {"repeated": 2}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_named_fields_alone_are_read_and_must_be_there(tmp_path, suffix):
    file = write_rows(tmp_path / f"prompts{suffix}", ROWS)
    prompts = read_prompts(file, fields=("count",))
    assert [dict(prompt.fields) for prompt in prompts.train] == [
        {"count": value} for value in (("2", "1") if suffix == ".csv" else (2, 1))
    ]
    with pytest.raises(ConfigError, match=r"has no column 'size'; its columns are 'prompt', 'objects', 'count'"):
        read_prompts(file, fields=("count", "size"))


def test_a_text_file_has_no_field(tmp_path):
    prompts = read_prompts(write(tmp_path / "prompts.txt", NAMES[:3]))
    assert prompts.fields == () and {type(prompt) for prompt in prompts.train} == {str}
    with pytest.raises(ConfigError, match=r"prompts.txt has no column 'count'; its columns are 'prompt'"):
        read_prompts(tmp_path / "prompts.txt", fields=("count",))


@pytest.mark.parametrize("heldout", [0.0, 0.3])
def test_prompts_of_one_text_fall_on_one_side_whatever_their_fields(tmp_path, heldout):
    rows = [{"prompt": NAMES[i % 50], "seed": i} for i in range(200)]
    prompts = read_prompts(write_rows(tmp_path / "prompts.jsonl", rows), heldout=heldout)
    assert len(prompts.train) + len(prompts.heldout) == 200
    assert not set(prompts.train) & set(prompts.heldout)
    bare = read_prompts(tmp_path / "prompts.jsonl", fields=(), heldout=heldout)
    assert list(dict.fromkeys(prompts.train)) == list(bare.train)
    assert list(dict.fromkeys(prompts.heldout)) == list(bare.heldout)


def test_values_that_can_be_no_field_are_left_out_and_counted_by_column(tmp_path):
    rows = [
        '{"prompt": "a", "id": 1, "include": [{"class": "bench"}], "size": 1e999}',
        '{"prompt": "b", "id": 2, "include": {"class": "bench"}, "size": 3}',
        json.dumps({"prompt": "c", "id": 3, "include": "all", "size": 3, "embedding": [0.1] * 1000, "last": True}),
        '{"prompt": "d", "id": NaN}',
        '{"prompt": "e", "id": Infinity}',
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    assert [dict(prompt.fields) for prompt in prompts.train] == [
        {"id": 1},
        {"id": 2, "size": 3},
        {"id": 3, "include": "all", "size": 3, "last": True},
    ]
    assert prompts.fields == ("id",)
    assert (prompts.skipped, prompts.left_out) == ({"not JSON": 2}, {"include": 2, "size": 1, "embedding": 1})


def test_parquet_columns_of_other_kinds_are_left_out_and_counted(tmp_path):
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "image": [{"bytes": b"x"}, {"bytes": b"y"}],
            "when": pa.array([0, 1], pa.timestamp("s")),
            "score": pa.array([0.5, float("nan")]),
            "label": pa.array(["x", "y"]).dictionary_encode(),
            "boxes": [[[1, 2]], [[3]]],
            "absent": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "prompts.parquet")
    prompts = read_prompts(tmp_path / "prompts.parquet")
    assert [dict(prompt.fields) for prompt in prompts.train] == [
        {"score": 0.5, "label": "x", "absent": None},
        {"label": "y", "absent": None},
    ]
    assert prompts.left_out == {"image": 2, "when": 2, "boxes": 2, "score": 1}


def test_the_kept_and_skipped_rows_are_told_in_a_sentence(tmp_path):
    rows = [json.dumps({"prompt": name, "target": 1, "min_share": 0.1, "extra": {}}) for name in NAMES[:8]]
    rows += [rows[0], '{"prompt": " "}', "{"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    prompts = read_prompts(tmp_path / "prompts.jsonl", heldout=0.25, seed=1)
    train, heldout = len(prompts.train), len(prompts.heldout)
    assert str(prompts) == (
        f"prompts.jsonl: 8 prompts, {train} to train on, {heldout} held out; 3 skipped (1 repeated, 1 blank, 1 not JSON); "
        "fields: target, min_share; values that can be no field: extra of 9"
    )
    assert str(read_prompts(write(tmp_path / "p.txt", NAMES[:3]))) == "p.txt: 3 prompts, 3 to train on, 0 held out"


def test_bad_records_of_jsonl_are_skipped_and_counted_by_reason(tmp_path):
    lines = [
        '{"prompt": "a cat"}',
        '{"prompt": "a dog"',
        "[1, 2]",
        '{"prompt": 3}',
        '{"prompt": null}',
        '{"text": "a cow"}',
        '{"prompt": "  "}',
        '{"prompt": "half a pair \\ud83d"}',
        json.dumps({"prompt": "x" * 5000}),
        "[" * 100_000,
        "",
        '{"prompt": "a\\u2028hen"}',
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    split = read_prompts(tmp_path / "prompts.jsonl")
    assert split.train == ("a cat", "a hen")
    assert split.skipped == {
        "not JSON": 2,
        "not an object": 1,
        "not text": 1,
        "missing": 2,
        "blank": 1,
        "not UTF-8": 1,
        "too long": 1,
    }


def test_a_csv_row_with_a_stray_quote_or_comma_costs_itself_alone(tmp_path):
    rows = [
        "\ufeffid,prompt",
        "1,a cat",
        "2,a dog, barking",
        '3,"a" cow',
        "",
        '4,"a hen',
        'on two lines"',
        "5",
        '6,"a pi',
    ]
    (tmp_path / "prompts.csv").write_text("\n".join(rows), encoding="utf-8")
    split = read_prompts(tmp_path / "prompts.csv")
    assert split.train == ("a cat", "a hen on two lines")
    assert split.skipped == {"wrong columns": 2, "not CSV": 2}


def test_a_parquet_value_that_is_no_utf8_or_null_costs_itself_alone(tmp_path):
    raw = pa.array([b"a cat", b"a caf\xe9", None, b"a dog"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"prompt": strings}), tmp_path / "prompts.parquet", use_dictionary=False)
    split = read_prompts(tmp_path / "prompts.parquet")
    assert (split.train, split.skipped) == (("a cat", "a dog"), {"not text": 1, "missing": 1})


def test_a_damaged_row_group_of_parquet_costs_its_own_rows(tmp_path):
    file = tmp_path / "prompts.parquet"
    pq.write_table(
        pa.table({"prompt": NAMES}), file, row_group_size=500, write_page_checksum=True, use_dictionary=False
    )
    damaged = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    damaged[start + 200 : start + 300] = bytes(100)
    file.write_bytes(damaged)
    split = read_prompts(file)
    assert (split.train, split.skipped) == (NAMES[:500] + NAMES[1000:], {"damaged": 500})


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_file_that_is_missing_or_empty_is_one_clear_error(tmp_path, suffix):
    file = tmp_path / f"prompts{suffix}"
    with pytest.raises(ConfigError, match=rf"there is no file .*prompts{suffix}; give one that exists"):
        read_prompts(file)
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is no whole Parquet file" if suffix == ".parquet" else "holds no prompt; "):
        read_prompts(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_prompts(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_an_unknown_column_is_answered_with_those_there_are(tmp_path, suffix):
    file = write(tmp_path / f"prompts{suffix}", NAMES[:3], column="caption")
    with pytest.raises(ConfigError, match="has no column 'prompt'; its columns are 'seed', 'caption'"):
        read_prompts(file)
    assert read_prompts(file, "caption").train == NAMES[:3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a cat\na caf\xe9\n", "is not UTF-8 at byte 11; save it as UTF-8"),
        ("p.txt", "a cat\n".encode("utf-16"), "is not UTF-8 at byte 0"),
        ("p.csv", b"prompt\na caf\xe9\n", "is not UTF-8 at byte 12"),
        ("p.jsonl", b'{"prompt": "a caf\xe9"}\n', "is not UTF-8 at byte 17"),
        ("p.txt", b" \n\n", r"holds no prompt; write one per line \(skipped: 2 blank\)"),
        ("p.jsonl", b"{\n[]\n", r"holds no prompt; fill its column 'prompt' \(skipped: 1 not JSON, 1 not an object\)"),
        ("p.parquet", b"PAR1 but no more", "is no whole Parquet file"),
        ("p.json", b"[]", "has none of the endings .txt, .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 330\n", "git LFS pointer.* git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<p>Sign in</p>\n", "holds a web page; download the file itself"),
        (b"\x1f\x8b\x08\x00 zipped", "holds gzip data; unpack it"),
        (b"PK\x03\x04 a spreadsheet", "holds a zip archive; unpack it, or save the spreadsheet as CSV"),
        (b"PAR1\x15 more", "holds Parquet; call it .parquet"),
    ],
    ids=["git LFS pointer", "web page", "gzip", "spreadsheet", "Parquet"],
)
def test_a_file_of_another_kind_than_its_name_says_is_refused(tmp_path, suffix, content, said):
    (tmp_path / f"prompts{suffix}").write_bytes(content)
    other = suffix == ".parquet" and not content.startswith(b"version")
    with pytest.raises(ConfigError, match="is no whole Parquet file" if other else said):
        read_prompts(tmp_path / f"prompts{suffix}")


def test_json_under_another_name_is_refused_with_the_right_one(tmp_path):
    (tmp_path / "p.txt").write_text('{"prompt": "a cat"}\n')
    with pytest.raises(ConfigError, match=r"holds JSON objects, not texts; call it p.jsonl"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.jsonl").write_text('[\n{"prompt": "a cat"},\n{"prompt": "a dog"}\n]\n')
    with pytest.raises(ConfigError, match=r"holds one JSON list; write each of its objects on a line"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path, suffix):
    file = tmp_path / f"prompts{suffix}"

    def write_columns(*names):
        if suffix == ".csv":
            file.write_text(f"{','.join(names)}\na,b,c\n")
        else:
            pq.write_table(pa.table([["a"], ["b"], ["c"]], names=names), file)

    write_columns("prompt", "prompt", "id")
    with pytest.raises(ConfigError, match="has 2 columns named 'prompt'; rename all but one"):
        read_prompts(file, fields=())
    write_columns("prompt", "id", "id")
    assert read_prompts(file, fields=()).train == ("a",)
    with pytest.raises(ConfigError, match="has 2 columns named 'id'; rename all but one"):
        read_prompts(file)


def test_columns_with_dots_in_their_names_are_told_from_parts_of_others(tmp_path):
    table = pa.table(
        {"meta": ["x", "y"], "meta.prompt": ["a cat", "a dog"], "more": [{"prompt": "z"}, {"prompt": "z"}]}
    )
    pq.write_table(table, tmp_path / "p.parquet")
    prompts = read_prompts(tmp_path / "p.parquet", "meta.prompt")
    assert prompts.train == ("a cat", "a dog") and prompts.train[1].fields == {"meta": "y"}
    assert prompts.left_out == {"more": 2}


def test_a_byte_order_mark_is_no_part_of_a_prompt_wherever_files_were_joined(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\xef\xbb\xbfa dog\r\n")
    assert read_prompts(tmp_path / "p.txt").train == ("a cat", "a dog")


def test_a_parquet_column_of_numbers_is_refused_by_its_type(tmp_path):
    with pytest.raises(ConfigError, match="column 'seed' .* holds int64, not text"):
        read_prompts(write(tmp_path / "prompts.parquet", NAMES[:3]), "seed")


def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path):
    file = write(tmp_path / "prompts.txt", NAMES[:3])
    with pytest.raises(ConfigError, match="splits the 3 prompts .* into 3 to train on and 0 held out"):
        read_prompts(file, heldout=0.001)
    with pytest.raises(ConfigError, match="the share of the prompts that is held out, got 2000"):
        read_prompts(file, heldout=2000)
    with pytest.raises(ConfigError, match="limit is a number of prompts, got 0"):
        read_prompts(file, limit=0)
