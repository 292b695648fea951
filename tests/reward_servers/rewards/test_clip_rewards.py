"""ClipScore, PickScore and Aesthetic on tiny CLIP models of random weights, written by transformers in the real layout."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from drover.common.errors import ConfigError
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward
from drover.reward_servers.models.clip import Clip
from drover.reward_servers.rewards.aesthetic import Aesthetic, read_head
from drover.reward_servers.rewards.clip_score import ClipScore
from drover.reward_servers.rewards.pick_score import PickScore
from tests.reward_servers.rewards.tiny_clip import (
    CONTEXT,
    DIM,
    LOGIT_SCALE,
    MERGES,
    SIZE,
    official_head,
    vocabulary,
    write_clip,
)

PROMPTS = ["a cat", "two dogs on the moon", "a cat", "q", "the long way home"]
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 90, 70, 3), dtype=np.uint8)
PICTURES[1] = PICTURES[1] // 4
PICTURES[2, :, :, 0] = 255
PICTURES[3] = 255
PICTURES[4, :45] = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return Clip.load(str(folder), "cpu")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(official_head().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scorers(folder, head):
    return [reward.load("cpu") for reward in rewards(folder, head)]


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(folder, tmp_path / "damaged")


def rewards(folder, head, **options) -> list[Reward]:
    folder, head = str(folder), str(head)
    return [ClipScore(folder, **options), PickScore(folder, **options), Aesthetic(folder, head, **options)]


def values(reward, prompts=PROMPTS, pictures=PICTURES) -> list[float]:
    scores = reward.load("cpu")(prompts, Pictures(pictures))
    assert list(scores.reasons) == [""] * len(prompts)
    return list(scores.values)


@torch.no_grad()
def by_hand(folder, prompt, picture):
    """(image features, text features, model), one picture at a time from PIL, as the model cards of CLIP show it."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(Image.fromarray(picture), return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)([prompt], padding=True, truncation=True, return_tensors="pt")
    image, text = model.get_image_features(**pixels).pooler_output, model.get_text_features(**tokens).pooler_output
    return image[0], text[0], model


# ----------------------------------------------------------------------------------------------------- values


def test_clip_score_is_the_cosine_of_transformers_own_features(folder):
    pairs = [by_hand(folder, prompt, picture)[:2] for prompt, picture in zip(PROMPTS, PICTURES, strict=True)]
    wanted = [torch.cosine_similarity(image, text, dim=0).item() for image, text in pairs]
    assert values(ClipScore(str(folder))) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.02 and min(wanted) < 0 < max(wanted)


def test_the_scales_are_the_cosine_its_hundredfold_and_that_of_hessel(folder):
    cosines = values(ClipScore(str(folder)))
    assert values(ClipScore(str(folder), scale="percent")) == pytest.approx([100 * c for c in cosines], abs=1e-5)
    assert values(ClipScore(str(folder), scale="hessel")) == pytest.approx([2.5 * max(0, c) for c in cosines])


def test_a_prefix_is_read_before_each_prompt(folder):
    prefixed = values(ClipScore(str(folder), prefix="A photo depicts "))
    assert prefixed == pytest.approx(values(ClipScore(str(folder)), [f"A photo depicts {p}" for p in PROMPTS]))
    assert np.abs(np.subtract(prefixed, values(ClipScore(str(folder))))).max() > 1e-3


def test_pick_score_is_the_logit_of_the_models_own_forward(folder):
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    images = [Image.fromarray(picture) for picture in PICTURES]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(folder)(**pixels, **tokens).logits_per_image
    assert values(PickScore(str(folder))) == pytest.approx(logits.diagonal().tolist(), abs=1e-4)


def test_aesthetic_is_the_official_network_on_the_unit_embedding(folder, head):
    network = official_head().eval()
    images = torch.stack([by_hand(folder, "a", picture)[0] for picture in PICTURES])
    with torch.no_grad():
        wanted = network["layers"](images / images.norm(dim=-1, keepdim=True)).squeeze(-1).tolist()
    assert values(Aesthetic(str(folder), str(head))) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.05


def test_aesthetic_ignores_the_prompt_and_the_length_of_the_embedding(folder, head, copy):
    weights = load_file(copy / "model.safetensors")
    save_file(
        {**weights, "visual_projection.weight": 7 * weights["visual_projection.weight"]}, copy / "model.safetensors"
    )
    usual = values(Aesthetic(str(folder), str(head)))
    assert values(Aesthetic(str(folder), str(head)), PROMPTS[::-1]) == usual
    assert values(Aesthetic(str(copy), str(head))) == pytest.approx(usual, abs=1e-5)


def test_a_head_in_safetensors_is_the_same_head(head, tmp_path):
    save_file(torch.load(head, weights_only=True), tmp_path / "head.safetensors")
    for part, wanted in zip(read_head(str(tmp_path / "head.safetensors")), read_head(str(head)), strict=True):
        assert torch.equal(part[0], wanted[0]) and torch.equal(part[1], wanted[1])


