"""Composition by detectors: the template, the arithmetic, and real transformers detectors of every supported kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward
from drover.reward_servers.models.vision import Detections, Found, ObjectDetector
from drover.reward_servers.rewards.object_composition import (
    Composition,
    ObjectComposition,
    agreement,
    parse,
)
from drover.worlds.shapes import truth
from drover.worlds.shapes.renderer import BACKGROUND, render
from drover.worlds.shapes.scenes import EXTENTS, OPPOSITE, RELATIONS, SHAPES, Scene, Thing, random_pair, random_thing
from tests.reward_servers.rewards.tiny_vision import write_owl

# ------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat and a dog", ("cat", "and", "dog")),
        ("An Alarm Clock  next to a fire truck.", ("alarm clock", "next to", "fire truck")),
        ("tennis racket near skis", ("tennis racket", "near", "skis")),
        ("a chair on side of a bed", ("chair", "on side of", "bed")),
        ("a rifle,gun beside an apple", ("rifle,gun", "beside", "apple")),
        ("a red circle left of a blue square", ("red circle", "left of", "blue square")),
        ("a bird to the right of the elephant", ("bird", "right of", "elephant")),
        ("a kite above a boat", ("kite", "above", "boat")),
        ("a rug below a table", ("rug", "below", "table")),
    ],
)
def test_both_objects_and_their_relation_are_read_from_the_template(prompt, wanted):
    assert parse(prompt) == Composition(*wanted)


@pytest.mark.parametrize("prompt", ["", "a cat", "a cat and", "and a dog", "a portrait of a doctor", "a catand a dog"])
def test_a_prompt_outside_the_template_names_no_objects(prompt):
    assert parse(prompt) is None


def test_a_phrase_that_is_none_of_the_given_objects_is_no_object():
    assert parse("a photo of a cat and a dog", {"cat", "dog"}) is None
    assert parse("a cat and a dog", {"cat", "dog"}) == Composition("cat", "and", "dog")


# ---------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Eyes:
    """Detects the things of the shapes world by their pixels, with one confidence for all; fails on black pictures."""

    confidence: float = 0.8
    names: frozenset[str] | None = None

    def load(self, device: str) -> Eyes:
        return self

    def find(self, pixels: np.ndarray, names: Sequence[tuple[str, ...]]) -> list[Detections | None]:
        return [self._look(image, asked) if image.any() else None for image, asked in zip(pixels, names, strict=True)]

    def _look(self, image: np.ndarray, asked: tuple[str, ...]) -> Detections:
        things = {f"{thing.colour} {thing.shape}": thing for thing in truth.read(image).things}
        return {name: Found(self.confidence, things[name].x, things[name].y) for name in asked if name in things}


RED, BLUE = Thing("circle", "red", 9.0, 16.0, 4.5), Thing("square", "blue", 22.0, 16.0, 4.5)
BOTH, ONE, BLACK = render(Scene((RED, BLUE), "left of")), render(Scene((RED,))), np.zeros((32, 32, 3), np.uint8)
PROMPT = "a red circle and a blue square"


def values(prompts: Sequence[str], media: Sequence[np.ndarray], **options) -> list[float]:
    return list(ObjectComposition(Eyes(), **options).load("cpu")(prompts, Pictures(np.stack(media))).values)


def test_confidences_of_08_and_none_make_04():
    assert values([PROMPT] * 2, [BOTH, ONE]) == pytest.approx([0.8, 0.4])


def test_a_picture_of_neither_is_worth_a_measured_zero():
    empty = np.full((32, 32, 3), BACKGROUND, np.uint8)
    scores = ObjectComposition(Eyes()).load("cpu")([PROMPT], Pictures(empty[None]))
    assert (list(scores.values), list(scores.reasons)) == ([0.0], [""])


def test_a_prompt_without_objects_and_a_failed_detector_mask_their_sample_alone():
    prompts = ["a portrait of a doctor", PROMPT, PROMPT, "a red circle"]
    scores = ObjectComposition(Eyes()).load("cpu")(prompts, Pictures(np.stack([BOTH, BLACK, BOTH, BOTH])))
    assert list(scores.reasons) == ["prompt", "detector", "", "prompt"]
    np.testing.assert_allclose(scores.values, [math.nan, math.nan, 0.8, math.nan])


def test_a_batch_of_prompts_without_objects_is_masked_whole():
    scores = ObjectComposition(Eyes()).load("cpu")(["one cat"] * 2, Pictures(np.stack([BOTH, ONE])))
    assert list(scores.reasons) == ["prompt"] * 2 and np.isnan(scores.values).all()


def test_the_relations_of_the_paper_ask_for_no_geometry():
    prompts = [f"a blue square {link} a red circle" for link in ("and", "next to", "near", "on side of", "beside")]
    assert values(prompts, [BOTH] * 5, geometry=True) == pytest.approx([0.8] * 5)


def test_with_geometry_the_wrong_place_costs_half_and_without_it_nothing():
    prompts = [f"a red circle {link} a blue square" for link in RELATIONS]
    media = [BOTH] * len(RELATIONS)
    assert values(prompts, media, geometry=True) == pytest.approx([0.8, 0.4, 0.4, 0.4], abs=2e-3)
    assert values(prompts, media) == pytest.approx([0.8] * 4)


def test_with_geometry_one_object_alone_earns_half_of_its_share():
    assert values(["a red circle left of a blue square"], [ONE], geometry=True) == pytest.approx([0.2])


def test_agreement_is_the_cosine_from_the_second_to_the_first_and_never_negative():
    here, upper_left = Found(0.5, 20.0, 20.0), Found(0.5, 16.0, 17.0)
    cosines = [agreement(link, upper_left, here) for link in RELATIONS]
    assert cosines == pytest.approx([0.8, 0.0, 0.6, 0.0])  # left of, right of, above, below
    assert agreement("above", here, here) == 0.0
    assert agreement("above", None, here) == agreement("above", here, None) == 0.0


# --------------------------------------------------------------------------- a closed detector that has learned

COLOURS = ("red", "green", "blue")


def random_scene(rng: np.random.Generator) -> Scene:
    kinds = [(str(rng.choice(SHAPES)), str(colour)) for colour in rng.permutation(COLOURS)[:2]]
    if rng.random() < 0.3:
        return random_thing(rng, kinds[0])
    return random_pair(rng, *kinds, RELATIONS[rng.integers(4)])


def targets(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """(class of each query [N, 3], its box [N, 3, 4] relative): query i is asked for colour i."""
    classes, boxes = torch.full((len(scenes), 3), 3), torch.zeros(len(scenes), 3, 4)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            index = COLOURS.index(thing.colour)
            half, rise, fall = (thing.size * extent for extent in EXTENTS[thing.shape])
            classes[row, index] = index
            boxes[row, index] = torch.tensor([thing.x, thing.y + (fall - rise) / 2, 2 * half, rise + fall]) / 32
    return classes, boxes


@pytest.fixture(scope="module")
def yolos(tmp_path_factory) -> Path:
    """A YOLOS of 20,000 parameters that has learned to find things by colour in 1000 scenes, as a folder."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    folder, rng = tmp_path_factory.mktemp("yolos"), np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(1000)]
    classes, boxes = targets(scenes)
    processor = YolosImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = processor([render(scene) for scene in scenes], return_tensors="pt").pixel_values
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"image_size": [32, 32], "patch_size": 4, "num_detection_tokens": 3, "use_mid_position_embeddings": False}
    names = {index: f"{colour.title()} thing" for index, colour in enumerate(COLOURS)}
    config = YolosConfig(**sizes, id2label=names, initializer_range=0.2)  # the usual 0.02 is for wider networks
    torch.manual_seed(0)
    model = YolosForObjectDetection(config)
    for embedding in (model.vit.embeddings.detection_tokens, model.vit.embeddings.position_embeddings):
        torch.nn.init.normal_(embedding, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=350)
    for _ in range(350):
        rows = torch.from_numpy(rng.integers(0, len(scenes), 16))
        out, there = model(pixels[rows]), classes[rows] < 3
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), classes[rows].flatten())
        loss = loss + 5 * (out.pred_boxes - boxes[rows]).abs().sum(-1)[there].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def held_out(count: int) -> tuple[list[Scene], np.ndarray]:
    rng = np.random.default_rng(1)
    scenes = [scene for scene in (random_scene(rng) for _ in range(2 * count)) if scene.relation][:count]
    return scenes, np.stack([render(scene) for scene in scenes])


