"""A latent consistency model goes through the whole service in one process."""

import json

import pytest

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Consistency, Renoise
from drover.common.diffusion.spacing import Distilled
from drover.common.errors import ConfigError
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.deploy.config import RunConfig
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.step import OptimizerSpec
from drover.reward_servers.rewards.jpeg_size import JpegSize
from tests.common.policies.tiny_pipeline import write_tiny_consistency_model
from tests.deploy.in_place import train

PROMPTS = ("a", "b")


def config(folder, **fields) -> RunConfig:
    reward = JpegSize("small")
    usual = {
        "recipe": "consistency", "model": StableDiffusionModel(checkpoint=str(folder), guidance=8.0),
        "sampler": Plain(Renoise(4, Consistency(), Distilled())), "rewards": (reward,),
        "objective": Ddpo(weights={reward.name: 1.0}, clip=1e-2),
        "tasks": (Task(name="small", prompts=PROMPTS, rewards=(reward.name,)),),
        "heldout": (EvaluationSpec(name="held", prompts=PROMPTS, samples_per_prompt=2, rewards=(reward.name,)),),
        "record": RecordSteps(count=2, first=3), "optimizer": OptimizerSpec(lr=1e-4),
        "iterations": 2, "groups": 2, "samples": 4, "batch_size": 16, "max_lag": 0,
    }  # fmt: skip
    return RunConfig(**{**usual, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_consistency_model(tmp_path_factory.mktemp("tiny") / "consistency")


def test_it_trains_two_updates_on_policy_and_is_saved_as_a_consistency_model(folder, tmp_path):
    done = train(config(folder), tmp_path)
    assert done.ended == "finished"
    assert [update["ratio_first"] for update in done.view.updates] == pytest.approx([1, 1], abs=1e-4)
    assert all(update["grad_norm"] > 0 for update in done.view.updates)
    index = json.loads((done.folder.path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "LatentConsistencyModelPipeline"


def test_its_last_step_has_no_density_and_is_refused_for_training(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"steps \[3\] of Renoise.* have no density; record among \[0, 1, 2\]"):
        train(config(folder, record=RecordSteps(count=4, first=4)), tmp_path)
