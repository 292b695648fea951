"""Models by folder or hub id."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drover.common.errors import ConfigError
from drover.common.hub import first_line, is_folder


def test_a_folder_is_told_from_a_hub_id_and_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert is_folder(str(tmp_path), "fix") and is_folder(tmp_path, "fix")
    assert not is_folder("openai/clip-vit-large-patch14", "fix") and not is_folder("a/model-1.5", "fix")
    with pytest.raises(ConfigError, match=r"model.safetensors' is a single file, wanted a folder; give a folder$"):
        is_folder(str(tmp_path / "model.safetensors"), "give a folder")
    for absent in ("nothing", "a/b/c", "models/model.safetensors", tmp_path / "gone", Path("a/b")):
        with pytest.raises(ConfigError, match=r"there is no checkpoint folder '.*'; give one$"):
            is_folder(absent, "give one")


def test_a_failure_is_told_in_its_first_line_or_by_its_class() -> None:
    assert first_line(ValueError("no weights in x.\nTry y:\n")) == "no weights in x"
    assert first_line(ValueError("  \n")) == "ValueError"


@pytest.mark.slow
def test_the_libraries_are_quiet_inside_the_block_alone_and_transformers_brings_no_diffusers() -> None:
    program = (
        "import sys\n"
        "from drover.common.hub import quiet_diffusers, quiet_transformers\n"
        "from transformers.utils import logging as theirs\n"
        "before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()\n"
        "with quiet_transformers():\n"
        "    print(theirs.get_verbosity(), theirs.is_progress_bar_enabled(), 'diffusers' in sys.modules)\n"
        "print((theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before)\n"
        "from diffusers.utils import logging as others\n"
        "with quiet_diffusers():\n"
        "    print(theirs.get_verbosity(), others.get_verbosity(), others.is_progress_bar_enabled())\n"
        "print((theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before, others.is_progress_bar_enabled())\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["40 False False", "True", "40 40 False", "True True"]