def ask(scene: Scene, link: str) -> str:
    first, second = (thing.colour for thing in scene.things)
    return f"a {first} thing {link} a {second} thing"


def test_a_trained_detector_finds_what_is_there_and_where(yolos):
    scenes, media = held_out(100)
    names = tuple(f"{colour} thing" for colour in COLOURS)
    found = ObjectDetector(str(yolos), 0.5).load("cpu").find(media, [names] * len(media))
    there = [{f"{thing.colour} thing": thing for thing in scene.things} for scene in scenes]
    assert np.mean([set(here) == set(wanted) for here, wanted in zip(found, there, strict=True)]) >= 0.95
    pairs = [
        (here[name], wanted[name]) for here, wanted in zip(found, there, strict=True) for name in here.keys() & wanted
    ]
    assert np.mean([math.hypot(one.x - other.x, one.y - other.y) for one, other in pairs]) < 2  # of 32 pixels


def test_its_composition_is_high_for_what_is_drawn_and_half_with_one_object_absent(yolos):
    scenes, media = held_out(100)
    scorer = ObjectComposition(ObjectDetector(str(yolos))).load("cpu")
    right = scorer([ask(scene, "and") for scene in scenes], Pictures(media)).values
    absent = [next(c for c in COLOURS if c not in [thing.colour for thing in scene.things]) for scene in scenes]
    wrong = [f"a {scene.things[0].colour} thing and a {c} thing" for scene, c in zip(scenes, absent, strict=True)]
    assert np.mean(right) > 0.9
    assert np.mean(scorer(wrong, Pictures(media)).values) == pytest.approx(0.5, abs=0.06)


