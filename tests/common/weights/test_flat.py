import pytest
import torch
from torch import nn

from drover.common.errors import WeightsLost, WeightSyncFailed
from drover.common.protocols import Canary
from drover.common.weights import flat
from drover.common.weights.memory import MemoryWeights


class Module(nn.Module):
    """A module with odd sizes, so that padding matters, and one parameter that is not trained."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.one = nn.Parameter(torch.randn(3, 5, generator=draws))
        self.two = nn.Parameter(torch.randn(7, generator=draws))
        self.scalar = nn.Parameter(torch.randn((), generator=draws))
        self.frozen = nn.Parameter(torch.randn(4, generator=draws), requires_grad=False)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def unchanged(module: Module, before: Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_as_they_were_rounded_to_the_dtype_that_travels(dtype):
    source, target = Module(1), Module(2)
    frozen = target.frozen.clone()
    manifest, buffer = flat.pack(7, weights(source), dtype, None)
    flat.load(manifest, buffer, target)
    for name, sent in weights(source).items():
        assert torch.equal(weights(target)[name], sent.to(dtype).float()), name
    assert torch.equal(target.frozen, frozen)
    assert manifest.version == 7 and manifest.nbytes == 23 * torch.empty((), dtype=dtype).element_size()
    assert all(entry.offset % flat.ALIGNMENT == 0 for entry in manifest.entries)


def test_half_precision_weights_fill_a_half_precision_module_exactly():
    source, target = Module(1).bfloat16(), Module(2).bfloat16()
    flat.load(*flat.pack(0, weights(source), torch.bfloat16, None), target)
    assert all(torch.equal(weights(target)[name], sent) for name, sent in weights(source).items())


def test_a_read_only_buffer_can_be_loaded_without_a_warning(recwarn):
    """As shared memory of an object store is."""
    source, target = Module(1), Module(2)
    manifest, buffer = flat.pack(0, weights(source), torch.float32, None)
    buffer.flags.writeable = False
    flat.load(manifest, buffer, target)
    assert torch.equal(target.one, source.one) and len(recwarn) == 0


def test_parameters_are_filled_in_place():
    target = Module(2)
    before = target.one.data_ptr()
    flat.load(*flat.pack(0, weights(Module(1)), torch.float32, None), target)
    assert target.one.data_ptr() == before and target.one.requires_grad


def test_a_buffer_that_nobody_reads_any_more_is_used_again_if_it_fits():
    target = Module(2)
    _, first = flat.pack(0, weights(Module(1)), torch.float32, None)
    manifest, second = flat.pack(1, weights(Module(3)), torch.float32, None, reuse=first)
    assert second.ctypes.data == first.ctypes.data
    flat.load(manifest, second, target)
    assert torch.equal(target.one, Module(3).one)
    larger = {name: tensor.repeat(20) for name, tensor in weights(Module(3)).items() if tensor.ndim == 1}
    _, third = flat.pack(2, larger, torch.float32, None, reuse=first)
    assert third.size == 576 != first.size


def without(name):
    return lambda given: {key: value for key, value in given.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("two"), r"holds 2 tensors for a module with 3 trainable ones; missing \['two'\]"),
        (lambda given: given | {"extra": torch.zeros(2)}, r"unknown \['extra'\]"),
        (lambda given: given | {"frozen": torch.zeros(4)}, r"unknown \['frozen'\]"),
        (lambda given: given | {"two": torch.zeros(8)}, r"two arrived with shape \(8,\), the module has \(7,\)"),
        (lambda given: given | {"scalar": torch.zeros(1)}, r"scalar arrived with shape \(1,\)"),
        (lambda given: {}, "holds 0 tensors"),
    ],
    ids=["missing", "unknown", "frozen", "other shape", "other rank", "nothing"],
)
def test_weights_of_another_module_are_refused_and_nothing_is_bound(change, message):
    target = Module(2)
    manifest, buffer = flat.pack(3, change(weights(Module(1))), torch.float32, None)
    with pytest.raises(WeightSyncFailed, match=f"version 3.*{message}"):
        flat.load(manifest, buffer, target)
    assert unchanged(target, Module(2))


def test_a_flipped_bit_in_any_tensor_is_seen_and_nothing_is_bound():
    manifest, buffer = flat.pack(3, weights(Module(1)), torch.float32, None)
    for entry in manifest.entries:
        target, damaged = Module(2), buffer.copy()
        damaged[entry.offset + entry.nbytes - 1] ^= 1
        with pytest.raises(WeightSyncFailed, match=f"{entry.name} arrived damaged"):
            flat.load(manifest, damaged, target)
        assert unchanged(target, Module(2))


def test_a_buffer_cut_short_is_seen_and_nothing_is_bound():
    target = Module(2)
    manifest, buffer = flat.pack(3, weights(Module(1)), torch.float32, None)
    with pytest.raises(WeightSyncFailed, match="scalar arrived damaged"):
        flat.load(manifest, buffer[: manifest.entries[-1].offset + 2], target)
    assert unchanged(target, Module(2))


def test_a_module_in_which_nothing_learns_takes_no_weights():
    frozen = Module(2).requires_grad_(False)
    with pytest.raises(WeightSyncFailed, match="holds 0 tensors for a module with 0 trainable"):
        flat.load(*flat.pack(0, {}, torch.float32, None), frozen)


def test_in_one_process_the_newest_version_is_the_only_one():
    weights_, target = MemoryWeights(torch.float32), Module(2)
    assert weights_.latest() == -1
    with pytest.raises(WeightsLost, match="version 0 is not here; the newest is -1"):
        weights_.load(0, target)
    canary = Canary(value=0.5, tolerance=1e-4)
    weights_.publish(4, weights(Module(1)), canary)
    weights_.publish(5, weights(Module(3)), canary)
    assert weights_.latest() == 5
    with pytest.raises(WeightsLost):
        weights_.load(4, target)
    assert unchanged(target, Module(2))
    assert weights_.load(5, target) == canary
    assert torch.equal(target.one, Module(3).one)


def test_published_weights_do_not_change_with_the_module_they_came_from():
    source, target, weights_ = Module(1), Module(2), MemoryWeights(torch.float32)
    weights_.publish(0, {name: p for name, p in source.named_parameters() if p.requires_grad}, None)
    source.one.data.zero_()
    weights_.load(0, target)
    assert torch.equal(target.one, Module(1).one)
