from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drover.common import seeds, tensors
from drover.common.errors import WrongRecipe
from drover.common.transport.memory import MemoryBroker
from drover.learner.batches import LatentFetcher, StepFetcher
from drover.learner.batches import divide as divided
from drover.learner.examples import Credit
from drover.learner.objective import Models
from drover.learner.ranks import Iteration
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain
from tests.learner.made_up import credit, record, recorded, rollout

STEPS = (0, 1, 3)


def iteration(*weights, blobs=None):
    blobs = MemoryBroker("batcher").blobs() if blobs is None else blobs
    groups = [
        recorded(ToyChain(), toy_kernel(), blobs, g, samples=len(row), steps=STEPS) for g, row in enumerate(weights)
    ]
    return Iteration(tuple(groups), credit(*weights)), blobs


def fetcher(blobs, batch_size=4):
    return StepFetcher(Models(ToyChain(), toy_kernel()), blobs, device="cpu", batch_size=batch_size)


def divide(made, **how):
    return divided(made.credit, turns=len(STEPS), **how)


def rows_of(made, share):
    """(group, sample) of each example of a share."""
    return [tuple(made.credit.rows[example, 0].tolist()) for example in share.examples]


@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=1, max_size=6), min_size=1, max_size=5),
    ranks=st.integers(1, 4),
    updates=st.integers(1, 3),
    batch_size=st.integers(1, 7),
)
def test_ranks_and_steps_share_the_rows_evenly_and_run_equally_many_micro_batches(weights, ranks, updates, batch_size):
    made, blobs = iteration(*weights)
    by_rank = [divide(made, updates=updates, ranks=ranks, rank=r, batch_size=batch_size) for r in range(ranks)]
    rows = [(g, i) for g, row in enumerate(weights) for i, weight in enumerate(row) if weight]
    assert sorted(row for shares in by_rank for share in shares for row in rows_of(made, share)) == rows
    assert len({len(shares) for shares in by_rank}) == 1
    of_updates = []
    for shares in zip(*by_rank, strict=True):
        sizes = [len(share.examples) for share in shares]
        of_updates.append(sum(sizes))
        assert max(sizes) - min(sizes) <= 1
        assert len({share.num_batches for share in shares}) == 1
        for share in shares:
            batches = list(fetcher(blobs, batch_size).batches(made, share, 0))
            assert len(batches) == share.num_batches
            assert sum(len(batch.x) for batch, counts in batches if counts) == len(share.examples) * len(STEPS)
            assert all(len(batch.x) == 1 for batch, counts in batches if not counts)
    assert not of_updates or max(of_updates) - min(of_updates) <= 1


def test_nothing_to_learn_means_no_step():
    made, _ = iteration([0.0, 0.0], [0.0, 0.0])
    assert divide(made, updates=2, ranks=2, rank=0, batch_size=4) == []


def test_the_mean_is_over_valid_samples_and_their_steps_also_those_of_weight_zero():
    columns = [np.array([1.0, 0.0, -1.0]), np.zeros(2)]
    made = Credit.per_sample(columns, [np.ones(3, bool), np.array([True, False])])
    assert made.terms == 3 + 1
    assert made.teaching.tolist() == [0, 2]
    assert made.teaches(3).tolist() == [True, False, False]


def test_micro_batches_hold_exactly_what_was_sampled():
    weights = ([1.0, 0.0, -3.0], [0.5, 0.25])
    made, blobs = iteration(*weights)
    (share,) = divide(made, updates=1, ranks=1, rank=0, batch_size=5)
    batches = [batch for batch, _ in fetcher(blobs, 5).batches(made, share, 0)]
    originals = [record(ToyChain(), toy_kernel(), g, samples=n, steps=STEPS) for g, n in ((0, 3), (1, 2))]
    wanted = [(g, row, k) for g, row in rows_of(made, share) for k in range(3)]
    assert [len(batch.x) for batch in batches] == [5, 5, 2]
    for name in ("x", "x_next", "log_prob", "time", "next_time", "weight"):
        got = torch.cat([getattr(batch, name) for batch in batches])
        for position, (g, row, k) in enumerate(wanted):
            original = originals[g]
            states = original.states[row]
            truth = {
                "x": states[original.before[k]], "x_next": states[original.after[k]],
                "log_prob": original.log_probs[row, k], "time": original.times[k],
                "next_time": original.next_times[k], "weight": weights[g][row],
            }[name]  # fmt: skip
            assert torch.equal(got[position].reshape(-1), torch.as_tensor(truth).to(got.dtype).reshape(-1)), (
                name,
                g,
                row,
                k,
            )


def test_a_rank_fetches_the_rows_it_trains_and_no_other_byte():
    weights = [1.0] * 8
    made, blobs = iteration(weights, weights)
    one_row = (4 * 2 * 5 + 4 * len(STEPS), made.groups[0].transitions.states.shape)
    assert one_row[1] == (8, 5, 2)  # steps 0, 1 and 3 touch the states 0, 1, 2, 3 and 4
    read = []
    for rank in range(4):
        (share,) = divide(made, updates=1, ranks=4, rank=rank, batch_size=64)
        fetch = fetcher(blobs, 64)
        list(fetch.batches(made, share, 0))
        read.append(fetch.bytes_read)
        assert fetch.bytes_read == len(share.examples) * one_row[0] == 4 * 52
    whole = sum(ref.nbytes for g in made.groups for ref in (g.transitions.states, g.transitions.log_probs))
    assert sum(read) == whole


