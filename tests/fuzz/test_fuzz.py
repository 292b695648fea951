"""A slice of the fuzzing on every run of the suite; ``python -m tests.fuzz`` runs as many inputs as one likes."""

import logging

import pytest

from tests.fuzz import codec_inputs, config_inputs, http_inputs
from tests.fuzz.harness import Broke, drive


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_damaged_messages_are_refused_and_nothing_else_happens():
    outcome = drive(codec_inputs.one, 1500)
    assert outcome.kinds.keys() == {"refused", "a message"}
    assert outcome.kinds["refused"] > 1200


@pytest.mark.service
@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_damaged_requests_are_answered_with_400_to_431_or_with_scores():
    with http_inputs.judge() as one:
        outcome = drive(one, 1000)
    assert outcome.kinds["200"] > 100 and outcome.kinds["400"] > 500
    assert {"401", "404", "405", "411", "413", "431"} <= outcome.kinds.keys()


def test_odd_options_and_fields_describe_a_run_or_are_refused_with_a_reason():
    with config_inputs.judge(parsed_share=0.03) as one:
        outcome = drive(one, 3000)
    assert {"option refused", "usage", "options taken", "field refused", "fields taken"} <= outcome.kinds.keys()


@pytest.mark.parametrize("bad", [lambda draw: 1 // 0, lambda draw: exec("raise MemoryError")])
def test_an_input_that_raises_is_named_with_its_seed(bad):
    with pytest.raises(Broke, match=r"input 0 of seed 4: (ZeroDivision|Memory)Error"):
        drive(bad, 3, seed=4)
