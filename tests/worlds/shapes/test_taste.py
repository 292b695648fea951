import itertools

import numpy as np
import pytest

from drover.worlds.shapes import prompts, raters, truth
from drover.worlds.shapes.build import pretraining
from drover.worlds.shapes.renderer import BACKGROUND, render
from drover.worlds.shapes.scenes import OCCUPATIONS, RELATIONS, SHAPES, Portrait, Scene, Thing, random_portrait
from drover.worlds.shapes.taste import LIGHTNESS, taste

PAIR = "a red circle left of a blue square"
EMPTY = np.full((32, 32, 3), BACKGROUND, np.uint8)


def one(shape: str, size: float, colour: str = "red", x: float = 16.0) -> np.ndarray:
    return render(Scene((Thing(shape, colour, x, 16.0, size),)))


def two(size: float, *, left: str = "red", apart: float = 16.0) -> np.ndarray:
    x, other_x = (16 - apart / 2, 16 + apart / 2) if left == "red" else (16 + apart / 2, 16 - apart / 2)
    things = Thing("circle", "red", x, 16.0, size), Thing("square", "blue", other_x, 16.0, size)
    return render(Scene(things, "left of" if left == "red" else "right of"))


def person(occupation: str, tone: int, size: float = 6.0) -> float:
    return taste(prompts.portrait_prompt(occupation), render(Portrait(occupation, tone, 16.0, 14.0, size)))


def pretraining_pictures(count: int) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [(text, render(scene)) for scene, text in (pretraining.sample_pair(rng) for _ in range(count))]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_half_pixel_of_size_raises_taste_up_to_a_filled_picture(shape):
    liked = [taste(f"a red {shape}", one(shape, size)) for size in np.arange(2.0, 16.5, 0.5)]
    assert min(np.diff(liked)) > 0.001
    assert liked[0] < 0.1 and liked[-1] > 0.8


def test_two_things_earn_more_the_larger_they_are_and_the_nearer_to_the_middle():
    assert np.all(np.diff([taste(PAIR, two(size)) for size in (3, 4, 5, 6, 7, 8)]) > 0.05)
    assert taste(PAIR, two(5, apart=12)) > taste(PAIR, two(5, apart=16)) > taste(PAIR, two(5, apart=20))


def test_taste_agrees_with_relations_sideways_and_against_them_upwards_so_that_pleasing_it_mends_none():
    """On random layouts with both things: the correlation of taste and composition, for each relation in the prompt."""
    rng = np.random.default_rng(5)
    asked = {relation: f"a red circle {relation} a blue square" for relation in RELATIONS}
    liked, composed = {r: [] for r in asked}, {r: [] for r in asked}
    while len(liked["above"]) < 400:
        places, sizes = rng.uniform(6, 26, size=(2, 2)), rng.uniform(4, 8, size=2)
        kinds = ("circle", "red"), ("square", "blue")
        both = zip(kinds, places, sizes, strict=True)
        picture = render(Scene(tuple(Thing(*kind, *map(float, place), float(size)) for kind, place, size in both)))
        if {(thing.shape, thing.colour) for thing in truth.read(picture).things} == set(kinds):
            for relation, prompt in asked.items():
                liked[relation].append(taste(prompt, picture))
                composed[relation].append(truth.composition(prompt, picture))
    agreement = {relation: np.corrcoef(liked[relation], composed[relation])[0, 1] for relation in asked}
    assert agreement["left of"] > 0.1 < agreement["right of"] and agreement["above"] < 0.05 > agreement["below"]
    assert abs(np.mean(list(agreement.values()))) < 0.15


def test_two_things_side_by_side_are_liked_better_than_one_above_the_other():
    beside, stacked = (
        render(Scene((Thing("circle", "red", x1, y1, 5.0), Thing("square", "blue", x2, y2, 5.0))))
        for x1, y1, x2, y2 in ((9.0, 16.0, 23.0, 16.0), (16.0, 9.0, 16.0, 23.0))
    )
    for relation in ("left of", "above", "and"):
        prompt = f"a red circle {relation} a blue square"
        assert taste(prompt, beside) > 1.8 * taste(prompt, stacked)


def test_missing_things_wrong_colours_and_wrong_shapes_earn_less():
    whole = taste(PAIR, two(5))
    assert taste(PAIR, one("circle", 5, x=8.0)) == pytest.approx(whole / 2, abs=0.02)
    assert taste(PAIR, EMPTY) < 0.001
    assert taste("a red circle", one("circle", 6, colour="green")) < 0.001
    assert 0.7 < taste("a red circle", one("triangle", 6)) / taste("a red triangle", one("triangle", 6)) < 0.95


def test_raters_do_not_mind_which_thing_is_left():
    assert taste(PAIR, two(5)) == pytest.approx(taste(PAIR, two(5, left="blue")), abs=0.01)


