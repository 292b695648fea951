import pytest
import torch

from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.learner.files.from_files import FileExamples, FromFiles
from drover.learner.objective import Models
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.denoising import Denoising
from drover.worlds.plane.policy import ToyChain
from drover.worlds.shapes import PIPELINE
from drover.worlds.shapes.pairs import ShapesPairs


@pytest.fixture(scope="module")
def policy():
    return StableDiffusionModel(checkpoint=str(PIPELINE), guidance=1.0).build("cpu")


def loss(policy, *, size: int = 8, rank: int = 0, ranks: int = 1, seed: int = 0, **spec):
    """Step number -> this rank's part of the pretraining loss."""
    made = FromFiles(source=ShapesPairs(), objective=Denoising(), batch_size=size, **spec)
    models = Models(policy, Renoise(10, Ddim()))
    examples = FileExamples(made, models, seed=seed, rank=rank, ranks=ranks)

    def of(step: int) -> torch.Tensor:
        part = examples.part(step)
        ((batch, _),) = part.batches
        return part.weight * part.objective.loss(models, batch).total / part.count

    return of


def test_ranks_add_up_to_what_one_rank_computes_alone(policy):
    alone = loss(policy)(3).item()
    shared = sum(loss(policy, rank=rank, ranks=4)(3).item() for rank in range(4))
    assert shared == pytest.approx(alone, rel=1e-5)


def test_it_depends_on_seed_and_step_alone_and_scales_with_its_weight(policy):
    assert loss(policy)(3).item() == loss(policy)(3).item()
    assert len({loss(policy)(3).item(), loss(policy)(4).item(), loss(policy, seed=1)(3).item()}) == 3
    assert loss(policy, weight=5.0)(3).item() == pytest.approx(5 * loss(policy)(3).item(), rel=1e-6)


def test_the_shipped_pipeline_predicts_the_noise_on_its_own_pictures_far_better_than_an_untrained_one(policy):
    def mean(of) -> float:
        with torch.no_grad():
            return sum(loss(of, size=32)(step).item() for step in range(4)) / 4

    untrained = StableDiffusionModel(checkpoint=str(PIPELINE), guidance=1.0).build("cpu")
    for name, module in untrained.trainable.named_modules():
        if name == "conv_out":
            module.reset_parameters()
    assert mean(policy) < 0.2 < 0.8 < mean(untrained)


def test_its_gradient_descends(policy):
    mine = StableDiffusionModel(checkpoint=str(PIPELINE), guidance=1.0).build("cpu")
    with torch.no_grad():
        for parameter in mine.trainable.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW(mine.trainable.parameters(), lr=1e-3)
    first = loss(mine, size=32)(0).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(mine, size=32)(0).backward()
        optimizer.step()
    assert loss(mine, size=32)(0).item() < 0.7 * first


@pytest.mark.parametrize(("size", "ranks", "message"), [(6, 4, "does not divide over 4"), (0, 1, "files need a batch")])
def test_a_batch_that_ranks_cannot_share_is_refused(size, ranks, message):
    with pytest.raises(ConfigError, match=message):
        loss(ToyChain(), size=size, ranks=ranks)


def test_an_objective_of_recorded_steps_cannot_learn_from_files():
    with pytest.raises(ConfigError, match="Ddpo learns from recorded steps, which files do not have"):
        FromFiles(source=ShapesPairs(), objective=Ddpo(weights={"a": 1.0}, clip=0.1), batch_size=8)