# ----------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("shape", [(64, 64), (512, 512), (33, 200), (200, 33), (3, 3), (8, 8), (300, 301)])
def test_8_bit_media_of_any_size_embed_as_the_processors_own_path_from_pil(folder, clip, shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = by_hand(folder, "a", picture)[0]
    assert (clip.embed_images(picture[None])[0] - image / image.norm()).abs().max().item() < 1e-4


def test_the_input_range_trap_would_show(folder, clip):
    """Pixels of 0..1 taken for 0..255 are nearly black: the embedding of black, and far from the right one."""
    from transformers import CLIPImageProcessorPil

    bright = PICTURES[[0, 2, 3, 4]]
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    trapped = processor(list(bright / 255), input_data_format="channels_last", return_tensors="pt").pixel_values
    with torch.no_grad():
        features = clip.model.get_image_features(trapped).pooler_output
    unit = features / features.norm(dim=-1, keepdim=True)
    assert (unit * clip.embed_images(np.zeros_like(bright))).sum(-1).min().item() > 0.999
    assert (unit * clip.embed_images(bright)).sum(-1).max().item() < 0.5


# ---------------------------------------------------------------------------------------------------- batches


def test_a_batch_scores_as_its_samples_one_by_one_and_in_its_order(folder, head):
    for one, three, all_at_once in zip(
        rewards(folder, head, batch_size=1), rewards(folder, head, batch_size=3), rewards(folder, head), strict=True
    ):
        scorer = one.load("cpu")
        alone = [scorer([p], Pictures(picture[None])).values[0] for p, picture in zip(PROMPTS, PICTURES, strict=True)]
        for reward in (one, three, all_at_once):
            assert values(reward) == pytest.approx(alone, abs=1e-5)
            assert values(reward, PROMPTS[::-1], PICTURES[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
        assert min(abs(a - b) for i, a in enumerate(alone) for b in alone[:i]) > 1e-4  # so the order is seen


def test_the_model_sees_at_most_a_batch_at_a_time_and_each_prompt_once(folder):
    scorer = ClipScore(str(folder), batch_size=2).load("cpu")
    seen = {"vision_model": [], "text_model": []}
    for tower, sizes in seen.items():
        module = getattr(scorer.clip.model, tower)
        module.register_forward_hook(lambda _, __, output, sizes=sizes: sizes.append(len(output.pooler_output)))
    scorer(PROMPTS, Pictures(PICTURES))
    assert seen == {"vision_model": [2, 2, 1], "text_model": [2, 2]}  # five pictures, four different prompts


def test_prompts_are_cut_at_77_tokens(clip):
    """Start, 75 letters, end: the 76th letter is not read, the 75th is."""
    ends = ["b", "a" * 400, "b b b"]
    long = clip.embed_prompts(["a " * 75 + end for end in ends])
    assert (long - long[0]).abs().max().item() < 1e-6
    assert (clip.embed_prompts(["a " * 74 + "b"]) - long[0]).abs().max().item() > 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_scores_nearly_as_full_and_keeps_the_scale_of_its_logits(folder, head, precision):
    full, half = (values(ClipScore(str(folder), precision=p)) for p in ("float32", precision))
    assert half == pytest.approx(full, abs=2e-2) and half != full
    assert Clip.load(str(folder), "cpu", precision=precision).logit_scale == pytest.approx(
        np.exp(LOGIT_SCALE), rel=1e-6
    )
    assert len(values(Aesthetic(str(folder), str(head), precision=precision))) == 5


# ------------------------------------------------------------------------------------------------------ masks


def test_only_the_samples_without_a_finite_embedding_are_masked(copy):
    weights = load_file(copy / "model.safetensors")
    weights["text_model.embeddings.token_embedding.weight"][vocabulary()["q</w>"]] = torch.inf
    save_file(weights, copy / "model.safetensors")
    for reward in (ClipScore(str(copy), scale="hessel"), PickScore(str(copy))):
        scores = reward.load("cpu")(PROMPTS, Pictures(PICTURES))
        assert list(scores.reasons) == ["", "", "", "nan", ""]
        assert np.isfinite(scores.values).tolist() == [True, True, True, False, True]


def test_an_embedding_of_zeros_is_masked_and_not_a_similarity_of_zero(copy, head):
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "visual_projection.weight": torch.zeros(DIM, 32)}, copy / "model.safetensors")
    for reward in rewards(copy, head):
        scores = reward.load("cpu")(PROMPTS, Pictures(PICTURES))
        assert list(scores.reasons) == ["nan"] * 5 and np.isnan(scores.values).all()


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_folder_in_the_layout_of_the_published_files_is_the_same_model(copy, clip):
    """vocab.json and merges.txt, sizes as numbers, and the end token that old configs give as 2."""
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps(vocabulary()))
    (copy / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, MERGES)) + "\n")
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "model_max_length": CONTEXT, "tokenizer_class": "CLIPTokenizer"})
    )
    processor = {
        "crop_size": SIZE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": SIZE,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (copy / "preprocessor_config.json").write_text(json.dumps(processor))
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit(copy / "config.json", text_config={**text, "eos_token_id": 2, "bos_token_id": 0})
    published = Clip.load(str(copy), "cpu")
    assert (published.embed_prompts(PROMPTS) - clip.embed_prompts(PROMPTS)).abs().max().item() < 1e-6
    assert (published.embed_images(PICTURES) - clip.embed_images(PICTURES)).abs().max().item() < 1e-6


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lose(name):
    return lambda folder: (folder / name).unlink()


def lose_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "text_projection" not in k}, folder / "model.safetensors")


