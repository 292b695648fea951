from dataclasses import replace

import pytest
import torch

from drover.common.diffusion.chain import Recording
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import SamplingFailed
from drover.common.policies import conditioning
from drover.common.policies.guided import Guided
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain
from tests.actors.drawn import sample

SD_STEPS = 4


def toy():
    return ToyChain(), toy_kernel()


def draw(policy, kernel, indices, *, record=(0, 1, 3), storage=torch.float32, prompts=None, group=7):
    cond = conditioning.rows(policy.encode(prompts or ["a red circle"]), [0] * len(indices) if not prompts else indices)
    return sample(policy, kernel, cond, indices=indices, record=record, storage=storage, group=group)


def recomputed(policy, kernel, recording: Recording) -> torch.Tensor:
    """[N, K, 1] log-probs as a reader of the stored states computes them."""
    columns = []
    for k in range(len(recording.steps)):
        x, x_next = (recording.states[:, at[k]].float() for at in (recording.before, recording.after))
        time, after = (torch.full((len(x),), t[k]) for t in (recording.times, recording.next_times))
        cond = policy.encode(["a red circle"] * len(x))
        with torch.no_grad():
            step = kernel.step(policy.schedule, x, time, after, policy.predict(x, time, cond))
        columns.append(step.log_prob(x_next))
    return torch.stack(columns, dim=1)


@pytest.fixture(params=["toy", "guided"])
def sampled_by(request, tiny_folder):
    if request.param == "toy":
        return toy()
    return Guided(StableDiffusion.load(tiny_folder), scale=3.0), Renoise(SD_STEPS, Ddim(eta=1.0))


def test_recorded_log_probs_are_what_a_reader_computes_on_unchanged_weights(sampled_by):
    policy, kernel = sampled_by
    recording = draw(policy, kernel, range(3)).recording
    assert recording.log_probs.shape == (3, 3, 1) and recording.log_probs.dtype == torch.float32
    assert (recomputed(policy, kernel, recording) - recording.log_probs).abs().max() < 1e-6


@pytest.mark.parametrize("storage", [torch.float16, torch.float32])
def test_the_ratio_is_exactly_1_after_a_round_trip_through_the_storage_dtype(storage):
    """Rounding a state after its log-prob was taken would cost 1e-5 to 1e-3 of ratio; here it costs nothing."""
    policy, kernel = toy()
    recording = draw(policy, kernel, range(64), storage=storage, record=(0, 1, 2, 3, 4)).recording
    assert recording.states.dtype == storage
    assert ((recomputed(policy, kernel, recording) - recording.log_probs).exp() == 1).all()


def test_half_precision_states_of_a_guided_model_keep_the_ratio_within_1e_6(tiny_folder):
    policy, kernel = Guided(StableDiffusion.load(tiny_folder), scale=3.0), Renoise(SD_STEPS, Ddim(eta=1.0))
    recording = draw(policy, kernel, range(3), storage=torch.float16).recording
    assert ((recomputed(policy, kernel, recording) - recording.log_probs).exp() - 1).abs().max() < 1e-6


def test_a_sample_does_not_depend_on_what_is_sampled_beside_it(sampled_by):
    policy, kernel = sampled_by
    together = draw(policy, kernel, [0, 1, 2, 3])
    alone, swapped = draw(policy, kernel, [2]), draw(policy, kernel, [3, 1])
    for mine, theirs in ((alone.x0[0], together.x0[2]), (swapped.x0[0], together.x0[3])):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)  # how a product is rounded depends on the batch
    assert torch.allclose(swapped.recording.log_probs[1], together.recording.log_probs[1], atol=1e-6)


def test_equal_seeds_give_equal_bits_and_other_groups_other_samples():
    policy, kernel = toy()
    first, same, other = (
        draw(policy, kernel, [0, 1]),
        draw(policy, kernel, [0, 1]),
        draw(policy, kernel, [0, 1], group=8),
    )
    assert torch.equal(first.x0, same.x0)
    assert not torch.isclose(first.x0, other.x0).any()
    assert not torch.isclose(first.x0[0], first.x0[1]).any()


def test_recording_steps_does_not_change_the_samples():
    policy, kernel = toy()
    assert torch.equal(draw(policy, kernel, [0, 1], record=()).x0, draw(policy, kernel, [0, 1], record=(0, 4)).x0)
    assert draw(policy, kernel, [0], record=()).recording is None


def test_neighbouring_steps_share_one_stored_state():
    policy, kernel = toy()
    recording = draw(policy, kernel, [0, 1], record=(3, 0, 2)).recording
    assert recording.steps == (0, 2, 3)
    assert (recording.times, recording.next_times) == ((4, 2, 1), (3, 1, 0))
    assert (recording.before, recording.after) == ((0, 2, 3), (1, 3, 4))
    assert recording.states.shape == (2, 5, 2)  # 3 steps touch 6 states, one of them twice


def test_the_last_recorded_state_is_the_clean_latent():
    policy, kernel = toy()
    made = draw(policy, kernel, [0, 1], record=(4,))
    assert torch.equal(made.recording.states[:, 1], made.x0)


def test_the_first_recorded_state_is_standard_normal():
    policy, kernel = toy()
    start = draw(policy, kernel, range(4000), record=(0,)).recording.states[:, 0]
    assert start.mean().abs() < 0.05 and start.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_no_sample(bad):
    policy, kernel = toy()
    policy.trainable.b.data[2, 0] = bad
    with pytest.raises(SamplingFailed, match="latents are not finite"):
        draw(policy, kernel, [0])


def test_latents_that_overflow_the_storage_dtype_are_no_sample():
    policy, kernel = toy()
    policy.trainable.b.data[:] = 1e6
    draw(policy, kernel, [0], storage=torch.float32)
    with pytest.raises(SamplingFailed, match="latents are not finite"):
        draw(policy, kernel, [0], storage=torch.float16)


def test_rows_keep_their_prompts(tiny_folder):
    policy, kernel = StableDiffusion.load(tiny_folder), Renoise(2, Ddim(eta=1.0))
    both = draw(policy, kernel, [0, 1], prompts=["a red circle", "b"], record=())
    swapped = draw(policy, kernel, [1, 0], prompts=["a red circle", "b"], record=())
    assert torch.allclose(both.x0, swapped.x0.flip(0), atol=1e-5)
    same_noise = replace(both)
    assert not torch.allclose(same_noise.x0[0], draw(policy, kernel, [0], prompts=["b"], record=()).x0[0], atol=1e-4)
