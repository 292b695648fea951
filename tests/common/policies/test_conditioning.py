import pytest
import torch

from drover.common.policies.conditioning import concat, repeat, rows, to

COND = {"text": torch.arange(12.0).reshape(3, 2, 2), "mask": torch.tensor([1, 2, 3])}


def test_rows_are_picked_in_order_and_may_repeat():
    picked = rows(COND, [2, 0, 2])
    assert picked["mask"].tolist() == [3, 1, 3]
    assert torch.equal(picked["text"][0], COND["text"][2])


def test_each_row_is_repeated_beside_itself():
    assert repeat(COND, 2)["mask"].tolist() == [1, 1, 2, 2, 3, 3]


def test_batches_join_only_under_the_same_names():
    assert concat([COND, rows(COND, [1])])["mask"].tolist() == [1, 2, 3, 2]
    with pytest.raises(ValueError, match=r"\['mask', 'text'\] and \['mask'\]"):
        concat([COND, {"mask": COND["mask"]}])


def test_it_moves_between_devices():
    assert to(COND, "meta")["text"].device.type == "meta"
