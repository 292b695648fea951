import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.policies.conditioning import rows
from drover.common.policies.guided import Guided
from tests.common.policies.sampling import PROMPTS, start


def test_guidance_is_two_forwards_combined(tiny):
    guided = Guided(tiny, scale=5.0)
    x, time = start(tiny, 3), torch.tensor([981, 501, 1])
    cond = tiny.predict(x, time, tiny.encode(PROMPTS))
    uncond = tiny.predict(x, time, tiny.encode([""] * 3))
    got = guided.predict(x, time, guided.encode(PROMPTS))
    for part in ("noise", "x0"):
        with_prompt, without = getattr(cond, part), getattr(uncond, part)
        wanted = without + 5.0 * (with_prompt - without)
        assert ((getattr(got, part) - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


def test_both_branches_share_one_forward_the_unconditional_first(tiny):
    guided, batches = Guided(tiny, scale=2.0), []
    tiny.trainable.register_forward_pre_hook(
        lambda _module, args, kwargs: batches.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    guided.predict(start(tiny, 2), torch.tensor([5, 5]), guided.encode(PROMPTS[:2]))
    (text,) = batches
    assert torch.equal(text, torch.cat([tiny.encode(["", ""])["text"], tiny.encode(PROMPTS[:2])["text"]]))


def test_the_gradient_flows_through_both_branches(tiny):
    guided, x, time = Guided(tiny, scale=4.0), start(tiny, 1), torch.tensor([501])
    bias = tiny.trainable.conv_out.bias
    (both,) = torch.autograd.grad(guided.predict(x, time, guided.encode(["a"])).noise.sum(), bias)
    # A constant added to both branches is not scaled by guidance: 1 - scale + scale = 1 per pixel.
    assert both.tolist() == pytest.approx([64.0] * 4, rel=1e-5)


def test_the_empty_prompt_takes_the_memory_of_one_row(tiny):
    cond = Guided(tiny, scale=2.0).encode(PROMPTS)
    assert cond["uncond.text"].shape == cond["text"].shape
    assert cond["uncond.text"].stride(0) == 0


def test_its_conditioning_can_be_repeated_and_picked(tiny):
    guided = Guided(tiny, scale=2.0)
    cond = rows(guided.encode(PROMPTS[:2]), [1, 0])
    straight = guided.encode([PROMPTS[1], PROMPTS[0]])
    assert all(torch.equal(cond[name], straight[name]) for name in straight)


def test_a_scale_of_one_is_refused(tiny):
    with pytest.raises(ConfigError, match="without Guided"):
        Guided(tiny, scale=1.0)