def only_pickled_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def foreign_tokenizer(folder):
    from transformers import CLIPTokenizer

    CLIPTokenizer(vocab={**vocabulary(), "zebra": 56}, merges=MERGES, eos_token="zebra").save_pretrained(folder)


def other_image_size(folder):
    edit(folder / "preprocessor_config.json", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shutil.rmtree, "there is no checkpoint folder"),
        (lose("config.json"), "holds no config.json; give a folder"),
        (lose("tokenizer.json"), "holds no tokenizer.json or vocab.json"),
        (lose("preprocessor_config.json"), "holds no preprocessor_config.json"),
        (lose("model.safetensors"), "cannot load .*safetensors.*; restore what is missing"),
        (only_pickled_weights, "cannot load .*safetensors.*; restore what is missing"),
        (cut_weights, "cannot load .*; restore what is missing"),
        (lose_weights, "lacks 1 weights such as text_projection.weight"),
        (lambda folder: edit(folder / "config.json", model_type="bert"), "type 'bert', wanted 'clip'"),
        (foreign_tokenizer, "ends prompts with token 56 of 57.*reads them at 55 and knows 56"),
        (other_image_size, r"makes \[3, 32, 32\], its model wants \[3, 64, 64\]"),
        (lambda folder: edit(folder / "preprocessor_config.json", do_rescale=False), "puts white 976 above black"),
        (lambda folder: edit(folder / "preprocessor_config.json", rescale_factor=255**-2), "white 0.015 above black"),
    ],
)
def test_an_unusable_folder_is_named_when_the_reward_loads(copy, damage, named):
    damage(copy)
    with pytest.raises(ConfigError, match=named):
        ClipScore(str(copy)).load("cpu")


def test_a_hub_id_that_cannot_be_had_is_named_with_what_to_do(head):
    with pytest.raises(
        ConfigError, match="cannot load 'nobody/nothing'.*check the id and the network, or give a folder"
    ):
        PickScore("nobody/nothing").load("cpu")
    with pytest.raises(ConfigError, match="'nobody/nothing/head.pth' is no local file and the hub gives none"):
        Aesthetic("nobody/nothing", "nobody/nothing/head.pth").load("cpu")


class Foreign: ...  # a class that unpickling would create


def without_last_layer(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("layers.7")}


def with_activations(state):
    """The layout of the ReLU variant of the predictor: its activations take numbers too."""
    moved = {0: 0, 2: 3, 4: 6, 6: 9, 7: 11}
    return {f"layers.{moved[int(name.split('.')[1])]}.{name.split('.')[2]}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_last_layer, "wanted layers 0, 2, 4, 6 and 7"),
        (with_activations, "wanted layers 0, 2, 4, 6 and 7 without activations"),
        (lambda state: [1, 2], "holds list"),
        (lambda state: {**state, "layers.7.weight": torch.zeros(1, 17)}, "do not follow each other"),
        (lambda state: {**state, "layers.7.bias": torch.zeros(2)}, "do not follow each other"),
        (lambda state: {**state, "layers.0.weight": torch.zeros(1024, 512)}, f"reads 512 features, .* has {DIM}"),
        (lambda state: Foreign(), "cannot read the head"),
    ],
)
def test_a_head_of_another_layout_is_named_when_the_reward_loads(folder, head, tmp_path, change, named):
    torch.save(change(torch.load(head, weights_only=True)), tmp_path / "head.pth")
    with pytest.raises(ConfigError, match=named):
        Aesthetic(str(folder), str(tmp_path / "head.pth")).load("cpu")


def test_a_missing_or_cut_head_is_named_when_the_reward_loads(folder, head, tmp_path):
    with pytest.raises(ConfigError, match="there is no head file"):
        Aesthetic(str(folder), str(tmp_path / "absent.pth")).load("cpu")
    (tmp_path / "cut.pth").write_bytes(head.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot read the head"):
        Aesthetic(str(folder), str(tmp_path / "cut.pth")).load("cpu")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ClipScore(""), "checkpoint is empty"),
        (lambda: PickScore(batch_size=0), "batch_size is 0, wanted at least 1"),
        (lambda: Aesthetic(precision="int8"), "precision is 'int8'; use one of float32, bfloat16, float16"),
        (lambda: ClipScore(scale="raw"), "scale is 'raw'; use one of cosine, percent, hessel"),
        (lambda: Aesthetic(head=""), "head is empty"),
    ],
)
def test_an_impossible_option_is_refused_when_the_reward_is_described(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_they_are_rewards_with_names_of_their_own():
    described = [ClipScore(), PickScore(), Aesthetic(), ClipScore(name="clip_b32")]
    assert all(isinstance(reward, Reward) and reward.packages == () for reward in described)
    assert [reward.name for reward in described] == ["clip_score", "pick_score", "aesthetic", "clip_b32"]