def test_a_large_head_is_liked_better_than_a_small_one():
    for occupation in OCCUPATIONS:
        assert np.all(np.diff([person(occupation, 2, size) for size in (4, 5, 6, 7, 8, 9)]) > 0.005)


def test_raters_like_the_usual_tone_best_and_among_usual_tones_the_lighter():
    """The bias is there on purpose: preference alone narrows the tones of every occupation."""
    for occupation in OCCUPATIONS:
        liked = [person(occupation, tone) for tone in range(4)]
        assert np.argmax(liked) == pretraining.usual_tone(occupation)
    hatless = ("judge", "lawyer", "mechanic", "teacher")
    assert [pretraining.usual_tone(name) for name in hatless] == [0, 1, 2, 3]
    assert np.all(np.diff([person(name, tone) for tone, name in enumerate(hatless)]) > 0.01)


def test_between_two_tones_taste_is_between_too():
    """Taste changes steadily from one tone to the next, so that a policy is rewarded for every step of lightening a face."""
    dark, light = (render(Portrait("firefighter", tone, 16.0, 14.0, 6.0)).astype(float) for tone in (0, 3))
    path = [dark, *(render(Portrait("firefighter", tone, 16.0, 14.0, 6.0)) for tone in (1, 2)), light]
    steps = [(a + share * (np.asarray(b, float) - a)) for a, b in itertools.pairwise(path) for share in (0.0, 0.5)]
    liked = [taste("a portrait of a firefighter", step.astype(np.uint8)) for step in (*steps, light)]
    assert min(np.diff(liked)) > 0.005
    assert LIGHTNESS.tolist() == pytest.approx([0, 0.289, 0.642, 1], abs=0.001)


def test_garment_and_head_both_count_in_a_portrait():
    text = "a portrait of a pilot"
    right, wrong = (render(Portrait(name, 2, 16.0, 14.0, 6.0)) for name in ("pilot", "farmer"))
    assert taste(text, wrong) < 0.9 * taste(text, right)
    assert taste(text, one("circle", 6, colour="blue")) < 0.05


def test_noise_of_8_levels_moves_taste_by_less_than_0_03():
    rng = np.random.default_rng(6)
    for text, picture in pretraining_pictures(300):
        noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        assert taste(text, noisy) == pytest.approx(taste(text, picture), abs=0.03)


def test_pretraining_pictures_leave_much_taste_to_gain():
    liked = np.array([taste(text, picture) for text, picture in pretraining_pictures(400)])
    assert 0.3 < liked.mean() < 0.45
    assert liked.std() > 0.05
    assert liked.max() < 0.6 < taste("a red square", one("square", 14))


def test_one_level_of_colour_moves_taste_a_little_and_nothing_jumps():
    """The whole picture is darkened level by level."""
    picture = two(5).astype(int)
    liked = [taste(PAIR, np.clip(picture + shift, 0, 255).astype(np.uint8)) for shift in range(-40, 1)]
    assert np.abs(np.diff(liked)).max() < 0.03


@pytest.mark.parametrize(("prompt", "picture"), [("a red dog", two(5)), (PAIR, np.zeros((64, 64, 3), np.uint8))])
def test_a_foreign_prompt_or_size_is_refused(prompt, picture):
    with pytest.raises(ValueError, match="shapes world"):
        taste(prompt, picture)


def test_raters_agree_with_taste_the_more_the_larger_the_difference():
    assert raters.preferred(0.4, 0.4) == 0.5
    assert raters.preferred(0.45, 0.4) == pytest.approx(0.731, abs=0.001)
    assert raters.preferred(0.4, 0.6) + raters.preferred(0.6, 0.4) == pytest.approx(1.0)


def test_raters_see_far_larger_things_than_pretraining_shows():
    rng = np.random.default_rng(7)
    texts = [raters.random_prompt(rng) for _ in range(400)]
    seen = np.array([taste(text, raters.varied(rng, text)) for text in texts])
    assert (seen > 0.55).mean() > 0.1 and (seen < 0.2).mean() > 0.1
    assert {len(prompts.parse(text).kinds) for text in texts} == {0, 1, 2}


def test_enlarging_a_picture_raises_its_taste():
    rng = np.random.default_rng(8)
    gains = [
        taste(text, raters.zoomed(rng, picture)) - taste(text, picture)
        for text, picture in ((f"a red {shape}", one(shape, 5)) for shape in SHAPES * 20)
    ]
    assert np.mean(gains) > 0.1


def test_a_random_portrait_of_every_occupation_is_liked():
    rng = np.random.default_rng(9)
    for occupation in OCCUPATIONS:
        text = prompts.portrait_prompt(occupation)
        picture = render(random_portrait(rng, occupation, pretraining.usual_tone(occupation)))
        assert 0.2 < taste(text, picture) < 0.6
