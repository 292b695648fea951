import itertools
import pickle
import sys
import time

import pytest

from drover.common.errors import ConfigError
from drover.learner.files.templates import objects, occupation_prompts, occupations, pair_prompts, with_article
from drover.learner.intake.prompt_order import ShuffledPrompts


def test_the_vocabularies_have_the_papers_sizes_and_the_halves_share_no_object():
    train, heldout = objects("train"), objects("heldout")
    assert (len(set(train)), len(set(heldout)), len(set(occupations()))) == (450, 82, 100)
    assert not set(train) & set(heldout)
    assert {"rifle,gun", "traffic light", "zucchini"} <= set(train)
    assert all(name == name.strip() and name for name in train + heldout + occupations())


def test_450_objects_make_1010250_prompts_none_twice_and_none_of_an_object_with_itself():
    prompts = pair_prompts(objects("train"))
    assert len(prompts) == 1_010_250
    assert len(set(prompts)) == 1_010_250
    assert prompts[0] == "an accordion and an air conditioner"
    assert prompts[-1] == prompts[1_010_249] == "a zucchini beside a wrench"


def test_templates_are_every_ordered_pair_in_every_relation():
    prompts = pair_prompts(("cat", "owl", "bread"), ("near", "on side of"))
    assert prompts[:3] == ("a cat near an owl", "a cat on side of an owl", "a cat near bread")
    pairs = itertools.permutations(("a cat", "an owl", "bread"), 2)
    assert sorted(prompts) == sorted(f"{a} {r} {b}" for a, b in pairs for r in ("near", "on side of"))


def test_held_out_prompts_name_no_object_that_is_trained_on():
    seen = set(map(with_article, objects("train")))
    heldout = pair_prompts(objects("heldout"), ("|",))
    assert len(heldout) == 82 * 81
    assert not seen & {noun for prompt in heldout for noun in prompt.split(" | ")}


def test_a_million_prompts_cost_no_more_than_their_nouns_and_any_is_there_at_once():
    prompts = pair_prompts(objects("train"))
    assert len(pickle.dumps(prompts)) < 20_000
    assert sys.getsizeof(prompts) < 1000
    start = time.process_time()
    picked = [prompts[index] for index in range(0, len(prompts), 101)]
    assert time.process_time() - start < 1
    assert len(set(picked)) == 10_003
    source = ShuffledPrompts(prompts)
    assert len({source.at(1, number) for number in range(5000)}) == 5000


def test_an_index_outside_is_an_index_error_as_for_any_sequence():
    prompts = pair_prompts(("cat", "dog"), ("near",))
    assert list(prompts) == ["a cat near a dog", "a dog near a cat"]
    for outside in (2, -3):
        with pytest.raises(IndexError):
            prompts[outside]


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("cat", "a cat"),
        ("owl", "an owl"),
        ("umbrella", "an umbrella"),
        ("utility pole", "a utility pole"),
        ("unicorn", "a unicorn"),
        ("uninvited guest", "an uninvited guest"),
        ("hourglass", "an hourglass"),
        ("suv", "an suv"),
        ("TV presenter", "a TV presenter"),
        ("MRI scanner", "an MRI scanner"),
        ("Elephant", "an Elephant"),
        ("bread", "bread"),
        ("scissors", "scissors"),
    ],
)
def test_the_article_goes_by_sound_and_is_left_out_where_english_does(noun, phrase):
    assert with_article(noun) == phrase


def test_portraits_are_asked_for_by_occupation():
    prompts = occupation_prompts()
    assert len(set(prompts)) == 100
    assert (prompts[0], prompts[-1]) == ("a portrait of an accountant", "a portrait of a web designer")
    assert occupation_prompts(["nurse"]) == ("a portrait of a nurse",)


@pytest.mark.parametrize(
    ("names", "relations"),
    [(("cat",), ("near",)), (("cat", "cat"), ("near",)), (("cat", " "), ("near",)), ("cat", ("near",))],
)
def test_fewer_than_two_different_objects_are_refused(names, relations):
    with pytest.raises(ConfigError, match="objects must be at least 2 different names, none blank"):
        pair_prompts(names, relations)


def test_templates_without_a_relation_are_refused():
    with pytest.raises(ConfigError, match="relations must be at least 1 different names"):
        pair_prompts(("cat", "dog"), ())
