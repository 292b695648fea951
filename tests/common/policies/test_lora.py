import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.policies.guided import Guided
from drover.common.policies.lora import base_of, load_lora, save_lora, with_lora
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.policy import ToyChain
from tests.common.policies.sampling import PROMPTS, start


def adapters(policy):
    return {name: weight for name, weight in policy.trainable.named_parameters() if weight.requires_grad}


def test_adapters_start_without_effect_and_are_all_that_learns(tiny):
    x, time, cond = start(tiny, 2), torch.tensor([981, 1]), tiny.encode(PROMPTS[:2])
    before = tiny.predict(x, time, cond).noise
    policy = with_lora(tiny, rank=4, alpha=8)
    assert policy is tiny
    assert torch.equal(policy.predict(x, time, cond).noise, before)
    names = set(adapters(policy))
    # Each transformer layer has 2 attentions of 4 layers with 2 factors.
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) % 16 == 0
    assert not any(module.training for module in policy.trainable.modules())


def test_equal_seeds_start_equal_adapters_and_others_do_not(tiny_folder):
    one, same, other = (
        adapters(with_lora(StableDiffusion.load(tiny_folder), rank=4, alpha=4, seed=seed)) for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_adapters_are_float32_on_a_half_precision_base_and_get_gradients(tiny_folder):
    policy = Guided(with_lora(StableDiffusion.load(tiny_folder, dtype="bfloat16"), rank=2, alpha=2), scale=3.0)
    policy.predict(start(policy, 1), torch.tensor([501]), policy.encode(["a"])).noise.square().mean().backward()
    weights = adapters(policy)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert any(bool(weight.grad.abs().max() > 0) for weight in weights.values() if weight.grad is not None)
    base = [weight for weight in policy.trainable.parameters() if not weight.requires_grad]
    assert base and all(weight.dtype == torch.bfloat16 and weight.grad is None for weight in base)


def test_a_model_that_cannot_be_adapted_or_saved_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="Shifts is no diffusers model"):
        with_lora(ToyChain(), rank=4, alpha=4)
    with pytest.raises(ConfigError, match="rank must be at least 1, got 0"):
        with_lora(tiny, rank=0, alpha=4)
    with pytest.raises(ConfigError, match="named like"):
        with_lora(tiny, rank=4, alpha=4, targets=("no_such_layer",))
    with pytest.raises(ConfigError, match="no adapters to save"):
        save_lora(tiny, tmp_path / "lora", base="some/base")
    with_lora(tiny, rank=4, alpha=4)
    with pytest.raises(ConfigError, match="already"):
        with_lora(tiny, rank=4, alpha=4)
    with pytest.raises(ConfigError, match=r"lora\.save_lora"):
        tiny.save_pipeline(tmp_path / "pipeline")
    assert list(tmp_path.iterdir()) == []


def test_adapters_name_their_base_and_damaged_ones_are_refused(tiny, tiny_folder, tmp_path):
    save_lora(with_lora(tiny, rank=2, alpha=2), tmp_path / "lora", base="stabilityai/stable-diffusion-2-base")
    assert base_of(tmp_path / "lora") == "stabilityai/stable-diffusion-2-base"
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="the adapters of .*lora do not fit their base"):
        load_lora(StableDiffusion.load(tiny_folder), tmp_path / "lora")
    with pytest.raises(ConfigError, match="names no base_model; give a folder that a run has written"):
        base_of(tmp_path)
