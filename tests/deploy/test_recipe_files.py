"""A user's own recipe file: found from any folder with what lies beside it, and told of in one sentence where it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import Drover
from tests.deploy.in_place import one_line

HEAD = "from drover.deploy.config import RunConfig\nfrom tests.deploy.in_place import small\n"
REWARD = """
from dataclasses import dataclass
from typing import ClassVar
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores


@dataclass(frozen=True)
class Near:
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str):
        from my_distance import distance  # only where it is needed

        return lambda prompts, media: Scores([-distance(image) for image in media.pixels])
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of one test's files are none of another's."""
    for name in ("my_reward", "my_distance"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def beside(folder: Path) -> None:
    """A recipe, the reward beside it, and beside that a module that only a loading reward imports."""
    folder.mkdir(exist_ok=True)
    (folder / "my_reward.py").write_text(REWARD)
    (folder / "my_distance.py").write_text("def distance(image):\n    return float(image.mean())\n")
    source = (
        "from my_reward import Near\n\ndef mine() -> RunConfig:\n    return small(rewards=(Near(),), iterations=2)\n"
    )
    (folder / "mine.py").write_text(HEAD + source)


@pytest.mark.parametrize("where", ["mine.py", "kod/mine.py"])
def test_modules_beside_a_recipe_are_found_from_any_folder(drover: Drover, tmp_path: Path, where: str) -> None:
    beside((tmp_path / where).parent)
    code, out, err = drover("train", f"{where}:mine", "--one-process", "--plain", "--run-name", "a")
    assert code == 0, err
    assert "2 updates" in out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import no_such_module\n",
            "mine.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module' at mine.py:3; ",
        ),
        ("def mine(:\n", "mine.py cannot be imported: SyntaxError: invalid syntax at mine.py:3"),
        ("raise SystemExit(3)\n", "mine.py cannot be imported: SystemExit: 3 at mine.py:3"),
        ("x = 1 / 0\n", "mine.py cannot be imported: ZeroDivisionError: division by zero at mine.py:3"),
        (
            "def mine() -> RunConfig:\n    small(iterations=2)\n",
            "mine.py:mine returned None; end it with `return RunConfig(...)`",
        ),
        (
            "def mine() -> RunConfig:\n    return {'lr': 1}\n",
            "mine.py:mine returned a dict; end it with `return RunConfig(...)`",
        ),
        ("def mine() -> RunConfig:\n    return small\n", "mine.py:mine returned a function; end it with"),
        ("def mine() -> RunConfig:\n    return small({}['a'])\n", "mine.py:mine failed: KeyError: 'a' at mine.py:4"),
        (
            "def mine() -> RunConfig:\n    return RunConfig(lr=1)\n",
            "got an unexpected keyword argument 'lr' at mine.py:4",
        ),
        (
            "def mine(*, n=3) -> RunConfig:\n    return small()\n",
            "mine.py:mine: its parameter n has no type; write it as n: int = 3",
        ),
        (
            "def mine(*, n: 'Number' = 3) -> RunConfig:\n    return small()\n",
            "mine.py:mine: NameError: name 'Number' is not defined",
        ),
    ],
    ids=[
        "missing import",
        "syntax",
        "exit",
        "raises",
        "None",
        "dict",
        "function",
        "key",
        "argument",
        "untyped",
        "unknown type",
    ],
)
def test_a_recipe_that_fails_is_one_sentence_with_the_line(
    drover: Drover, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(HEAD + source)
    code, _, err = drover("train", "mine.py:mine", "--one-process")
    assert code == 2, err
    assert said in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_what_a_module_beside_it_raises_is_told_with_that_modules_line(drover: Drover, tmp_path: Path) -> None:
    beside(tmp_path)
    (tmp_path / "my_reward.py").write_text("import math\nmath.sqrt(-1)\n")
    code, _, err = drover("train", "mine.py:mine")
    assert code == 2
    assert one_line(err).endswith("ValueError: math domain error at my_reward.py:2\n")


def test_a_mistake_of_drovers_own_keeps_its_traceback(drover: Drover, monkeypatch: pytest.MonkeyPatch) -> None:
    from drover.deploy.recipes import toy_ddpo

    monkeypatch.setattr(toy_ddpo, "ToyModel", None)
    with pytest.raises(TypeError):
        drover("train", "toy_ddpo", "--one-process")


def test_a_process_that_never_loaded_the_file_unpickles_what_its_neighbours_made(tmp_path: Path) -> None:
    beside(tmp_path)
    (tmp_path / "mine.py").write_text("from my_reward import Near\n\ndef mine():\n    return Near()\n")
    made = [sys.executable, "-c", MAKES, str(tmp_path / "mine.py"), str(tmp_path / "pickled")]
    subprocess.run(made, check=True, cwd="/")
    read = [sys.executable, "-c", READS, str(tmp_path / "pickled")]
    read_again = subprocess.run(read, check=True, cwd="/", capture_output=True, text=True)
    assert read_again.stdout == "Near(name='point') -2.0\n"


MAKES = """
import pickle, sys
from pathlib import Path
from drover.deploy.user_file import Portable, load
Path(sys.argv[2]).write_bytes(pickle.dumps(Portable(load(sys.argv[1], "mine")())))
"""
READS = """
import pickle, sys
from pathlib import Path
import numpy as np
from drover.common.media.pictures import Pictures
near = pickle.loads(Path(sys.argv[1]).read_bytes()).value
print(near, near.load("cpu")(["a"], Pictures(np.full((1, 2, 2, 3), 2, np.uint8))).values[0])
"""
