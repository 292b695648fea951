"""Files are written whole or not at all, and a disk that refuses is one sentence."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from drover.common.errors import CheckpointError
from drover.common.files import is_lfs_pointer, replacing, write_whole


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writes beyond that size fail, after a part of them was written: as on a full disk, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with files_limited_to(1000), pytest.raises(CheckpointError, match=r"cannot write .*file \(File too large\); free"):
        write_whole(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    write_whole(path, b"y" * 2000)
    assert path.read_bytes() == b"y" * 2000


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "gone" / "a", tmp_path / "file" / "a"):
        with pytest.raises(CheckpointError, match=r"cannot write .*a \(No such file.*make it|.*a \(Not a dir.*make it"):
            write_whole(path, b"")


def test_a_folder_is_replaced_when_the_block_ends_well_and_stays_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with replacing(target) as written:
        (written / "a").write_text("1")
    with pytest.raises(KeyError), replacing(target) as written:
        (written / "b").write_text("2")
        raise KeyError
    assert [entry.name for entry in target.iterdir()] == ["a"]
    with replacing(target) as written:
        (written / "c").write_text("3")
    assert [entry.name for entry in target.iterdir()] == ["c"]
    assert [entry.name for entry in target.parent.iterdir()] == ["folder"]


def test_a_folder_of_tensors_that_does_not_fit_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with (
        files_limited_to(1000),
        pytest.raises(CheckpointError, match=r"cannot write .*model \(.*too large.*go on with --resume"),
        replacing(target) as written,
    ):
        save_file({"weight": torch.zeros(1000)}, written / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_note_that_git_leaves_for_a_large_file_is_told_from_its_content() -> None:
    assert is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 33\n")
    assert not is_lfs_pointer(b"version 2 of a prompt")
