import torch

from common.policies.prompt_cache import PromptCache


def counting(capacity):
    encoded = []

    def encode(prompts):
        encoded.extend(prompts)
        return torch.tensor([[float(len(prompt))] for prompt in prompts])

    return PromptCache(encode, capacity), encoded


def test_rows_come_in_the_order_of_the_prompts_and_each_prompt_is_encoded_once():
    cache, encoded = counting(capacity=10)
    assert cache(["aaa", "b", "aaa"]).tolist() == [[3], [1], [3]]
    assert cache(["b", "cc"]).tolist() == [[1], [2]]
    assert encoded == ["aaa", "b", "cc"]


def test_the_prompt_unused_for_longest_is_forgotten_first():
    cache, encoded = counting(capacity=2)
    cache(["a", "b"])
    cache(["a"])
    cache(["c"])
    cache(["a"])
    assert encoded == ["a", "b", "c"]
    cache(["b"])
    assert encoded == ["a", "b", "c", "b"]


def test_more_prompts_than_it_keeps_are_all_encoded():
    cache, _ = counting(capacity=2)
    assert cache(["a", "bb", "ccc", "a"]).tolist() == [[1], [2], [3], [1]]


def test_a_kept_row_does_not_keep_the_batch_it_came_from():
    cache, _ = counting(capacity=4)
    cache(["a", "b", "c"])
    assert all(row.untyped_storage().nbytes() == 4 for row in cache._rows.values())