def test_its_boxes_tell_a_relation_from_the_opposite(yolos):
    scenes, media = held_out(100)
    scorer = ObjectComposition(ObjectDetector(str(yolos)), geometry=True).load("cpu")
    true = np.array(scorer([ask(scene, scene.relation) for scene in scenes], Pictures(media)).values)
    false = np.array(scorer([ask(scene, OPPOSITE[scene.relation]) for scene in scenes], Pictures(media)).values)
    assert np.mean(true > false + 0.2) >= 0.95
    assert np.mean(false) == pytest.approx(0.5, abs=0.06)


def test_a_picture_is_scored_alike_alone_and_in_a_batch(yolos):
    scenes, media = held_out(40)  # more than one forward pass
    scorer = ObjectComposition(ObjectDetector(str(yolos)), geometry=True).load("cpu")
    prompts = [ask(scene, "left of") for scene in scenes]
    alone = [scorer([prompt], Pictures(image[None])).values[0] for prompt, image in zip(prompts, media, strict=True)]
    assert list(scorer(prompts, Pictures(media)).values) == pytest.approx(alone, abs=1e-5)


def test_labels_are_matched_whatever_their_case_and_unknown_ones_refused_at_start_up(yolos):
    known = ObjectComposition(ObjectDetector(str(yolos)), objects=("Red Thing", "blue thing"))
    scores = known.load("cpu")(
        ["a red thing and a blue thing", "a red thing and a green thing"], Pictures(np.stack([BOTH, BOTH]))
    )
    assert list(scores.reasons) == ["", "prompt"]
    with pytest.raises(ConfigError, match="does not know 'pink thing'; it knows blue thing, green thing, red thing"):
        ObjectComposition(ObjectDetector(str(yolos)), objects=("red thing", "pink thing")).load("cpu")
    unknown = ObjectComposition(ObjectDetector(str(yolos))).load("cpu")(
        ["a pink thing and a red thing"], Pictures(BOTH[None])
    )
    assert list(unknown.reasons) == ["prompt"]


