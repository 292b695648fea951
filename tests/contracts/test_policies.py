"""The contract of policies: predictions lie on the noising path, targets invert outputs, rows do not affect each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from drover import worlds
from drover.common import policies
from drover.common.diffusion.error import squared_error
from drover.common.diffusion.noising import corrupt, over
from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.policies.conditioning import rows
from drover.common.policies.consistency import ConsistencyHead
from drover.common.policies.guided import Guided
from drover.common.policies.model import Model
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Policy
from drover.worlds.plane.model import ToyModel
from drover.worlds.plane.policy import ToyChain
from drover.worlds.plane.slow import SlowChain, SlowToy
from tests.common.policies.conftest import one_thread
from tests.common.policies.tiny_pipeline import (
    write_tiny_consistency_model,
    write_tiny_pipeline,
    write_tiny_xl_pipeline,
)
from tests.contracts.walk import classes

__all__ = ["one_thread"]

SEAM = ("predict", "output", "target", "encode", "decode", "to_latents")
POLICIES = sorted({*classes(policies, *SEAM), *classes(worlds, *SEAM)}, key=lambda kind: kind.__name__)
MODELS = sorted(
    {*classes(policies, "build", "save", "of_run"), *classes(worlds, "build", "save", "of_run")},
    key=lambda kind: kind.__name__,
)
NAMES = ("a red circle", "b", "a red circle")


def sd(root: Path, write: Callable[[Path], Path], **fields: float) -> StableDiffusionModel:
    return StableDiffusionModel(checkpoint=str(write(root / "pipeline")), **{"guidance": 1.0, **fields})


v_prediction = partial(write_tiny_pipeline, prediction_type="v_prediction")
x0_prediction = partial(write_tiny_pipeline, prediction_type="sample")
# The descriptions that build each policy; a new policy gets a line here, and every test below runs on it.
MADE: dict[type, list[Callable[[Path], Model]]] = {
    ToyChain: [lambda root: ToyModel()],
    StableDiffusion: [
        lambda root: sd(root, write_tiny_pipeline),
        lambda root: sd(root, v_prediction),
        lambda root: sd(root, x0_prediction),
        lambda root: sd(root, write_tiny_xl_pipeline),
    ],
    Guided: [lambda root: sd(root, write_tiny_pipeline, guidance=3.0)],
    SlowChain: [lambda root: SlowToy(0.0)],
    ConsistencyHead: [lambda root: sd(root, write_tiny_consistency_model, guidance=8.0)],
}


def test_every_policy_and_every_model_of_the_packages_is_under_contract() -> None:
    assert set(POLICIES) - {Wrapped} == set(MADE), "add a line to MADE"
    assert {kind.__name__ for kind in MODELS} == {"StableDiffusionModel", "ToyModel", "SlowToy"}, "add a line to MADE"


CASES = [(kind, number) for kind in MADE for number in range(len(MADE[kind]))]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].__name__} {case[1]}")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    kind, number = request.param
    described = MADE[kind][number](tmp_path_factory.mktemp("model"))
    described.check()
    assert type(described.build("cpu")) is kind
    return described


@pytest.fixture
def policy(model: Model) -> Policy:
    return model.build("cpu")


def latents(policy: Policy, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(NAMES), *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def some_times(policy: Policy) -> torch.Tensor:
    """Three times, one of them late."""
    last = policy.schedule.num_times - 1
    return torch.tensor([last, last // 2, 1])


def test_its_prediction_lies_on_the_noising_path_in_float32(policy: Policy) -> None:
    x, time = latents(policy), some_times(policy)
    prediction = policy.predict(x, time, policy.encode(NAMES))
    a, s = (over(coefficient, x) for coefficient in policy.schedule.coefficients(time))
    assert prediction.x0.dtype == prediction.noise.dtype == torch.float32
    # x0 of a noise network is divided by a, which is 0.07 at the last time.
    assert torch.allclose(a * prediction.x0 + s * prediction.noise, x, atol=1e-4)


def test_the_target_is_in_the_form_of_the_output_which_has_a_gradient(policy: Policy) -> None:
    x0, noise, time, cond = latents(policy), latents(policy, 1), some_times(policy), policy.encode(NAMES)
    if isinstance(policy, ConsistencyHead):
        with pytest.raises(ConfigError, match="distilled, not trained to denoise"):
            policy.target(x0, noise, time)
        return
    output = policy.output(corrupt(policy.schedule, x0, noise, time), time, cond)
    target = policy.target(x0, noise, time)
    assert (output.dtype, target.dtype, output.shape, target.shape) == (
        torch.float32,
        torch.float32,
        x0.shape,
        x0.shape,
    )
    assert output.requires_grad and not target.requires_grad
    squared_error(policy, x0, noise, time, cond).mean().backward()
    learned = [weight for weight in policy.trainable.parameters() if weight.requires_grad]
    assert learned and any(weight.grad is not None and bool(weight.grad.any()) for weight in learned)


def test_a_network_that_put_out_the_target_would_predict_the_truth(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(policy, Wrapped):
        pytest.skip("its prediction comes from the policy inside, which is under contract itself")
    x0, noise, time = latents(policy), latents(policy, 1), some_times(policy)
    monkeypatch.setattr(policy, "output", lambda x, time, cond: policy.target(x0, noise, time))
    prediction = policy.predict(corrupt(policy.schedule, x0, noise, time), time, policy.encode(NAMES))
    assert torch.allclose(prediction.x0, x0, atol=1e-4) and torch.allclose(prediction.noise, noise, atol=1e-4)


@torch.no_grad()
def test_a_row_is_treated_alone_as_it_is_in_a_batch(policy: Policy) -> None:
    x, time, cond = latents(policy), some_times(policy), policy.encode(NAMES)
    together, output = policy.predict(x, time, cond), policy.output(x, time, cond)
    for i in range(len(NAMES)):
        row, mine = slice(i, i + 1), rows(cond, [i])
        alone = policy.predict(x[row], time[row], mine)
        # Rounding of a product depends on the size of the batch.
        assert torch.allclose(alone.noise, together.noise[row], atol=1e-4, rtol=1e-4)
        assert torch.allclose(policy.output(x[row], time[row], mine), output[row], atol=1e-4, rtol=1e-4)


def test_conditions_come_in_the_order_of_their_names_and_the_empty_one_is_one_of_them(policy: Policy) -> None:
    cond = policy.encode(NAMES)
    assert all(len(tensor) == len(NAMES) and not tensor.requires_grad for tensor in cond.values())
    assert all(torch.equal(tensor[0], tensor[2]) for tensor in cond.values())
    if policy.empty is None:
        with pytest.raises(ConfigError, match="no empty condition"):
            Guided(policy, 2.0)
    else:
        assert policy.encode([policy.empty]).keys() == cond.keys()


def test_it_decodes_to_the_media_that_its_model_declares_and_reads_them_back(model: Model, policy: Policy) -> None:
    kind: type[Media] = model.media
    media = policy.decode(0.1 * latents(policy), policy.encode(NAMES))
    assert type(media) is kind and len(media) == len(NAMES)
    assert media.pictures().shape[0] == len(NAMES) and media.pictures().shape[3] == 3
    again = policy.to_latents(media)
    assert again.shape == (len(NAMES), *policy.latent_shape)
    assert again.dtype == torch.float32 and not again.requires_grad


def test_parts_are_one_or_the_first_axis_of_a_latent(policy: Policy) -> None:
    assert policy.parts in (1, policy.latent_shape[0])


@torch.no_grad()
def test_the_model_of_a_run_predicts_as_the_run_left_it(model: Model, tmp_path: Path) -> None:
    trained, fresh = model.build("cpu"), model.build("cpu")
    learned = {name: weight for name, weight in trained.trainable.named_parameters() if weight.requires_grad}
    for weight in learned.values():
        weight += 0.02
    assert model.save(learned, tmp_path).exists()
    again = model.of_run(tmp_path).build("cpu")
    x, time = latents(trained), some_times(trained)
    mine, theirs, before = (each.predict(x, time, each.encode(NAMES)).noise for each in (trained, again, fresh))
    assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mine, before, atol=1e-3)