def test_rows_of_weight_zero_are_not_computed():
    made, blobs = iteration([0.0, 2.0, 0.0, 0.0])
    (share,) = divide(made, updates=1, ranks=1, rank=0, batch_size=8)
    fetch = fetcher(blobs, 8)
    ((batch, counts),) = fetch.batches(made, share, 0)
    assert counts and batch.weight.tolist() == [[2.0]] * 3
    assert fetch.bytes_read == 52


def test_a_rank_without_rows_runs_one_example_that_does_not_count():
    made, blobs = iteration([1.0])
    (share,) = divide(made, updates=1, ranks=2, rank=0, batch_size=8)
    assert share.examples == () and share.num_batches == 1
    ((batch, counts),) = fetcher(blobs, 8).batches(made, share, 0)
    assert not counts and len(batch.x) == 1 and batch.weight.tolist() == [[0.0]]


def test_several_updates_take_disjoint_rows():
    made, _ = iteration([1.0] * 5, [1.0] * 6)
    shares = divide(made, updates=3, ranks=1, rank=0, batch_size=4)
    counts = Counter(row for share in shares for row in share.examples)
    assert len(counts) == 11 and set(counts.values()) == {1}
    assert sorted(len(share.examples) for share in shares) == [3, 4, 4]


@pytest.mark.parametrize("fields", [{"times": (4, 3, 2)}, {"next_times": (3, 2, 1)}], ids=["times", "next times"])
def test_steps_through_other_times_are_refused(fields):
    made, blobs = iteration([1.0, -1.0])
    group = made.groups[0]
    other = replace(made, groups=(replace(group, transitions=replace(group.transitions, **fields)),))
    (share,) = divide(other, updates=1, ranks=1, rank=0, batch_size=4)
    with pytest.raises(WrongRecipe, match="an actor stepped through times"):
        list(fetcher(blobs).batches(other, share, 0))


@pytest.mark.parametrize("ranks", [1, 2])
def test_updates_by_step_take_every_sample_at_one_recorded_step_each(ranks):
    made, blobs = iteration([1.0, 0.0, -1.0], [0.5, -0.5])
    seen = []
    for rank in range(ranks):
        shares = divide(made, updates=3, ranks=ranks, rank=rank, batch_size=8, by="steps")
        assert [share.turns for share in shares] == [(0,), (1,), (2,)]
        for share in shares:
            for batch, counts in fetcher(blobs, 8).batches(made, share, 0):
                seen += [(share.turns[0], t) for t in batch.time.tolist()] if counts else []
    times = toy_kernel().times(ToyChain().schedule)
    assert Counter(seen) == {(k, times[step]): 4 for k, step in enumerate(STEPS)}


def test_updates_by_step_read_each_row_once():
    made, blobs = iteration([1.0, 0.0, -1.0], [0.5, -0.5])
    fetch = fetcher(blobs, 8)
    for share in divide(made, updates=3, ranks=1, rank=0, batch_size=8, by="steps"):
        list(fetch.batches(made, share, 0))
    assert fetch.bytes_read == 5 * 52  # rows 0 to 2 of the first group, both of the second


def test_every_row_is_conditioned_on_its_own_prompt():
    """A group may have several prompts: sample i belongs to prompt i // samples_per_prompt."""
    made, blobs = iteration([1.0, 1.0, 1.0, 1.0])
    group = replace(made.groups[0], prompts=("a", "bb"), samples_per_prompt=2)
    fetch = StepFetcher(Models(Lengths(), toy_kernel()), blobs, device="cpu", batch_size=12)
    two = replace(made, groups=(group,))
    (share,) = divide(two, updates=1, ranks=1, rank=0, batch_size=12)
    ((batch, _),) = fetch.batches(two, share, 0)
    assert batch.cond["text"].flatten().tolist() == [1.0] * 6 + [2.0] * 6


class Lengths(ToyChain):
    """The toy with the length of the prompt as its condition."""

    def encode(self, names):
        return {"text": torch.tensor([[float(len(name))] for name in names])}


def latents(samples, blobs, group=0):
    parts, refs = tensors.pack(
        f"latents.{group}", {"x0": torch.arange(samples * 2.0).reshape(samples, 2) + 100 * group}
    )
    blobs.put(f"latents.{group}", parts)
    return rollout(group, samples=samples, latents=refs["x0"])


def test_pairs_come_side_after_side_each_with_its_noise_whatever_the_rank_or_micro_batch():
    blobs = MemoryBroker("pairs").blobs()
    groups = tuple(latents(3, blobs, group) for group in range(2))
    made = Iteration(groups, Credit.pairs([((0, 2), (0, 0)), ((1, 1), (1, 2)), ((0, 1), (1, 0))]))
    seen = {}
    for ranks, batch_size in ((1, 64), (1, 2), (2, 4)):
        for rank in range(ranks):
            fetch = LatentFetcher(Models(ToyChain(), toy_kernel()), blobs, seed=7, device="cpu", batch_size=batch_size)
            (share,) = divided(made.credit, turns=1, updates=1, ranks=ranks, rank=rank, batch_size=batch_size)
            for batch, counts in fetch.batches(made, share, 5):
                better, worse = batch.x0.chunk(2)
                noise = seeds.normal((2,), batch.draws).chunk(2)
                for i in range(len(better) if counts else 0):
                    key = (better[i, 0].item(), worse[i, 0].item())
                    value = (noise[0][i].tolist(), noise[1][i].tolist())
                    assert seen.setdefault(key, value) == value
    assert sorted(seen) == [(2.0, 100.0), (4.0, 0.0), (102.0, 104.0)]
    assert len({tuple(side) for value in seen.values() for side in value}) == 6
