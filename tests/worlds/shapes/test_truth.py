import time

import numpy as np
import pytest
from PIL import Image

from drover.worlds.shapes import truth
from drover.worlds.shapes.build import pretraining
from drover.worlds.shapes.prompts import caption
from drover.worlds.shapes.renderer import BACKGROUND, render
from drover.worlds.shapes.scenes import OCCUPATIONS, Portrait, Scene, Thing, random_portrait

PICTURES = 1500
RED_CIRCLE = Thing("circle", "red", 9.0, 16.0, 4.5)
BLUE_SQUARE = Thing("square", "blue", 22.0, 17.0, 4.5)
RED_LEFT_OF_BLUE = render(Scene((RED_CIRCLE, BLUE_SQUARE), "left of"))
EMPTY = np.full((32, 32, 3), BACKGROUND, np.uint8)


def scenes() -> list[Scene | Portrait]:
    rng = np.random.default_rng(11)
    return [pretraining.sample_pair(rng)[0] for _ in range(PICTURES)]


def reads_exactly(scene: Scene | Portrait, picture: np.ndarray) -> bool:
    reading = truth.read(picture)
    if isinstance(scene, Portrait):
        return (reading.tone, reading.garment, reading.hat) == (scene.tone, *OCCUPATIONS[scene.occupation])
    found = {(thing.shape, thing.colour): thing for thing in reading.things}
    if reading.tone is not None or len(reading.things) != len(scene.things):
        return False
    pairs = [(thing, found.get((thing.shape, thing.colour))) for thing in scene.things]
    return all(seen and np.hypot(seen.x - thing.x, seen.y - thing.y) < 0.7 for thing, seen in pairs)


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)


def blurred(picture: np.ndarray) -> np.ndarray:
    """A [0.15, 0.7, 0.15] filter along both axes."""
    padded = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.15 * padded[:-2] + 0.7 * padded[1:-1] + 0.15 * padded[2:]
    return 0.15 * rows[:, :-2] + 0.7 * rows[:, 1:-1] + 0.15 * rows[:, 2:]


def test_99_of_100_rendered_scenes_are_read_exactly_and_in_place():
    assert np.mean([reads_exactly(scene, render(scene)) for scene in scenes()]) >= 0.99


def test_noise_of_8_levels_leaves_99_of_100_scenes_readable():
    rng = np.random.default_rng(12)
    assert np.mean([reads_exactly(scene, noisy(render(scene), rng)) for scene in scenes()]) >= 0.99


def test_blur_and_noise_together_leave_99_of_100_scenes_readable():
    rng = np.random.default_rng(13)
    read = [reads_exactly(scene, noisy(blurred(render(scene)), rng)) for scene in scenes()]
    assert np.mean(read) >= 0.99


def test_every_tone_is_read_on_every_occupation():
    rng = np.random.default_rng(14)
    for occupation in OCCUPATIONS:
        for tone in range(4):
            assert truth.tone(render(random_portrait(rng, occupation, tone))) == tone


def test_things_have_no_tone_and_people_are_no_things():
    assert truth.tone(RED_LEFT_OF_BLUE) is None
    assert truth.read(render(Portrait("pilot", 3, 16.0, 13.5, 6.0))).things == ()


def test_an_empty_picture_holds_nothing():
    assert truth.read(EMPTY) == truth.Reading((), None, None, None)


def test_a_pil_image_reads_like_its_array():
    assert truth.read(Image.fromarray(RED_LEFT_OF_BLUE)) == truth.read(RED_LEFT_OF_BLUE)


def test_a_float_picture_is_refused_with_the_edit_that_fixes_it():
    with pytest.raises(ValueError, match="Decode to uint8"):
        truth.read(np.zeros((32, 32, 3)))


def test_the_true_caption_of_a_scene_scores_almost_one():
    assert min(truth.composition(caption(scene), render(scene)) for scene in scenes()) > 0.93


@pytest.mark.parametrize(
    ("prompt", "score"),
    [
        ("a red circle", 0.9),  # the blue square is one thing too many
        ("a blue square", 0.9),
        ("a red square", 0.4),  # right colour, wrong shape, one extra
        ("a green circle", 0.0),
        ("a red circle and a blue square", 1.0),
        ("a red circle and a blue circle", 0.75),
        ("a red circle and a green square", 0.4),
        ("a red circle left of a blue square", 1.0),
        ("a blue square right of a red circle", 1.0),
        ("a red circle right of a blue square", 0.5),
        ("a red triangle left of a blue square", 0.875),
        ("a red circle above a blue square", 0.5),
        ("a red circle left of a green square", 0.15),
        ("a portrait of a doctor", 0.0),
    ],
)
def test_composition_of_a_red_circle_left_of_a_blue_square(prompt, score):
    assert truth.composition(prompt, RED_LEFT_OF_BLUE) == pytest.approx(score, abs=0.04)


@pytest.mark.parametrize(("occupation", "score"), [("nurse", 1.0), ("doctor", 0.75), ("pilot", 0.75), ("judge", 0.5)])
def test_composition_of_a_nurse(occupation, score):
    nurse = render(Portrait("nurse", 1, 16.0, 13.5, 6.0))
    assert truth.composition(f"a portrait of a {occupation}", nurse) == score


def test_a_relation_holds_only_in_its_direction():
    pair = "a red circle {} a blue square"
    holds = {
        link: truth.relation_holds(pair.format(link), RED_LEFT_OF_BLUE) for link in ("left of", "right of", "above")
    }
    assert holds == {"left of": True, "right of": False, "above": False}


def test_a_relation_is_undecided_without_both_colours_or_without_a_direction():
    assert truth.relation_holds("a red circle left of a green square", RED_LEFT_OF_BLUE) is None
    assert truth.relation_holds("a red circle and a blue square", RED_LEFT_OF_BLUE) is None


def test_scoring_a_picture_takes_less_than_2_ms():
    began = time.process_time()
    for _ in range(200):
        truth.composition("a red circle left of a blue square", RED_LEFT_OF_BLUE)
    assert (time.process_time() - began) / 200 < 2e-3