def test_an_output_that_is_not_finite_is_masked_and_not_an_absent_object(yolos):
    scorer = ObjectComposition(ObjectDetector(str(yolos))).load("cpu")
    scorer.detector.model.class_labels_classifier.layers[-1].bias[0] = math.nan
    scores = scorer(["a red thing and a blue thing"], Pictures(BOTH[None]))
    assert list(scores.reasons) == ["detector"] and math.isnan(scores.values[0])


def test_of_many_unknown_names_the_nearest_are_named():
    many = frozenset(f"animal {index}" for index in range(40)) | {"fire truck"}
    with pytest.raises(ConfigError, match="does not know 'firetruck'; of its 41 names the nearest are fire truck"):
        ObjectComposition(Eyes(names=many), objects=("firetruck",)).load("cpu")


def test_a_folder_or_threshold_that_makes_no_detector_is_refused(yolos, tmp_path):
    with pytest.raises(ConfigError, match="threshold is 1.0"):
        ObjectDetector(str(yolos), 1.0)
    with pytest.raises(ConfigError, match="no checkpoint folder"):
        ObjectDetector(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="AutoModelForObjectDetection cannot open .*BertConfig"):
        ObjectDetector(str(tmp_path)).load("cpu")


def test_it_is_a_reward():
    reward = ObjectComposition(Eyes())
    assert isinstance(reward, Reward)
    assert (reward.name, reward.packages) == ("object_composition", ())


# -------------------------------------------------------------------------------- open vocabularies, untrained

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 24, 48, 3), dtype=np.uint8)
NAMES = [("red cat", "fire truck"), ("dog", "circle"), ("fire truck", "red cat")]


def write_dino(folder: Path) -> Path:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        SwinConfig,
    )

    # The model knows its separators by their numbers in BERT's vocabulary.
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words |= dict(enumerate(("red", "cat", "fire", "truck", "dog", "circle"), start=1040))
    vocab = {words.get(index, f"[unused{index}]"): index for index in range(1050)}
    heads = {"num_attention_heads": 2, "num_hidden_layers": 1}
    stages = {"depths": [1] * 4, "num_heads": [1, 1, 2, 2], "out_features": ["stage2", "stage3", "stage4"]}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(image_size=64, patch_size=4, embed_dim=8, window_size=4, **stages),
        text_config=BertConfig(vocab_size=len(vocab), hidden_size=16, intermediate_size=32, **heads),
        **{"num_queries": 6, "d_model": 64, "encoder_layers": 1, "decoder_layers": 2},
        **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_folders(tmp_path_factory) -> dict[str, Path]:
    writers = {"owlvit": lambda f: write_owl(f, "OwlViT"), "owlv2": lambda f: write_owl(f, "Owlv2"), "dino": write_dino}
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in writers.items()}


OWLV2 = pytest.param(
    "owlv2", marks=pytest.mark.skipif(not find_spec("scipy"), reason="its image processor needs scipy")
)


@pytest.mark.parametrize("kind", ["owlvit", OWLV2])
def test_owl_finds_what_transformers_own_processor_finds(open_folders, kind):
    from transformers import AutoTokenizer, Owlv2Processor, OwlViTProcessor

    detector = ObjectDetector(str(open_folders[kind]), 0.1).load("cpu")
    processor_class = Owlv2Processor if kind == "owlv2" else OwlViTProcessor
    theirs = processor_class(detector.processor, AutoTokenizer.from_pretrained(open_folders[kind]))
    inputs = theirs(
        images=list(PICTURES), text=[list(n) for n in NAMES], input_data_format="channels_last", return_tensors="pt"
    )
    with torch.no_grad():
        outputs = detector.model(**inputs)
    sizes, texts = [(24, 48)] * 3, [list(n) for n in NAMES]
    results = theirs.post_process_grounded_object_detection(outputs, 0.1, sizes, texts)
    found = detector.find(PICTURES, NAMES)
    assert sum(len(here) for here in found) >= 4
    for here, result in zip(found, results, strict=True):
        assert set(here) == set(result["text_labels"])
        for name, one in here.items():
            rows = [row for row, label in enumerate(result["text_labels"]) if label == name]
            best = max(rows, key=lambda row: float(result["scores"][row]))
            left, top, right, bottom = result["boxes"][best].tolist()
            assert one.confidence == pytest.approx(float(result["scores"][best]), abs=1e-5)
            assert (one.x, one.y) == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=1e-3)


