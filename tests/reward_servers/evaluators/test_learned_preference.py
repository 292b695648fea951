"""Preference models: a fit learns from pairs and refuses bad ones, and the shipped model predicts its raters."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from drover.common.errors import ConfigError, ScoringFailed, TrainingDiverged
from drover.common.media.pictures import Pictures
from drover.reward_servers.evaluators.fit_shapes import rank_correlation
from drover.reward_servers.evaluators.pairs import Pairs, read_pairs, resized
from drover.reward_servers.evaluators.preference import FEWEST_PAIRS, PreferenceModel, Size, fit_evaluator, load
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.shapes_taste import ShapesTaste
from drover.worlds.shapes import PREFERENCE, prompts, raters
from drover.worlds.shapes.build import pretraining
from drover.worlds.shapes.renderer import render
from drover.worlds.shapes.scenes import Portrait, Scene, Thing
from drover.worlds.shapes.taste import taste
from tests.reward_servers.evaluators.bad_taste import BadTaste

SMALL = Size(side=8, width=8, text=8)


def grey_pairs(count: int, *, rule=None, texts=("a day", "a night"), seed: int = 0) -> Pairs:
    """Grey 8x8 pictures; by default raters like bright ones for a day and dark ones for a night."""
    rng = np.random.default_rng(seed)
    chosen = tuple(str(text) for text in rng.choice(texts, count))
    levels = rng.integers(20, 236, size=(2, count))
    a, b = (np.clip(level[:, None, None, None] + rng.normal(0, 8, (count, 8, 8, 3)), 0, 255) for level in levels)
    labels = [
        rule(rng) if rule else float((x > y) == ("day" in text)) for text, x, y in zip(chosen, *levels, strict=True)
    ]
    return Pairs(chosen, *(Pictures(side.astype(np.uint8)) for side in (a, b)), np.array(labels, np.float32))


def grey(level: int, side: int = 8) -> np.ndarray:
    return np.full((1, side, side, 3), level, np.uint8)


@pytest.fixture(scope="module")
def fitted():
    return fit_evaluator(grey_pairs(600), size=SMALL, epochs=15, learning_rate=1e-2)


@pytest.fixture(scope="module")
def shipped():
    return LearnedPreference(PREFERENCE).load("cpu")


# --------------------------------------------------------------------------------------------------- the fit


def test_a_fit_learns_what_is_liked_for_which_prompt(fitted):
    assert fitted.accuracy > 0.93 and fitted.held_out == 60
    day, night = (
        fitted.model.score([text] * 3, np.concatenate([grey(level) for level in (50, 128, 200)]))
        for text in ("a day", "a night")
    )
    assert day[0] < day[1] < day[2] and night[0] > night[1] > night[2]


def test_score_differences_are_the_raters_log_odds():
    """Raters choose the brighter picture 3 times of 4, at any difference, so any two pictures differ by log 3."""
    rng = np.random.default_rng(1)
    pictures = np.concatenate([grey(60), grey(200)]).repeat(400, 0)
    sides = Pictures(pictures[400:]), Pictures(pictures[:400])
    pairs = Pairs(("a day",) * 400, *sides, (rng.random(400) < 0.75).astype(np.float32))
    model = fit_evaluator(pairs, size=SMALL, epochs=15, learning_rate=1e-2).model
    bright, dark = model.score(["a day"] * 2, np.concatenate([grey(200), grey(60)]))
    assert bright - dark == pytest.approx(math.log(pairs.labels.mean() / (1 - pairs.labels.mean())), abs=0.3)
    assert abs(bright + dark) / 2 < 0.3  # centred


def test_raters_who_toss_a_coin_cannot_be_learned_and_the_fit_stops_early():
    seen = []
    pairs = grey_pairs(600, rule=lambda rng: float(rng.integers(2)))
    result = fit_evaluator(pairs, size=SMALL, epochs=30, patience=3, progress=seen.append)
    assert 0.3 < result.accuracy < 0.7 and result.loss == pytest.approx(math.log(2), abs=0.03)
    assert [epoch.number for epoch in seen] == list(range(1, len(seen) + 1)) and len(seen) < 30
    assert result.epochs == len(seen) - 3
    assert result.loss == min(epoch.held_out_loss for epoch in seen)


def test_pairs_of_one_prompt_are_never_on_both_sides():
    """Ratings drawn by chance for each prompt can only be remembered, which does not help on held-out prompts."""
    rng = np.random.default_rng(2)
    texts = [f"word{index}" for index in range(60)]
    shown = {text: rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8) for text in texts}
    better = {text: int(rng.integers(2)) for text in texts}
    chosen = [str(text) for text in rng.choice(texts, 600)]
    a, b = (Pictures(np.stack([shown[text][side] for text in chosen])) for side in (0, 1))
    labels = np.array([1.0 - better[text] for text in chosen], np.float32)
    result = fit_evaluator(Pairs(tuple(chosen), a, b, labels), size=SMALL, epochs=10, learning_rate=1e-2)
    assert result.accuracy < 0.9


def test_the_same_seed_fits_the_same_model_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (fit_evaluator(grey_pairs(60), size=SMALL, epochs=2, seed=5).model for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_too_few_pairs_are_refused():
    with pytest.raises(ConfigError, match=f"19 pairs are too few .* at least {FEWEST_PAIRS}"):
        fit_evaluator(grey_pairs(19), size=SMALL)


def test_a_loss_that_is_not_finite_stops_the_fit():
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        fit_evaluator(grey_pairs(200), size=SMALL, learning_rate=1e30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": Pictures(np.zeros((1, 9, 8, 3), np.uint8))}, "one size"),
        ({"prompts": ("a", "b")}, "2 prompts, 1 pairs"),
        ({"labels": np.array([1.5])}, "from 0 to 1"),
        ({"labels": np.array([math.nan])}, "from 0 to 1"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(change, message):
    good = {"prompts": ("a",), "a": Pictures(grey(1)), "b": Pictures(grey(2)), "labels": np.array([1.0])}
    with pytest.raises(ConfigError, match=message):
        Pairs(**good | change)


# ------------------------------------------------------------------------------------------- pairs from files


@pytest.fixture
def folder(tmp_path):
    """Two good records, and one of each fault."""
    Image.fromarray(grey(200, 40)[0]).save(tmp_path / "bright.png")
    Image.fromarray(grey(50, 40)[0]).convert("L").save(tmp_path / "dark.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "bright.png").read_bytes()[:60])
    good = {"prompt": "a day", "image_a": "bright.png", "image_b": "dark.png", "label": 1}
    records = [
        good,
        good | {"label": 0.25},
        good | {"label": 2},
        good | {"label": True},
        good | {"label": None},
        good | {"image_a": "gone.png"},
        good | {"image_b": "torn.png"},
        good | {"prompt": 7},
        {"prompt": "a day"},
        [1, 2],
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, '{"prompt": ', "", '{"label": NaN}']))
    return tmp_path


def test_bad_records_are_skipped_and_counted_and_the_rest_is_read(folder):
    pairs, skipped = read_pairs(folder, side=16)
    assert len(pairs) == 2 and pairs.prompts == ("a day", "a day") and pairs.labels.tolist() == [1.0, 0.25]
    assert pairs.a.pixels.shape == (2, 16, 16, 3)
    assert set(pairs.a.pixels.ravel()) == {200} and set(pairs.b.pixels.ravel()) == {50}
    wanted = {"no label from 0 to 1": 3, "no picture": 1, "damaged": 1, "not text": 1, "missing": 1, "not an object": 1}
    assert skipped == wanted | {"not JSON": 2}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_of_pairs_have_the_limits_of_all_picture_files(tmp_path):
    Image.fromarray(grey(9, 8)[0]).save(tmp_path / "good.png")
    Image.new("1", (13_000, 13_000)).save(tmp_path / "huge.png")
    Image.fromarray(grey(9, 8)[0]).save(tmp_path / "other.tiff")
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "deep.png")
    good = {"prompt": "a day", "image_a": "good.png", "image_b": "good.png", "label": 1}
    bad = [good | {"image_b": name} for name in ("huge.png", "other.tiff", "deep.png", "nul\0.png")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [good, *bad])))
    pairs, skipped = read_pairs(tmp_path, side=8)
    assert len(pairs) == 1
    assert skipped == {"too large": 1, "damaged": 1, "not 8 bit": 1, "no picture": 1}


def test_a_file_is_read_like_its_folder(folder):
    assert read_pairs(folder / "pairs.jsonl")[0].labels.tolist() == read_pairs(str(folder))[0].labels.tolist()


def test_no_file_and_no_usable_record_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"pairs.jsonl is not a file; give a JSONL file"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"no usable pair \(skipped: 1 not JSON\)"):
        read_pairs(tmp_path)


def test_a_model_fits_to_what_was_read_from_files(tmp_path):
    pairs = grey_pairs(60)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row, text in enumerate(pairs.prompts):
            for name, pictures in (("a", pairs.a), ("b", pairs.b)):
                Image.fromarray(pictures.pixels[row]).save(tmp_path / f"{row}{name}.png")
            names = {"image_a": f"{row}a.png", "image_b": f"{row}b.png"}
            file.write(json.dumps({"prompt": text, **names, "label": float(pairs.labels[row])}) + "\n")
    read, skipped = read_pairs(tmp_path, side=8)
    assert not skipped and np.array_equal(read.a.pixels, pairs.a.pixels)
    from_files, from_arrays = (fit_evaluator(data, size=SMALL, epochs=2) for data in (read, pairs))
    assert from_files.loss == from_arrays.loss


# ------------------------------------------------------------------------------------------------ on disk


def test_a_saved_model_scores_the_same_and_holds_nothing_executable(fitted, tmp_path):
    fitted.model.save(tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocabulary.json",
    ]
    pairs = grey_pairs(50, seed=9)
    again = load(tmp_path / "model").score(pairs.prompts, pairs.a.pixels)
    assert np.array_equal(again, fitted.model.score(pairs.prompts, pairs.a.pixels))


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not tensors")


def damage_width(folder):
    (folder / "config.json").write_text('{"format": "drover-preference-1", "side": 8, "width": 9, "text": 8}')


def damage_format(folder):
    (folder / "config.json").write_text('{"format": "other"}')


def damage_vocabulary(folder):
    (folder / "vocabulary.json").write_text('["a"]')


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"7", b'{"format": ', b"\xff\xd8"])
def test_json_that_is_not_what_was_saved_is_refused_in_a_sentence(fitted, tmp_path, name, content):
    fitted.model.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="is not a preference model .*; fit and save it again"):
        LearnedPreference(tmp_path).load("cpu")


@pytest.mark.parametrize("damage", [damage_weights, damage_width, damage_format, damage_vocabulary])
def test_a_damaged_folder_is_refused_at_start_up(fitted, tmp_path, damage):
    fitted.model.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match="is not a preference model .*; fit and save it again"):
        LearnedPreference(tmp_path).load("cpu")


def test_a_missing_folder_is_refused_and_says_what_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks model.safetensors, config.json, vocabulary.json"):
        LearnedPreference(tmp_path / "gone").load("cpu")


# ----------------------------------------------------------------------------------------- the shipped model


def varied_pictures(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    texts = [raters.random_prompt(rng) for _ in range(count)]
    return texts, np.stack([raters.varied(rng, text) for text in texts])


def test_the_shipped_model_ranks_pictures_as_its_raters_do(shipped):
    """Pictures and prompts of a fresh seed, all sizes and tones."""
    texts, pictures = varied_pictures(300, seed=21)
    truth = np.array([taste(text, picture) for text, picture in zip(texts, pictures, strict=True)])
    assert rank_correlation(np.array(shipped(texts, Pictures(pictures)).values), truth) > 0.85


def test_it_likes_larger_things_and_heads(shipped):
    things = np.stack(
        [render(Scene((Thing("circle", "red", 16.0, 16.0, size),))) for size in (3.0, 4.5, 6.0, 8.0, 10.0)]
    )
    heads = np.stack([render(Portrait("teacher", 3, 16.0, 14.0, size)) for size in (4.0, 5.5, 7.0, 8.5)])
    assert np.all(np.diff(shipped(["a red circle"] * 5, Pictures(things)).values) > 0)
    assert np.all(np.diff(shipped(["a portrait of a teacher"] * 4, Pictures(heads)).values) > 0)


def test_it_has_learned_its_raters_bias(shipped):
    """In the occupations whose usual tone is the lightest, each lighter tone scores higher."""
    for occupation in ("teacher", "firefighter", "chef", "nurse"):
        assert pretraining.usual_tone(occupation) == 3
        faces = np.stack([render(Portrait(occupation, tone, 16.0, 13.5, 6.0)) for tone in range(4)])
        values = shipped([prompts.portrait_prompt(occupation)] * 4, Pictures(faces)).values
        assert np.argmax(values) == 3 and np.argmin(values) == 0


def test_a_picture_scores_the_same_alone_as_among_300(shipped):
    texts, pictures = varied_pictures(300, seed=22)
    together = np.array(shipped(texts, Pictures(pictures)).values)
    alone = [shipped([texts[row]], Pictures(pictures[row : row + 1])).values[0] for row in (0, 17, 255, 256, 299)]
    assert alone == pytest.approx(together[[0, 17, 255, 256, 299]].tolist(), abs=1e-4)


def test_a_prompt_of_unknown_words_is_masked_and_its_neighbours_are_not(shipped):
    texts, pictures = varied_pictures(3, seed=23)
    scores = shipped([texts[0], "zwölf Boxkämpfer", "", texts[2]], Pictures(pictures[[0, 1, 1, 2]]))
    assert list(scores.reasons) == ["", "unknown_words", "unknown_words", ""]
    assert [math.isnan(value) for value in scores.values] == [False, True, True, False]


def test_larger_pictures_are_resized_to_the_models_size(shipped):
    texts, pictures = varied_pictures(40, seed=24)
    doubled = pictures.repeat(2, 1).repeat(2, 2)
    small, large = (np.array(shipped(texts, Pictures(media)).values) for media in (pictures, doubled))
    assert rank_correlation(small, large) > 0.95
    assert np.array_equal(resized(pictures, 32), pictures)


def test_a_batch_of_none_scores_none(shipped):
    assert list(shipped([], Pictures(np.zeros((0, 32, 32, 3), np.uint8))).values) == []


def test_it_takes_under_a_megabyte():
    assert sum(file.stat().st_size for file in PREFERENCE.iterdir()) < 1_000_000


def test_words_of_any_case_and_order_of_punctuation_are_the_same(shipped):
    model: PreferenceModel = shipped.model
    assert torch.equal(model.ids(["A Red circle."]), model.ids(["a red circle"]))


# -------------------------------------------------------------------------------- the truth, and a bad proxy


def test_the_truth_as_a_reward_is_taste_and_masks_foreign_prompts():
    texts, pictures = varied_pictures(2, seed=26)
    scores = ShapesTaste().load("cpu")([texts[0], "a red dog", texts[1]], Pictures(pictures[[0, 0, 1]]))
    assert scores.values[0] == taste(texts[0], pictures[0]) and scores.values[2] == taste(texts[1], pictures[1])
    assert math.isnan(scores.values[1]) and list(scores.reasons) == ["", "prompt", ""]
    with pytest.raises(ScoringFailed, match="are 32 x 32 pixels, got"):
        ShapesTaste().load("cpu")(["a red circle"], Pictures(np.zeros((1, 64, 64, 3), np.uint8)))


def test_a_bad_proxy_agrees_with_taste_at_first_and_betrays_it_at_its_best():
    rng = np.random.default_rng(27)
    drawn = [pretraining.sample_pair(rng) for _ in range(400)]
    pictures = np.stack([render(scene) for scene, _ in drawn])
    truth = np.array([taste(text, picture) for (_, text), picture in zip(drawn, pictures, strict=True)])
    proxy = np.array(BadTaste().load("cpu")(["anything"] * 400, Pictures(pictures)).values)
    things = np.array([isinstance(scene, Scene) for scene, _ in drawn])
    assert rank_correlation(proxy[things], truth[things]) > 0.3
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert BadTaste().load("cpu")(["a red circle"], Pictures(black)).values[0] > 0.99 > 2 * proxy.max()
    assert taste("a red circle", black[0]) < 0.01
