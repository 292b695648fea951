from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drover.common.errors import WrongRecipe
from drover.common.transport.memory import MemoryBroker
from drover.learner.batches import Fetcher, count_terms, divide
from drover.learner.ranks import Iteration
from drover.worlds.plane.policy import ToyChain, toy_kernel
from tests.learner.made_up import credit, record, recorded

STEPS = (0, 1, 3)


def iteration(*weights, blobs=None):
    blobs = MemoryBroker("batcher").blobs() if blobs is None else blobs
    groups = [
        recorded(ToyChain(), toy_kernel(), blobs, g, samples=len(row), steps=STEPS) for g, row in enumerate(weights)
    ]
    return Iteration(tuple(groups), tuple(credit(*row) for row in weights)), blobs


def fetcher(blobs, batch_size=4):
    return Fetcher(ToyChain(), toy_kernel(), blobs, device="cpu", batch_size=batch_size)


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
    assert sorted(row for shares in by_rank for share in shares for row in share.rows) == rows
    assert len({len(shares) for shares in by_rank}) == 1
    of_updates = []
    for shares in zip(*by_rank, strict=True):
        sizes = [len(share.rows) for share in shares]
        of_updates.append(sum(sizes))
        assert max(sizes) - min(sizes) <= 1
        assert len({share.num_batches for share in shares}) == 1
        for share in shares:
            batches = list(fetcher(blobs, batch_size).batches(made, share))
            assert len(batches) == share.num_batches
            assert sum(len(batch.x) for batch, counts in batches if counts) == len(share.rows) * len(STEPS)
            assert all(len(batch.x) == 1 for batch, counts in batches if not counts)
    assert not of_updates or max(of_updates) - min(of_updates) <= 1


def test_nothing_to_learn_means_no_step():
    made, _ = iteration([0.0, 0.0], [0.0, 0.0])
    assert divide(made, updates=2, ranks=2, rank=0, batch_size=4) == []


def test_the_mean_is_over_valid_samples_and_their_steps_also_those_of_weight_zero():
    made, _ = iteration([1.0, 0.0, -1.0], [0.0, 0.0])
    credits = (made.credits[0], credit(0.0, 0.0, counted=[True, False]))
    assert count_terms(credits, made.groups) == (3 + 1) * len(STEPS)


def test_micro_batches_hold_exactly_what_was_sampled():
    made, blobs = iteration([1.0, 0.0, -3.0], [0.5, 0.25])
    (share,) = divide(made, updates=1, ranks=1, rank=0, batch_size=5)
    batches = [batch for batch, _ in fetcher(blobs, 5).batches(made, share)]
    originals = [record(ToyChain(), toy_kernel(), g, samples=n, steps=STEPS) for g, n in ((0, 3), (1, 2))]
    wanted = [(g, row, k) for g, row in share.rows for k in range(3)]
    assert [len(batch.x) for batch in batches] == [5, 5, 2]
    for name in ("x", "x_next", "log_prob", "time", "next_time", "weight"):
        got = torch.cat([getattr(batch, name) for batch in batches])
        for position, (g, row, k) in enumerate(wanted):
            original = originals[g]
            states = original.states[row]
            truth = {
                "x": states[original.before[k]], "x_next": states[original.after[k]],
                "log_prob": original.log_probs[row, k, 0], "time": original.times[k],
                "next_time": original.next_times[k], "weight": made.credits[g].weights[row],
            }[name]  # fmt: skip
            assert torch.equal(got[position], torch.as_tensor(truth).to(got.dtype)), (name, g, row, k)


def test_a_rank_fetches_the_rows_it_trains_and_no_other_byte():
    weights = [1.0] * 8
    made, blobs = iteration(weights, weights)
    one_row = (4 * 2 * 5 + 4 * len(STEPS), made.groups[0].transitions.states.shape)
    assert one_row[1] == (8, 5, 2)  # steps 0, 1 and 3 touch the states 0, 1, 2, 3 and 4
    read = []
    for rank in range(4):
        (share,) = divide(made, updates=1, ranks=4, rank=rank, batch_size=64)
        fetch = fetcher(blobs, 64)
        list(fetch.batches(made, share))
        read.append(fetch.bytes_read)
        assert fetch.bytes_read == len(share.rows) * one_row[0] == 4 * 52
    whole = sum(ref.nbytes for g in made.groups for ref in (g.transitions.states, g.transitions.log_probs))
    assert sum(read) == whole


def test_rows_of_weight_zero_are_not_computed():
    made, blobs = iteration([0.0, 2.0, 0.0, 0.0])
    (share,) = divide(made, updates=1, ranks=1, rank=0, batch_size=8)
    fetch = fetcher(blobs, 8)
    ((batch, counts),) = fetch.batches(made, share)
    assert counts and batch.weight.tolist() == [2.0] * 3
    assert fetch.bytes_read == 52


def test_a_rank_without_rows_runs_one_example_that_does_not_count():
    made, blobs = iteration([1.0])
    (share,) = divide(made, updates=1, ranks=2, rank=0, batch_size=8)
    assert share.rows == () and share.num_batches == 1
    ((batch, counts),) = fetcher(blobs, 8).batches(made, share)
    assert not counts and len(batch.x) == 1


def test_several_updates_take_disjoint_rows():
    made, _ = iteration([1.0] * 5, [1.0] * 6)
    shares = divide(made, updates=3, ranks=1, rank=0, batch_size=4)
    counts = Counter(row for share in shares for row in share.rows)
    assert len(counts) == 11 and set(counts.values()) == {1}
    assert sorted(len(share.rows) for share in shares) == [3, 4, 4]


@pytest.mark.parametrize("fields", [{"times": (4, 3, 2)}, {"next_times": (3, 2, 1)}], ids=["times", "next times"])
def test_steps_through_other_times_are_refused(fields):
    made, blobs = iteration([1.0, -1.0])
    group = made.groups[0]
    other = replace(made, groups=(replace(group, transitions=replace(group.transitions, **fields)),))
    (share,) = divide(other, updates=1, ranks=1, rank=0, batch_size=4)
    with pytest.raises(WrongRecipe, match="an actor stepped through times"):
        list(fetcher(blobs).batches(other, share))


@pytest.mark.parametrize("ranks", [1, 2])
def test_updates_by_step_take_every_sample_at_one_recorded_step_each(ranks):
    made, blobs = iteration([1.0, 0.0, -1.0], [0.5, -0.5])
    seen = []
    for rank in range(ranks):
        shares = divide(made, updates=3, ranks=ranks, rank=rank, batch_size=8, by="steps")
        assert [share.steps for share in shares] == [(0,), (1,), (2,)]
        for share in shares:
            for batch, counts in fetcher(blobs, 8).batches(made, share):
                seen += [(share.steps[0], t) for t in batch.time.tolist()] if counts else []
    times = toy_kernel().times(ToyChain().schedule)
    assert Counter(seen) == {(k, times[step]): 4 for k, step in enumerate(STEPS)}
