import subprocess
import sys

import numpy as np
import pytest

from drover.worlds.shapes import prompts
from drover.worlds.shapes.build import pretraining
from drover.worlds.shapes.scenes import OCCUPATIONS, OPPOSITE, Portrait, random_pair

FAMILIES = (prompts.relation_prompts, prompts.object_prompts, prompts.portrait_prompts)


def kinds_or_occupation(prompt: str):
    parsed = prompts.parse(prompt)
    return parsed.occupation or frozenset(parsed.kinds)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_pair_of_things_and_no_occupation_is_in_both_splits(family):
    train, heldout = ({kinds_or_occupation(prompt) for prompt in family(split)} for split in ("train", "heldout"))
    assert train and heldout and not train & heldout


def test_the_splits_have_their_documented_sizes():
    sizes = {family.__name__: (len(family("train")), len(family("heldout"))) for family in FAMILIES}
    assert sizes == {"relation_prompts": (864, 216), "object_prompts": (231, 57), "portrait_prompts": (12, 4)}


def test_every_prompt_is_different_and_comes_in_the_same_order_each_time():
    assert len(set(prompts.every_prompt())) == 1384
    assert prompts.every_prompt() == prompts.every_prompt()


def test_every_prompt_is_rebuilt_from_its_parse():
    for prompt in prompts.every_prompt():
        parsed = prompts.parse(prompt)
        if parsed.occupation:
            rebuilt = prompts.portrait_prompt(parsed.occupation)
        elif parsed.link:
            rebuilt = prompts.pair_prompt(parsed.kinds[0], parsed.link, parsed.kinds[1])
        else:
            rebuilt = prompts.kind_prompt(parsed.kinds[0])
        assert rebuilt == prompt


def test_articles_follow_the_next_word():
    assert "an orange circle" in prompts.object_prompts("train")
    assert "a portrait of an engineer" in prompts.portrait_prompts("train")


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "a dog",
        "a orange circle",
        "a red circle near a blue square",
        "a red circle left of a red square",
        "a portrait of a king",
    ],
)
def test_a_foreign_prompt_is_named_together_with_the_grammar(foreign):
    with pytest.raises(ValueError, match=r"is not a prompt of the shapes world.*a <colour> <shape>") as caught:
        prompts.parse(foreign)
    assert repr(foreign) in str(caught.value)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        prompts.relation_prompts("test")


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(21)
    return [pretraining.sample_pair(rng) for _ in range(20_000)]


def test_30_of_100_relation_captions_are_wrong_and_all_others_true(pairs):
    wrong = relations = 0
    for scene, caption in pairs:
        link = prompts.parse(caption).link
        if link in OPPOSITE:
            relations += 1
            wrong += link == OPPOSITE[scene.relation]
            assert link in (scene.relation, OPPOSITE[scene.relation])
        elif link is None:
            assert caption == prompts.caption(scene)
    assert relations > 9_000
    assert wrong / relations == pytest.approx(0.30, abs=0.02)


def test_85_of_100_people_have_the_usual_tone_of_their_occupation(pairs):
    people = [scene for scene, _ in pairs if isinstance(scene, Portrait)]
    usual = [person.tone == pretraining.usual_tone(person.occupation) for person in people]
    assert np.mean(usual) == pytest.approx(0.85, abs=0.02)


def test_each_tone_is_usual_for_four_occupations_of_which_one_is_held_out():
    for tone in range(4):
        usual = [occupation for occupation in OCCUPATIONS if pretraining.usual_tone(occupation) == tone]
        assert len(usual) == 4
        assert len(prompts.HELDOUT_OCCUPATIONS & set(usual)) == 1


def test_pretraining_shows_every_prompt(pairs):
    assert {caption for _, caption in pairs} == set(prompts.every_prompt())


def test_the_two_things_of_a_pair_stand_clear_in_their_relation():
    rng = np.random.default_rng(22)
    for relation in OPPOSITE:
        for _ in range(200):
            first, second = random_pair(rng, ("circle", "red"), ("triangle", "blue"), relation).things
            along, across = first.x - second.x, first.y - second.y
            if relation in ("above", "below"):
                along, across = across, along
            sign = -1 if relation in ("left of", "above") else 1
            assert sign * along >= 7.5 and abs(across) <= 3


def test_the_same_seed_gives_the_same_pairs():
    first, second = (pretraining.sample_pair(np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_importing_the_world_loads_no_network_library():
    check = (
        "import sys, drover.worlds.shapes.truth, drover.worlds.shapes.build.pretraining; "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
