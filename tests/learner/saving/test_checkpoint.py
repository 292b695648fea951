import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from drover.common.errors import CheckpointError
from drover.learner import fsdp
from drover.learner.saving.checkpoint import Checkpoints
from drover.learner.saving.checkpoint_files import read_state
from drover.learner.saving.shards import HostBuffer, file_sum
from drover.learner.spec import OptimizerSpec
from tests.learner.gloo import ROOT, alone
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
    folder = checkpoints.save(update, rank.module, rank.stepper.optimizer, state)
    checkpoints.finish()
    return folder


@contextmanager
def full_disk(room: int = 64) -> Iterator[None]:
    """No file can grow beyond ``room`` bytes; to writers this is an OSError while writing, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_checkpoint_brings_weights_optimiser_and_average_back_bit_for_bit(tmp_path, ema):
    spec = OptimizerSpec(lr=1e-2, grad_clip=100.0, ema=ema)
    rank, other = Rank("toy", None, spec=spec), Rank("toy", None, spec=spec)
    rank.learn()
    checkpoints = Checkpoints(tmp_path)
    folder = save(checkpoints, rank, 7, next_group=28, ledger={"issued": 3})
    assert checkpoints.choose().folder == folder == tmp_path / "update-000007"
    state = checkpoints.load(folder, other.module, other.stepper.optimizer)
    assert (state["next_group"], state["ledger"]) == (28, {"issued": 3})
    for learner in (rank, other):
        learner.learn()
    assert torch.equal(other.weights()["b"], rank.weights()["b"])
    mine, theirs = (next(iter(learner.stepper.optimizer.state.values())) for learner in (rank, other))
    assert ("average" in mine) == bool(ema) and mine.keys() == theirs.keys()
    assert all(torch.equal(fsdp.full(mine[key]), fsdp.full(theirs[key])) for key in mine)


def test_before_the_first_step_a_checkpoint_holds_zero_moments_and_the_average_begins_with_the_first(tmp_path):
    spec = OptimizerSpec(lr=1e-2, grad_clip=100.0, ema=0.5)
    rank, other = Rank("toy", None, spec=spec), Rank("toy", None, spec=spec)
    folder = save(Checkpoints(tmp_path), rank, 0)
    Checkpoints(tmp_path).load(folder, other.module, other.stepper.optimizer)
    assert not other.stepper.average()
    for learner in (rank, other):
        learner.learn()
        assert learner.stepper.average()
    assert torch.equal(other.weights()["b"], rank.weights()["b"])


def test_an_update_made_while_a_checkpoint_is_written_is_not_in_it(rank, tmp_path):
    saved = rank.weights()["b"]
    checkpoints = Checkpoints(tmp_path)
    state = {"open": [1]}
    folder = checkpoints.save(1, rank.module, rank.stepper.optimizer, state)
    state["open"].append(2)
    rank.learn()
    checkpoints.finish()
    assert torch.equal(load_file(folder / "rank-0.safetensors")["weight/b"], saved)
    assert read_state(folder)["open"] == [1]


def test_only_the_newest_are_kept(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for update in (9, 10, 11, 100, 1_000_000):
        save(checkpoints, rank, update)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000100", "update-1000000"]
    assert checkpoints.choose().folder == tmp_path / "update-1000000"


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


def change_a_count(folder):
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"issued": 3', '"issued": 7'))


def write_state(content):
    return lambda folder: (folder / "state.json").write_bytes(content)


DAMAGES = [
    ("rank-0.safetensors does not fit its checksum", flip_a_byte),
    ("rank-0.safetensors does not fit", lambda folder: (folder / "rank-0.safetensors").write_bytes(b"")),
    ("rank-0.safetensors is missing", lambda folder: (folder / "rank-0.safetensors").unlink()),
    ("state.json is not JSON", write_state(b'{"state": {"ranks": 1, "chec')),
    ("state.json is not JSON", write_state(b"")),
    ("state.json is not JSON", write_state(b"\xff\xd8\xff")),
    ("state.json is not JSON", write_state(b"[" * 100_000)),
    ("state.json is no state of format", write_state(b"{}")),
    ("state.json is no state of format", write_state(b"[1, 2]")),
    ("state.json is no state of format", write_state(b"null")),
    ("state.json is of another version", write_state(b'{"format": 1, "checksum": 3, "state": "none"}')),
    ("state.json does not fit its checksum", write_state(b'{"format": 2, "checksum": 3, "state": "none"}')),
    ("state.json does not fit its checksum", change_a_count),
    ("state.json is missing", lambda folder: (folder / "state.json").unlink()),
]


@pytest.mark.parametrize(("trouble", "damage"), DAMAGES, ids=range(len(DAMAGES)))
def test_when_the_newest_is_damaged_the_one_before_is_taken_and_it_is_said(rank, tmp_path, trouble, damage):
    checkpoints = Checkpoints(tmp_path)
    older, newer = (save(checkpoints, rank, update, issued=3) for update in (1, 2))
    assert checkpoints.choose().folder == newer and checkpoints.choose().told == ()
    damage(newer)
    chosen = checkpoints.choose()
    assert chosen.folder == older
    (told,) = chosen.told
    assert told.startswith(f"checkpoint update-000002 is damaged ({trouble}")
    assert "going on from update-000001" in told


def test_damaged_ones_neither_count_as_kept_nor_push_out_what_is_saved_next(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    folders = [save(checkpoints, rank, update) for update in (10, 20, 30)]
    for folder in folders[1:]:
        flip_a_byte(folder)
    resumed = Checkpoints(tmp_path, keep=1)
    assert resumed.choose().folder == folders[0] and len(checkpoints.choose().told) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"update-000010", "update-000020.damaged", "update-000030.damaged"}
    save(resumed, rank, 11)
    assert {path.name for path in tmp_path.iterdir()} == {"update-000011"}


def test_when_all_are_damaged_the_error_names_each_and_touches_none(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for update in (1, 2):
        flip_a_byte(save(checkpoints, rank, update))
    with pytest.raises(
        CheckpointError, match=r"every checkpoint .*update-000002: .*update-000001: .* begin anew under"
    ):
        checkpoints.choose()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000001", "update-000002"]


def test_without_a_checkpoint_there_is_none_and_what_a_killed_writer_left_is_cleared(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").choose().folder is None
    left = tmp_path / "update-000004.123.partial"
    left.mkdir()
    (left / "rank-0.safetensors").write_text("half")
    assert Checkpoints(tmp_path).choose().folder is None
    assert not left.exists()


@pytest.mark.parametrize("room", [64, 700], ids=["in the shard", "in the state"])
def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_stays(rank, tmp_path, room):
    checkpoints = Checkpoints(tmp_path)
    older = save(checkpoints, rank, 1)
    # The toy's shard takes about 500 bytes; in the other case the large state does not fit.
    with full_disk(room), pytest.raises(CheckpointError, match=r"update-000002.*too large.*free space there"):
        save(checkpoints, rank, 2, note="x" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]
    assert checkpoints.choose().folder == older
    newer = save(checkpoints, rank, 2)
    assert checkpoints.choose().folder == newer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000001", "update-000002"]


def test_training_hears_of_a_failure_without_waiting_and_the_next_save_raises_it_too(rank, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with full_disk():
        checkpoints.save(2, rank.module, rank.stepper.optimizer, {})
        with pytest.raises(CheckpointError, match="cannot be written"):
            while True:
                checkpoints.check()
                time.sleep(0.01)
    with pytest.raises(CheckpointError, match="update-000002 cannot be written"):
        checkpoints.save(3, rank.module, rank.stepper.optimizer, {})
    save(checkpoints, rank, 4)


def test_where_no_folder_can_be_made_the_error_names_it(rank, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/update-000001 cannot be written"):
        save(Checkpoints(tmp_path / "file"), rank, 1)


SAVES = """
import sys, torch
from pathlib import Path
from drover.learner.saving.checkpoint import Checkpoints
from tests.learner.gloo import alone
with alone():
    module = torch.nn.ParameterDict({str(i): torch.ones(int(sys.argv[2])) for i in range(4)})
    checkpoints = Checkpoints(Path(sys.argv[1]))
    for update in range(1, 100):
        module["0"].data.fill_(update)
        checkpoints.save(update, module, torch.optim.AdamW(module.parameters()), {"update": update})
        if update == 1:
            checkpoints.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.0, 0.03, 0.1])
