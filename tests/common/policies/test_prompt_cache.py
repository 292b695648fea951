import torch

from drover.common.policies.prompt_cache import PromptCache


def counting(capacity):
    encoded = []

    def encode(prompts):
        encoded.extend(prompts)
        return {"length": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    return PromptCache(encode, capacity), encoded


def lengths(cond):
    return cond["length"].tolist()


def test_rows_come_in_the_order_of_the_prompts_and_each_prompt_is_encoded_once():
    cache, encoded = counting(capacity=10)
    assert lengths(cache(["aaa", "b", "aaa"])) == [[3], [1], [3]]
    assert lengths(cache(["b", "cc"])) == [[1], [2]]
    assert encoded == ["aaa", "b", "cc"]


def test_prompts_are_encoded_in_batches_of_32_and_all_their_tensors_are_kept():
    sizes = []

    def encode(prompts):
        sizes.append(len(prompts))
        numbers = torch.tensor([float(prompt) for prompt in prompts])
        return {"number": numbers, "square": numbers.square()}

    cond = PromptCache(encode)([str(i) for i in range(70)])
    assert sizes == [32, 32, 6]
    assert cond["number"].tolist() == list(range(70))
    assert cond["square"].tolist() == [i * i for i in range(70)]


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
    assert lengths(cache(["a", "bb", "ccc", "a"])) == [[1], [2], [3], [1]]


def test_a_kept_row_does_not_keep_the_batch_it_came_from():
    cache, _ = counting(capacity=4)
    cache(["a", "b", "c"])
    assert all(row["length"].untyped_storage().nbytes() == 4 for row in cache._rows.values())
