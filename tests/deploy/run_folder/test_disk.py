"""A full disk under a run's files gives one sentence with the path and the remedy, and no half-written file."""

from pathlib import Path

import pytest

from drover.common.errors import CheckpointError
from drover.common.metrics import NullMeter
from drover.deploy import local
from drover.deploy.run_folder.results import RunFolder
from tests.deploy.in_place import View, small


@pytest.mark.parametrize("name", ["before.npz", "toy.safetensors"])
def test_a_file_that_cannot_be_written_ends_the_run_with_its_path_and_leaves_no_draft(
    tmp_path: Path, name: str
) -> None:
    folder, view = RunFolder.create("run", tmp_path), View()
    (folder.path / name).mkdir()
    with pytest.raises(
        CheckpointError, match=rf"cannot write .*run/{name} \(Is a directory\); make it writable, then go"
    ):
        local.train(small(iterations=1), folder, view, NullMeter(), view.stopping)
    assert not [path.name for path in folder.path.iterdir() if "draft" in path.name]
