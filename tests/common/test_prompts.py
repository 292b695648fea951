"""Prompts with fields: they are strings, and their fields survive messages and processes."""

from __future__ import annotations

import math
import pickle

import pytest

from drover.common.errors import ConfigError
from drover.common.prompts import Prompt, fields_text, with_fields


def test_a_prompt_is_its_text_to_whatever_reads_strings() -> None:
    prompt = Prompt("two apples", {"count": 2})
    assert prompt == "two apples"
    assert {prompt: 1}["two apples"] == 1
    assert prompt.fields["count"] == 2


def test_fields_survive_a_message_and_another_process() -> None:
    prompts = (Prompt("two apples", {"objects": ["apple", "apple"], "count": 2}), "none")
    back = with_fields(prompts, fields_text(prompts))
    assert back == ("two apples", "none")
    assert [dict(prompt.fields) for prompt in back] == [{"objects": ["apple", "apple"], "count": 2}, {}]
    assert dict(pickle.loads(pickle.dumps(back[0])).fields) == dict(back[0].fields)


def test_prompts_without_fields_add_nothing_to_a_message() -> None:
    assert fields_text(("a", Prompt("b"))) == ()


@pytest.mark.parametrize("value", [{"nested": 1}, [[1]], object(), math.nan, [1.0, math.inf]])
def test_a_field_that_is_no_scalar_or_list_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="field 'x' of prompt 'p' is a"):
        Prompt("p", {"x": value})  # type: ignore[dict-item]


def test_fields_that_would_make_orders_large_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 4096 travel"):
        Prompt("p", {"text": "x" * 5000})


@pytest.mark.parametrize("texts", [("[1]",), ("null",), ("{}", "{}"), ('{"a": ',), ('{"a": {"b": 1}}',)])
def test_fields_that_are_not_one_object_a_prompt_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        with_fields(("a",), texts)


def test_the_repr_of_a_prompt_shows_its_fields_and_without_fields_is_that_of_its_text() -> None:
    assert repr((Prompt("a", {"count": 2}), Prompt("b"))) == "(Prompt('a', {'count': 2}), 'b')"
    assert f"{Prompt('a', {'count': 2})}" == str(Prompt("a", {"count": 2})) == "a"
