"""`drover sample` draws a run's pictures as the run drew them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from drover.actors.sampler import Plain
from drover.actors.starts import SharedNoise
from drover.common.diffusion.kernels.renoise import Consistency, Ddim, Renoise
from drover.common.diffusion.spacing import Trailing
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora, SavedLora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.deploy.commands.sampling import SampleOptions, draw
from drover.deploy.run_folder.rebuilding import model_and_sampler
from tests.deploy.in_place import small, train
from tests.deploy.test_consistency_run import config
from tests.deploy.test_consistency_run import folder as consistency_folder

__all__ = ["consistency_folder"]

SAMPLER = Plain(Renoise(3, Ddim(eta=0.5), Trailing()), start=SharedNoise())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of the tiny pipeline by whole weights and by adapters, on pictures of 16 x 32 pixels."""
    from tests.common.policies.tiny_pipeline import write_tiny_pipeline

    root = tmp_path_factory.mktemp("runs")
    tiny = write_tiny_pipeline(root / "tiny")
    done = {}
    for name, lora in (("whole", None), ("adapters", Lora(rank=2, alpha=2.0))):
        model = StableDiffusionModel(checkpoint=str(tiny), guidance=2.0, image_size=(16, 32), lora=lora)
        done[name] = train(config(tiny, model=model, sampler=SAMPLER), root, name=name).folder.path
    return done


@pytest.mark.parametrize("name", ["whole", "adapters"])
def test_a_run_says_which_model_and_sampler_it_trained(runs, name):
    model, sampler = model_and_sampler(runs[name])
    assert sampler == SAMPLER
    assert (model.guidance, model.image_size) == (2.0, (16, 32))
    saved = None if name == "whole" else SavedLora(folder=runs[name] / "lora")
    assert model.lora == saved


def drawn(run, tmp_path, **options):
    out = tmp_path / "drawn.png"
    draw(SampleOptions(model=str(run), prompts=("a",), count=2, out=out, **options))
    return np.asarray(Image.open(out))


def test_pictures_of_a_run_have_its_size_and_follow_its_guidance_and_steps(runs, tmp_path):
    usual = drawn(runs["whole"], tmp_path)
    same = drawn(runs["whole"], tmp_path, guidance=2.0, steps=3, eta=0.5)
    assert np.array_equal(usual, same)
    for other in ({"guidance": 5.0}, {"steps": 5}, {"eta": 0.0}):
        assert not np.array_equal(usual, drawn(runs["whole"], tmp_path, **other)), other


def test_a_consistency_model_is_drawn_by_its_own_kind_of_step(consistency_folder, tmp_path):
    assert drawn(consistency_folder, tmp_path, guidance=8.0, steps=2).size > 0
    with pytest.raises(ConfigError, match=r"Consistency.* has no eta; leave --eta out"):
        drawn(consistency_folder, tmp_path, guidance=8.0, eta=0.5)


def test_a_run_that_has_not_finished_or_draws_no_pictures_is_refused(runs, tmp_path):
    toy = train(small(iterations=1), tmp_path).folder.path
    with pytest.raises(ConfigError, match="trained a ToyModel with the sampler Plain"):
        model_and_sampler(toy)
    (toy / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no checkpoint that says how its pictures are drawn"):
        model_and_sampler(toy / "empty")


def test_the_kernel_of_a_consistency_run_comes_back(consistency_folder, tmp_path):
    sampler = Plain(Renoise(4, Consistency()))
    done = train(replace(config(consistency_folder, iterations=1), sampler=sampler), tmp_path)
    assert model_and_sampler(done.folder.path)[1] == sampler
