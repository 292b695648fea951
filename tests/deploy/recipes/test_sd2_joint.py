"""The recipe for published checkpoints, end to end on folders of a few kilobytes in the real classes' own formats."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drover.common.errors import ConfigError
from drover.common.policies.lora import base_of
from drover.deploy import catalogue
from drover.deploy.commands.sampling import SampleOptions, draw
from drover.deploy.config import RunConfig
from drover.deploy.recipes.sd2_joint import sd2_joint
from drover.learner.files.folder import ImageFolder
from drover.learner.files.webdataset import WebDataset
from drover.reward_servers.rewards.image_reward import ImageReward
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.pick_score import PickScore
from tests.common.policies.tiny_pipeline import write_tiny_pipeline, write_tiny_xl_pipeline
from tests.deploy.in_place import Done, train
from tests.reward_servers.rewards.tiny_clip import write_clip
from tests.reward_servers.rewards.tiny_vision import TONES, write_classifier, write_owl

PIXELS = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Name -> path of each file and folder that the recipe opens."""
    root = tmp_path_factory.mktemp("published")
    prompts, portraits, pictures = root / "asked.txt", root / "portraits.txt", root / "pictures"
    prompts.write_text("".join(f"a picture of {number} boats\n" for number in range(40)))
    portraits.write_text(
        "".join(f"a portrait of a {trade}\n" for trade in ("cook", "judge", "nurse", "pilot", "tailor"))
    )
    pictures.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("noise")
    return {
        "prompts": prompts,
        "portraits": portraits,
        "pretraining": pictures,
        "tones": write_classifier(root / "tones"),
        "detector": write_owl(root / "owl", "OwlViT"),
        "clip": write_clip(root / "clip"),
        "sd": write_tiny_pipeline(root / "sd"),
        "sd v": write_tiny_pipeline(root / "sd-v", prediction_type="v_prediction"),
        "xl": write_tiny_xl_pipeline(root / "xl"),
    }


SMALL = {
    "rounds": 1, "groups": 2, "samples": 4, "steps": 3, "trained-steps": 2, "image-size": PIXELS, "heldout-share": 0.1,
    "pretraining-batch": 2, "compute": "float32", "batch-size": 4, "actor-samples": 100, "reward-gpus": 0, "lr": 1e-3,
    "preference": "clip_score", "max-lag": 0,
}  # fmt: skip


def config(folders: dict[str, Path], checkpoint: str, **options: object) -> RunConfig:
    """As the command line makes it, with a few held-out pictures instead of hundreds."""
    given = {name: folders[name] for name in ("prompts", "portraits", "pretraining", "tones", "detector")}
    words = {**given, "checkpoint": folders[checkpoint], "preference-checkpoint": folders["clip"], **SMALL, **options}
    arguments = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    made, _ = catalogue.parse(sd2_joint, [*arguments, "--tone-classes", *TONES])
    few = [
        replace(held, prompts=held.prompts[:4], samples_per_prompt=min(held.samples_per_prompt, 8))
        for held in made.heldout
    ]
    return replace(made, heldout=tuple(few))


def check(done: Done) -> None:
    """Three tasks have had their turn and the pretraining step its own; every held-out metric is a number."""
    updates = [report.scalars for report in done.folder.reports() if report.kind == "update"]
    trained = ["clip_score", "object_composition", "parity_credit"]
    assert [[name for name in trained if f"reward/{name}/mean" in each] for each in updates] == [[n] for n in trained]
    assert all(each[f"reward/{name}/valid_share"] == 1 for name, each in zip(trained, updates, strict=True))
    # A classifier that has learned nothing may see one tone everywhere: then there is nothing to learn from.
    learned = [each for each in updates if "loss" in each]
    assert learned[0] is updates[0] and all(math.isfinite(each["loss"]) for each in learned)
    assert [each["ratio_first"] for each in learned] == pytest.approx([1.0] * len(learned), abs=1e-4)
    assert ["files/loss" in each for each in updates] == [False, False, True]
    for moment in ("reward_before", "reward_after"):
        found = {key.rpartition("/")[2]: value for key, value in done.summary[moment].items()}
        assert set(found) == {"clip_score", "object_composition", "parity"}
        assert -1 <= found["clip_score"] <= 1 and 0 <= found["object_composition"] <= 1
        assert -math.sqrt(0.75) <= found["parity"] <= 0
    assert done.summary["ledger"]["trained"] + done.summary["ledger"]["empty"] == 6
    assert done.summary["reward_after"] != done.summary["reward_before"]


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "lora_rank"), [("sd v", 0), ("sd", 2), ("xl", 2)])
def test_three_tasks_go_round_on_every_kind_of_checkpoint_and_leave_what_plain_diffusers_reads(
    folders, tmp_path, checkpoint, lora_rank
):
    done = train(config(folders, checkpoint, **{"lora-rank": lora_rank}), tmp_path)
    check(done)
    if lora_rank:
        assert base_of(done.folder.path / "lora") == str(folders[checkpoint])
        out = draw(SampleOptions(model=str(done.folder.path), prompts=("a boat",), out=tmp_path / "drawn.png", steps=2))
        assert out.stat().st_size > 0
    else:
        index = json.loads((done.folder.path / "pipeline" / "model_index.json").read_text())
        assert index["_class_name"] == "StableDiffusionPipeline"


def test_the_preference_is_one_of_several_rewards_with_the_published_weights_or_others(folders):
    asked = {name: folders[name] for name in ("prompts", "portraits")}
    fixed = {**asked, "tones": str(folders["tones"]), "tone_classes": TONES, "heldout_share": 0.1}
    assert sd2_joint(**fixed).rewards[0] == ImageReward()
    assert sd2_joint(**fixed, preference="pick_score").rewards[0] == PickScore()
    assert sd2_joint(**fixed, preference="image_reward", preference_checkpoint="x").rewards[0] == ImageReward("x")
    mine = sd2_joint(**fixed, preference="learned_preference", preference_checkpoint="mine")
    assert mine.rewards[0] == LearnedPreference("mine") and mine.tasks[0].rewards == ("preference",)
    with pytest.raises(ConfigError, match="no published weights; give --preference-checkpoint FOLDER"):
        sd2_joint(**fixed, preference="learned_preference")


def test_the_papers_setting_is_the_default_and_larger_pictures_are_clipped_at_the_same_log_prob_of_a_step(folders):
    fixed = {"prompts": folders["prompts"], "tones": str(folders["tones"]), "tone_classes": TONES, "heldout_share": 0.1}
    paper, large = sd2_joint(**fixed), sd2_joint(**fixed, image_size=1024)
    assert (paper.groups * paper.samples, paper.updates, paper.iterations) == (2048, 5, 3000)
    assert paper.pools.actors + paper.pools.learner_ranks == 120
    clips = [each.objective.tasks["preference"].clip for each in (paper, large)]
    assert clips == pytest.approx([1e-4, 2.5e-5])
    assert len(paper.heldout[2].prompts) == 20 and not set(paper.heldout[2].prompts) & set(paper.tasks[2].prompts)


def test_real_pictures_come_from_tars_where_there_are_any(folders, tmp_path):
    (tmp_path / "0.tar").touch()
    fixed = {"prompts": folders["prompts"], "tones": str(folders["tones"]), "tone_classes": TONES, "heldout_share": 0.1}
    sources = [sd2_joint(**fixed, pretraining=folder).files.source for folder in (tmp_path, folders["pretraining"])]
    assert sources == [
        WebDataset(path=tmp_path, resolution=512),
        ImageFolder(folder=folders["pretraining"], resolution=512),
    ]