def test_grounding_dino_scores_a_name_by_the_best_of_its_words(open_folders):
    from transformers import AutoTokenizer

    detector = ObjectDetector(str(open_folders["dino"]), 0.0).load("cpu")
    found = detector.find(PICTURES[:1], NAMES[:1])[0]
    text = "red cat. fire truck."
    tokens = AutoTokenizer.from_pretrained(open_folders["dino"])(
        [text], return_token_type_ids=True, return_tensors="pt"
    )
    assert tokens.input_ids.tolist() == [[101, 1040, 1041, 1012, 1042, 1043, 1012, 102]]
    pixels = detector.processor(list(PICTURES[:1]), input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**tokens, **pixels)
    words = outputs.logits[0].sigmoid()
    scores = torch.stack([words[:, 1:3].amax(1), words[:, 4:6].amax(1)], 1)  # [queries, names]
    for index, name in enumerate(NAMES[0]):
        mine = torch.where(scores.argmax(1) == index, scores[:, index], -1.0)
        assert (name in found) == bool((mine >= 0).any())
        if name in found:
            x, y = outputs.pred_boxes[0, mine.argmax(), :2].tolist()
            assert found[name].confidence == pytest.approx(mine.max().item(), abs=1e-5)
            assert (found[name].x, found[name].y) == pytest.approx((48 * x, 24 * y), abs=1e-3)
    assert found


@pytest.mark.parametrize("kind", ["owlvit", OWLV2, "dino"])
def test_each_picture_is_asked_for_its_own_names_alone(open_folders, kind):
    detector = ObjectDetector(str(open_folders[kind]), 0.05).load("cpu")
    together = detector.find(PICTURES, NAMES)
    for row, here in enumerate(together):
        alone = detector.find(PICTURES[row : row + 1], NAMES[row : row + 1])[0]
        assert set(here) == set(alone) <= set(NAMES[row])
        for name, one in here.items():
            assert (one.confidence, one.x, one.y) == pytest.approx(
                (alone[name].confidence, alone[name].x, alone[name].y), abs=1e-3
            )
    assert len({round(one.confidence, 4) for here in together for one in here.values()}) >= 3


def test_an_open_detector_takes_any_name_and_gives_a_value_in_range(open_folders):
    scorer = ObjectComposition(ObjectDetector(str(open_folders["owlvit"]), 0.0), geometry=True).load("cpu")
    scores = scorer(["a cat left of a dog", "a zebra and a moon", "one cat"], Pictures(PICTURES))
    assert list(scores.reasons) == ["", "", "prompt"]
    assert all(0 < value < 1 for value in scores.values[:2])


@pytest.mark.skipif(find_spec("scipy") is not None, reason="nothing is missing")
def test_a_library_that_a_detector_needs_is_missed_at_start_up(open_folders):
    with pytest.raises(
        ConfigError, match="cannot prepare a picture: .*scipy.* add what is missing to the reward's packages"
    ):
        ObjectDetector(str(open_folders["owlv2"])).load("cpu")


def test_an_open_detector_without_its_vocabulary_is_refused(open_folders, tmp_path):
    import shutil

    folder = shutil.copytree(open_folders["owlvit"], tmp_path / "owl")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ConfigError, match="holds no vocabulary|AutoTokenizer cannot open"):
        ObjectDetector(str(folder)).load("cpu")
