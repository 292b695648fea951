import numpy as np
import pytest
import torch

from drover.common.errors import CodecError
from drover.common.tensors import pack, read, unpack
from drover.common.types import DTYPE_BYTES, TensorRef


class Bytes:
    """A blob store of one blob that counts the bytes read from it."""

    def __init__(self, parts):
        self.data = b"".join(parts)
        self.moved = 0

    def put(self, blob, parts):
        raise AssertionError("these tests only read")

    def get(self, blob, offset=0, nbytes=None):
        got = self.data[offset:] if nbytes is None else self.data[offset : offset + nbytes]
        self.moved += len(got)
        return got

    def drop(self, blobs): ...


def tensors():
    draws = torch.Generator().manual_seed(0)
    kinds = {name: torch.randn(3, 5, generator=draws).mul(50).abs().to(getattr(torch, name)) for name in DTYPE_BYTES}
    return {
        **kinds,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }


def test_every_dtype_and_shape_comes_back_bit_for_bit():
    given = tensors()
    parts, refs = pack("g1/latents", given)
    store = Bytes(parts)
    for name, tensor in given.items():
        back = read(store, refs[name])
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor), name
    assert store.moved == len(store.data) == sum(ref.nbytes for ref in refs.values())


def test_arrays_travel_like_tensors():
    media = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    parts, refs = pack("b", {"media": media})
    assert refs["media"] == TensorRef(blob="b", dtype="uint8", shape=(2, 4, 4, 3), offset=0)
    assert np.array_equal(read(Bytes(parts), refs["media"]).numpy(), media)


def test_packing_copies_nothing():
    tensor = torch.zeros(1000)
    (part,), _ = pack("b", {"x": tensor})
    tensor[0] = 1.0
    assert bytes(part[:4]) == torch.tensor([1.0]).numpy().tobytes()


def test_only_the_bytes_of_the_rows_asked_for_are_moved():
    states = torch.arange(8 * 6 * 4.0).reshape(8, 6, 4)
    parts, refs = pack("b", {"before": torch.zeros(3), "states": states})
    store = Bytes(parts)
    assert torch.equal(read(store, refs["states"], slice(2, 5)), states[2:5])
    assert store.moved == 3 * 6 * 4 * 4
    assert torch.equal(read(store, refs["states"], slice(-1, None)), states[-1:])
    assert read(store, refs["states"], slice(6, 2)).shape == (0, 6, 4)


def test_rows_that_are_not_contiguous_or_do_not_exist_are_refused():
    parts, refs = pack("b", {"x": torch.zeros(4, 2), "scalar": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="step 2"):
        read(Bytes(parts), refs["x"], slice(0, 4, 2))
    with pytest.raises(ValueError, match="no rows"):
        read(Bytes(parts), refs["scalar"], slice(0, 1))


def test_a_tensor_that_was_read_can_be_written_to():
    parts, refs = pack("b", {"x": torch.zeros(4)})
    back = read(Bytes(parts), refs["x"])
    back += 1
    assert back.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("given", [3, 17])
def test_bytes_that_do_not_fit_the_reference_are_refused(given):
    with pytest.raises(CodecError, match=f"needs 16 bytes, blob 'b' gave {given}"):
        unpack(TensorRef(blob="b", dtype="float32", shape=(2, 2)), b"x" * given)


def test_a_dtype_that_does_not_travel_is_refused():
    with pytest.raises(CodecError, match=r"torch\.complex64"):
        pack("b", {"x": torch.zeros(2, dtype=torch.complex64)})
