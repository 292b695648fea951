import pytest

from common.errors import ConfigError
from learner.sources import ShuffledPrompts, read_prompts

NAMES = tuple("abcdefg")


def test_every_prompt_comes_once_per_pass_and_passes_differ():
    source = ShuffledPrompts(NAMES)
    passes = [[source.at(3, 7 * number + i) for i in range(7)] for number in range(6)]
    assert all(sorted(one) == list(NAMES) for one in passes)
    assert len({tuple(one) for one in passes}) >= 5


def test_the_prompt_depends_on_the_number_alone_and_not_on_what_was_asked_before():
    forwards = [ShuffledPrompts(NAMES).at(3, group) for group in range(50)]
    backwards = [ShuffledPrompts(NAMES).at(3, group) for group in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [ShuffledPrompts(NAMES).at(4, group) for group in range(50)]


def test_without_prompts_there_is_no_source():
    with pytest.raises(ConfigError, match="at least one"):
        ShuffledPrompts(())


def test_a_prompt_file_is_read_line_by_line_without_blanks_and_repetitions(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blüe square \r\na red circle\n\t\n", encoding="utf-8")
    assert read_prompts(file) == ("a red circle", "a blüe square")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no prompt file .*give a text file"),
        (b"", "holds no prompt; write one per line"),
        (b" \n\n\t\n", "holds no prompt; write one per line"),
        (b"a caf\xe9\n", "is not UTF-8 at byte 5; save it as UTF-8"),
    ],
    ids=["missing", "empty", "blank", "latin-1"],
)
def test_a_file_that_holds_no_prompts_is_one_clear_error(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(file)


def test_a_folder_is_no_prompt_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)
