"""Two learner processes on gloo do what one does."""

import pytest
import torch

from learner.checkpoint import Checkpoints
from tests.learner.gloo import alone, run_ranks
from tests.learner.training import Rank

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["toy", "lora"])
def test_two_ranks_learn_what_one_learns_and_each_reads_the_others_checkpoint(model, tiny_folder, tmp_path):
    pipeline = {"pipeline": str(tiny_folder)} if model == "lora" else {}
    task = {"model": model, "iterations": 1, "save": str(tmp_path / "two"), "weights": str(tmp_path / "w.pt"), **pipeline}
    first, second = run_ranks(2, task, tmp_path)
    assert first["sums"] == second["sums"]
    assert first["stats"] == second["stats"]
    theirs = torch.load(tmp_path / "w.pt", weights_only=True)
    with alone():
        one = Rank(model, tiny_folder)
        before = one.weights()
        stats = one.learn()
        mine = one.weights()
        moved = max((mine[name] - before[name]).abs().max().item() for name in mine)
        assert moved > 1e-3
        for name, weight in mine.items():
            assert torch.allclose(theirs[name], weight, rtol=1e-6, atol=1e-6 * moved), name
        for mine_s, (loss, norm, ratio) in zip(stats, first["stats"], strict=True):
            assert norm == pytest.approx(mine_s.grad_norm, rel=1e-5)
            assert loss == pytest.approx(mine_s.loss, rel=1e-4, abs=1e-7)
            assert ratio == pytest.approx(mine_s.watched["ratio"], abs=1e-6)

        # Written by two, read by one.
        reader, two = Rank(model, tiny_folder), Checkpoints(tmp_path / "two")
        folder = two.newest()
        assert sorted(p.name for p in folder.glob("rank-*")) == ["rank-0.safetensors", "rank-1.safetensors"]
        assert two.load(folder, reader.module, reader.stepper.optimizer)["note"] == "kept"
        assert all(torch.equal(weight, theirs[name]) for name, weight in reader.weights().items())

        # Written by one, read by two; both go on alike.
        Checkpoints(tmp_path / "one").save(5, one.module, one.stepper.optimizer, {"note": "kept"})
        one.learn()
    again = {"model": model, "iterations": 1, "load": str(tmp_path / "one"), "weights": str(tmp_path / "w2.pt"), **pipeline}
    first, second = run_ranks(2, again, tmp_path)
    assert first["state"]["note"] == "kept" and first["sums"] == second["sums"]
    theirs = torch.load(tmp_path / "w2.pt", weights_only=True)
    with alone():
        for name, weight in one.weights().items():
            assert torch.allclose(theirs[name], weight, rtol=1e-6, atol=1e-6), name


def test_ranks_agree_on_what_rank_0_gathered_and_on_sums(tmp_path):
    for answer in run_ranks(2, {"model": "toy", "iterations": 0}, tmp_path):
        credits = [[[0.5, -0.25], [True, True]], [[1.0], [False]]]
        assert answer["shared"] == [[3, 4], credits, False, True]
        assert answer["ranks summed"] == [2.0, 1.0]
