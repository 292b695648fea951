import pytest

from drover.common.errors import ConfigError
from drover.learner.intake.prompt_order import ShuffledPrompts

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
