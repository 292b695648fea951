import pytest
import torch

from drover.common.policies.conditioning import concat, rows

COND = {"text": torch.arange(12.0).reshape(3, 2, 2), "mask": torch.tensor([1, 2, 3])}


def test_rows_are_picked_in_order_and_may_repeat():
    picked = rows(COND, [2, 0, 2])
    assert picked["mask"].tolist() == [3, 1, 3]
    assert torch.equal(picked["text"][0], COND["text"][2])


def test_batches_join_only_under_the_same_names():
    assert concat([COND, rows(COND, [1])])["mask"].tolist() == [1, 2, 3, 2]
    with pytest.raises(ValueError, match=r"\['mask', 'text'\] and \['mask'\]"):
        concat([COND, {"mask": COND["mask"]}])
