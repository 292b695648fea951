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
    split = read_prompts(tmp_path / "metadata.parquet", heldout=0.1, seed=5)
    assert split.skipped == {"repeated": 4000}
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
        "not_json": 2,
        "not_an_object": 1,
        "not_text": 1,
        "missing": 2,
        "blank": 1,
        "not_utf8": 1,
        "too_long": 1,
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
    assert split.skipped == {"wrong_columns": 2, "not_csv": 2}


def test_a_parquet_value_that_is_no_utf8_or_null_costs_itself_alone(tmp_path):
    raw = pa.array([b"a cat", b"a caf\xe9", None, b"a dog"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"prompt": strings}), tmp_path / "prompts.parquet", use_dictionary=False)
    split = read_prompts(tmp_path / "prompts.parquet")
    assert (split.train, split.skipped) == (("a cat", "a dog"), {"not_text": 1, "missing": 1})


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
        ("p.jsonl", b"{\n[]\n", r"holds no prompt; fill its column 'prompt' \(skipped: 1 not_an_object, 1 not_json\)"),
        ("p.parquet", b"PAR1 but no more", "is no whole Parquet file"),
        ("p.json", b"[]", "has none of the endings .txt, .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


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