def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path, wait_s):
    """96 MB, killed from 0 to 100 ms after the second one was begun."""
    process = subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path), "2000000"], cwd=ROOT)
    while not list(tmp_path.glob("update-00000[2-9]*")):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(wait_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(tmp_path.glob("*.partial"))
    chosen = Checkpoints(tmp_path).choose()
    assert chosen.folder is not None and chosen.told == ()
    assert wait_s or left, "it was not killed in the middle"
    update = read_state(chosen.folder)["update"]
    assert chosen.folder.name == f"update-{update:06d}"
    tensors = load_file(chosen.folder / "rank-0.safetensors")
    assert (tensors["weight/0"] == update).all() and (tensors["weight/3"] == 1).all()
    assert not list(tmp_path.glob("*.partial"))


def test_a_shard_holds_tensors_of_any_width_and_is_read_by_the_library(tmp_path):
    tensors = {
        "half": torch.randn(3, 5).bfloat16(), "none": torch.empty(0, 4), "scalar": torch.tensor(7.0),
        "turned": torch.randn(4, 3).T, "count": torch.arange(3), "double": torch.randn(2, dtype=torch.float64),
    }  # fmt: skip
    path = tmp_path / "shard.safetensors"
    buffer = HostBuffer()
    for _ in range(2):  # the second time over the first
        assert buffer.copy(tensors).write(path) == file_sum(path)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_the_writing_thread_ends_with_the_checkpoint(rank, tmp_path):
    save(Checkpoints(tmp_path), rank, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


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
    assert json.loads((folder / "state.json").read_text())["state"]["ranks"] == 1
    copy = shutil.copytree(folder, tmp_path / "update-000009")
    assert Checkpoints(tmp_path).choose().folder == copy
