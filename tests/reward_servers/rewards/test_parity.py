"""Parity of sets: its arithmetic, the reward over sets, and a classifier that learns the four tones in seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drover.common.errors import ConfigError, ScoringFailed
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward, SetScorer
from drover.reward_servers.models.vision import ImageClassifier
from drover.reward_servers.parity import MAX_EXACT, leave_one_out, statistical_parity, uniform_floor
from drover.reward_servers.rewards.statistical_parity import StatisticalParity
from drover.worlds.shapes import truth
from drover.worlds.shapes.judges import Tones
from drover.worlds.shapes.renderer import BACKGROUND, render
from drover.worlds.shapes.scenes import OCCUPATIONS, TONES, random_portrait

EMPTY = np.full((32, 32, 3), BACKGROUND, np.uint8)

# --------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("counts", "rooted", "unrooted"),
    [
        ((16, 0, 0, 0), 0.8660, 0.75),
        ((12, 4, 0, 0), 0.6124, 0.375),
        ((8, 8, 0, 0), 0.5, 0.25),
        ((10, 4, 1, 1), 0.4593, 0.2109),
        ((8, 4, 2, 2), 0.3062, 0.0938),
        ((5, 4, 4, 3), 0.0884, 0.0078),
        ((4, 4, 4, 4), 0.0, 0.0),
    ],
)
def test_the_parity_of_counts_is_the_published_arithmetic(counts, rooted, unrooted):
    for order in itertools.islice(itertools.permutations(counts), 5):  # which class is which does not matter
        assert statistical_parity(order) == pytest.approx(rooted, abs=5e-5)
        assert statistical_parity(order, rooted=False) == pytest.approx(unrooted, abs=5e-5)


def test_a_uniform_generator_of_four_classes_measures_the_known_floor_and_not_zero():
    floors = {n: round(uniform_floor(n, 4), 3) for n in (6, 8, 16, 32, 64, 100)}
    assert floors == {6: 0.330, 8: 0.283, 16: 0.200, 32: 0.141, 64: 0.100, 100: 0.080}


@pytest.mark.parametrize(("samples", "classes"), [(1, 4), (5, 2), (6, 3), (4, 5)])
def test_the_floor_is_the_mean_over_every_possible_set(samples, classes):
    sets = itertools.product(range(classes), repeat=samples)
    counts = [[members.count(index) for index in range(classes)] for members in sets]
    for rooted in (True, False):
        mean = np.mean([statistical_parity(each, rooted=rooted) for each in counts])
        assert uniform_floor(samples, classes, rooted=rooted) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_where_the_floor_passes_from_the_sum_to_its_limit_it_does_not_jump(classes):
    exact, limit = uniform_floor(MAX_EXACT, classes), uniform_floor(MAX_EXACT + 1, classes)
    assert exact * math.sqrt(MAX_EXACT / (MAX_EXACT + 1)) == pytest.approx(limit, rel=3e-3)


def test_leaving_one_out_credits_the_rare_and_debits_the_common():
    common, rare, none, _ = leave_one_out((7, 1, 0, 0))
    assert common == pytest.approx(statistical_parity((6, 1, 0, 0)) - statistical_parity((7, 1, 0, 0)))
    assert rare == pytest.approx(math.sqrt(0.75) - statistical_parity((7, 1, 0, 0)))
    assert rare > 0 > common
    assert none == 0.0


# ------------------------------------------------------------------------------------- the reward over sets


@dataclass(frozen=True)
class Painted:
    """Reads the class from the value of the first pixel; 255 shows none."""

    classes: tuple[str, ...] = ("a", "b", "c", "d")

    def load(self, device: str) -> Callable[[np.ndarray], list[int | None]]:
        return lambda media: [None if image[0, 0, 0] == 255 else int(image[0, 0, 0]) for image in media]


def painted(*classes: int | None) -> np.ndarray:
    values = np.array([255 if index is None else index for index in classes], np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(values), 2, 2, 3))


REWARD = StatisticalParity(Painted())


def score(media: np.ndarray, *sets: slice, reward: StatisticalParity = REWARD) -> tuple[list[float], list[str]]:
    scores = reward.load("cpu").score_sets(["a person"] * len(media), Pictures(media), sets)
    return list(scores.values), list(scores.reasons)


def test_every_sample_of_a_set_gets_minus_the_sets_parity():
    values, reasons = score(painted(0, 0, 0, 0, 0, 1, 2, 3), slice(0, 4), slice(4, 8))
    assert values == [-math.sqrt(0.75)] * 4 + [0.0] * 4
    assert reasons == [""] * 8


def test_sets_in_one_call_are_worth_what_they_are_in_calls_of_their_own():
    first, second = painted(0, 0, 1, 2, None), painted(3, 3, 3, 1, 1)
    together = score(np.concatenate([first, second]), slice(0, 5), slice(5, 10))
    apart = [score(first, slice(0, 5)), score(second, slice(0, 5))]
    np.testing.assert_array_equal(together[0], apart[0][0] + apart[1][0])
    assert together[1] == apart[0][1] + apart[1][1]


def test_a_set_split_in_two_is_two_sets_and_each_half_is_judged_by_its_own_number():
    media = painted(0, 0, 0, 1, 1, 1)
    assert score(media, slice(0, 6))[0] == [-0.5] * 6
    values, reasons = score(media, slice(0, 4), slice(4, 6))
    assert values[:4] == pytest.approx([-statistical_parity((3, 1, 0, 0))] * 4)
    assert reasons == [""] * 4 + ["few"] * 2 and np.isnan(values[4:]).all()


def test_a_sample_without_a_class_is_masked_and_left_out_of_the_shares():
    values, reasons = score(painted(0, None, 1, 0, None, 1), slice(0, 6))
    assert reasons == ["", "unjudged", "", "", "unjudged", ""]
    assert [values[row] for row in (0, 2, 3, 5)] == [-0.5] * 4
    assert np.isnan([values[1], values[4]]).all()


def test_a_set_with_too_few_judged_samples_is_masked_whole():
    media = painted(0, 1, 2, None, None)
    values, reasons = score(media, slice(0, 5))
    assert np.isnan(values).all()
    assert reasons == ["few", "few", "few", "unjudged", "unjudged"]
    assert score(media, slice(0, 5), reward=replace(REWARD, least=3))[1][:3] == ["", "", ""]


def test_a_set_of_which_nothing_can_be_judged_is_masked_and_not_scored_zero():
    values, reasons = score(painted(*[None] * 4), slice(0, 4))
    assert np.isnan(values).all() and reasons == ["unjudged"] * 4


def test_leave_one_out_gives_the_rare_sample_more_than_the_common_ones():
    reward = replace(REWARD, credit="leave_one_out")
    values, _ = score(painted(0, 0, 0, 1), slice(0, 4), reward=reward)
    assert values == pytest.approx([leave_one_out((3, 1, 0, 0))[index] for index in (0, 0, 0, 1)])
    assert values[3] > 0 > values[0]


def test_without_the_root_the_value_is_the_sum_of_squares():
    assert score(painted(0, 0, 1, 1), slice(0, 4), reward=replace(REWARD, rooted=False))[0] == [-0.25] * 4


@pytest.mark.parametrize("sets", [(slice(0, 4),), (slice(0, 5), slice(4, 8)), ()])
def test_sets_that_do_not_hold_every_sample_once_lose_the_whole_batch(sets):
    with pytest.raises(ScoringFailed, match="do not hold each of 8 samples once"):
        score(painted(*range(4), *range(4)), *sets)


def test_a_classifier_that_answers_outside_its_classes_loses_the_whole_batch():
    with pytest.raises(ScoringFailed, match="wanted 4 of 0 to 3 or None"):
        score(painted(0, 1, 2, 4), slice(0, 4))


def test_it_is_a_reward_over_sets():
    assert isinstance(REWARD, Reward) and isinstance(REWARD.load("cpu"), SetScorer)
    assert (REWARD.name, REWARD.packages) == ("statistical_parity", ())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classifier": Painted(("a",))}, "name at least two"),
        ({"classifier": Painted(("a", "a"))}, "each once"),
        ({"credit": "mine"}, "credit is 'mine'; choose 'shared' or 'leave_one_out'"),
        ({"least": 1}, "choose 2 or more"),
    ],
)
def test_a_description_without_a_parity_is_refused_at_start_up(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(REWARD, **wrong)


# ---------------------------------------------------------------------------------- a classifier of tones

LABELS = ("darkest", "dark", "light", "lightest")


def portraits(rng: np.random.Generator, tones: np.ndarray) -> np.ndarray:
    occupations = rng.choice(list(OCCUPATIONS), len(tones))
    pairs = zip(occupations, tones, strict=True)
    return np.stack([render(random_portrait(rng, str(occupation), int(tone))) for occupation, tone in pairs])


@pytest.fixture(scope="module")
def tone_model(tmp_path_factory) -> Path:
    """A vision transformer of 20,000 parameters that has learned tones from 400 portraits, as a folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    tones = rng.integers(0, TONES, 400)
    processor = ViTImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = processor(list(portraits(rng, tones)), return_tensors="pt").pixel_values
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, id2label=dict(enumerate(LABELS)))
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        rows = torch.from_numpy(rng.integers(0, len(tones), 32))
        loss = torch.nn.functional.cross_entropy(model(pixels[rows]).logits, torch.from_numpy(tones)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_transformers_classifier_agrees_with_the_truth_on_portraits_it_has_not_seen(tone_model):
    rng = np.random.default_rng(1)
    media = portraits(rng, rng.integers(0, TONES, 200))
    judged = ImageClassifier(str(tone_model), LABELS).load("cpu")(media)
    assert np.mean([index == truth.tone(image) for index, image in zip(judged, media, strict=True)]) >= 0.95


def test_parity_by_the_learned_classifier_is_parity_by_the_truth(tone_model):
    rng = np.random.default_rng(2)
    media = portraits(rng, np.array([0] * 8 + [0, 1, 2, 3] * 2))
    learned = StatisticalParity(ImageClassifier(str(tone_model), LABELS))
    by_learned, _ = score(media, slice(0, 8), slice(8, 16), reward=learned)
    by_truth, _ = score(media, slice(0, 8), slice(8, 16), reward=StatisticalParity(Tones()))
    assert by_truth == pytest.approx([-math.sqrt(0.75)] * 8 + [0.0] * 8)
    assert by_learned == pytest.approx(by_truth, abs=0.2)


def test_the_truth_masks_a_picture_without_a_head():
    media = np.stack([*portraits(np.random.default_rng(3), np.arange(4)), EMPTY])
    assert score(media, slice(0, 5), reward=StatisticalParity(Tones()))[1] == [""] * 4 + ["unjudged"]


def test_an_answer_that_was_not_asked_for_or_is_not_likely_enough_is_no_answer(tone_model):
    media = portraits(np.random.default_rng(4), np.repeat(np.arange(4), 8))
    some = ImageClassifier(str(tone_model), ("lightest", "dark")).load("cpu")(media)
    assert [some.count(index) for index in (0, 1, None)] == pytest.approx([8, 8, 16], abs=2)
    assert ImageClassifier(str(tone_model), LABELS, 0.9999).load("cpu")(media).count(None) > 8


def test_the_class_of_a_picture_does_not_depend_on_the_other_pictures(tone_model):
    rng = np.random.default_rng(5)
    media = portraits(rng, rng.integers(0, TONES, 70))  # more than one forward pass
    judge = ImageClassifier(str(tone_model), LABELS).load("cpu")
    assert judge(media) == [judge(image[None])[0] for image in media]


def test_a_network_whose_output_is_not_finite_gives_no_answer(tone_model):
    judge = ImageClassifier(str(tone_model), LABELS).load("cpu")
    judge.model.classifier.bias[2] = math.nan
    assert judge(portraits(np.random.default_rng(6), np.arange(4))) == [None] * 4


def test_a_class_the_model_does_not_know_is_refused_with_those_it_knows(tone_model):
    with pytest.raises(ConfigError, match="does not know 'medium'; it knows dark, darkest, light, lightest"):
        ImageClassifier(str(tone_model), ("dark", "medium")).load("cpu")


def test_a_folder_that_is_missing_empty_or_lacks_the_classifier_is_refused(tone_model, tmp_path):
    from transformers import ViTModel

    with pytest.raises(ConfigError, match="no checkpoint folder '/nowhere/tones'"):
        ImageClassifier("/nowhere/tones", LABELS)
    with pytest.raises(ConfigError, match="holds no config.json"):
        ImageClassifier(str(tmp_path), LABELS)
    headless = ViTModel.from_pretrained(tone_model, add_pooling_layer=False)
    headless.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tone_model / "config.json").read_text())
    with pytest.raises(ConfigError, match="lacks 2 weights of ViTForImageClassification, the first classifier.bias"):
        ImageClassifier(str(tmp_path), LABELS).load("cpu")
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(ConfigError, match="cannot open"):
        ImageClassifier(str(tmp_path), LABELS).load("cpu")
