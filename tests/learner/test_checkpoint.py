import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from common.errors import CheckpointError
from learner import fsdp
from learner.checkpoint import Checkpoints
from tests.learner.gloo import alone
from tests.learner.training import Rank


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture
def rank() -> Rank:
    rank = Rank("toy", None)
    rank.learn()
    return rank


def save(checkpoints: Checkpoints, rank: Rank, update: int, **state):
    return checkpoints.save(update, rank.module, rank.stepper.optimizer, state)


@contextmanager
def full_disk(room: int = 64) -> Iterator[None]:
    """No file can grow beyond ``room`` bytes, which writers see as they see a full disk: an OSError while writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_brings_weights_and_optimiser_back_bit_for_bit(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    folder = save(checkpoints, rank, 7, next_group=28, ledger={"issued": 3})
    assert checkpoints.newest() == folder == tmp_path / "update-000007"
    other = Rank("toy", None)
    state = checkpoints.load(folder, other.module, other.stepper.optimizer)
    assert (state["next_group"], state["ledger"]) == (28, {"issued": 3})
    for learner in (rank, other):
        learner.learn()
    assert torch.equal(other.weights()["b"], rank.weights()["b"])
    mine, theirs = (next(iter(learner.stepper.optimizer.state.values())) for learner in (rank, other))
    assert all(torch.equal(fsdp.full(mine[key]), fsdp.full(theirs[key])) for key in mine)


def test_before_the_first_step_a_checkpoint_holds_zero_moments(tmp_path):
    rank, other = Rank("toy", None), Rank("toy", None)
    folder = save(Checkpoints(tmp_path), rank, 0)
    Checkpoints(tmp_path).load(folder, other.module, other.stepper.optimizer)
    for learner in (rank, other):
        learner.learn()
    assert torch.equal(other.weights()["b"], rank.weights()["b"])


def test_only_the_newest_are_kept(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (9, 10, 11, 100):
        save(checkpoints, rank, update)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000011", "update-000100"]


def test_saving_an_update_again_replaces_it(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, rank, 3, note="first")
    rank.learn()
    folder = save(checkpoints, rank, 3, note="second")
    other = Rank("toy", None)
    assert checkpoints.load(folder, other.module, other.stepper.optimizer)["note"] == "second"
    assert torch.equal(other.weights()["b"], rank.weights()["b"])


def flip_a_byte(folder):
    shard = folder / "rank-0.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda folder: (folder / "rank-0.safetensors").write_bytes(b""),
        lambda folder: (folder / "rank-0.safetensors").unlink(),
        lambda folder: (folder / "state.json").write_text('{"ranks": 1, "chec'),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "state.json").unlink(),
    ],
    ids=["flipped byte", "empty shard", "no shard", "torn state", "foreign state", "no state"],
)
def test_when_the_newest_is_damaged_the_one_before_is_taken(rank, tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    older, newer = (save(checkpoints, rank, update) for update in (1, 2))
    assert checkpoints.newest() == newer
    damage(newer)
    assert checkpoints.newest() == older


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").newest() is None
    (tmp_path / "update-000004.partial").mkdir()
    (tmp_path / "update-000004.partial" / "state.json").write_text("{}")
    assert Checkpoints(tmp_path).newest() is None


@pytest.mark.parametrize("room", [64, 700], ids=["in the shard", "in the state"])
def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_stays(rank, tmp_path, room):
    checkpoints = Checkpoints(tmp_path)
    older = save(checkpoints, rank, 1)
    # The toy's shard takes about 500 bytes; a large state is what fails in the other case.
    with full_disk(room), pytest.raises(CheckpointError, match=r"update-000002 cannot be written.*free space"):
        save(checkpoints, rank, 2, note="x" * 1000)
    assert checkpoints.newest() == older
    newer = save(checkpoints, rank, 2)
    assert checkpoints.newest() == newer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000001", "update-000002"]


def test_where_no_folder_can_be_made_the_error_names_it(rank, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/update-000001 cannot be written"):
        save(Checkpoints(tmp_path / "file"), rank, 1)


class Wider(torch.nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.ones(shape)))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"b": (5, 2), "c": (3,)}, r"holds 1 tensors for a model with 2; missing \['c'\]"),
        ({"a": (5, 2)}, r"missing \['a'\], unknown \['b'\]"),
        ({"b": (6, 2)}, r"shape \(5, 2\) was saved where the model has \(6, 2\)"),
    ],
    ids=["more tensors", "other names", "other shape"],
)
def test_a_checkpoint_of_another_model_is_refused(rank, tmp_path, shapes, message):
    folder = save(Checkpoints(tmp_path), rank, 1)
    module = Wider(**shapes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).load(folder, module, torch.optim.AdamW(module.parameters()))
    assert all(bool((p == 1).all()) for p in module.parameters())


def test_the_files_hold_no_pickle(rank, tmp_path):
    folder = save(Checkpoints(tmp_path), rank, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.safetensors", "state.json"]
    assert json.loads((folder / "state.json").read_text())["ranks"] == 1
