"""An error in a user's code becomes one sentence with the innermost of the user's own lines."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from drover.common.errors import ConfigError
from drover.common.user_code import place, sentence
from drover.learner.objectives.ddpo import Ddpo


def module(folder: Path, source: str) -> ModuleType:
    path = folder / "mine.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_users_line_is_named_though_the_error_came_from_below_it(folder: Path) -> None:
    mine = module(folder, "import json\n\ndef f():\n    return json.loads('{')\n")
    said = sentence(raised(mine.f))
    assert said.startswith("JSONDecodeError: Expecting property name")
    assert said.endswith(" at mine.py:4")


def test_the_innermost_of_the_users_lines_is_the_one(folder: Path) -> None:
    mine = module(folder, "def f():\n    g()\n\ndef g():\n    {}['target']\n")
    assert sentence(raised(mine.f)) == "KeyError: 'target' at mine.py:5"


def test_a_call_of_ours_with_a_wrong_argument_is_the_users_line(folder: Path) -> None:
    source = (
        "from drover.learner.objectives.ddpo import Ddpo\ndef f():\n    return Ddpo(weights={'a': 1.0}, clips=1.0)\n"
    )
    assert sentence(raised(module(folder, source).f)).endswith("unexpected keyword argument 'clips' at mine.py:3")


def test_a_syntax_error_is_where_it_stands(folder: Path) -> None:
    error = raised(lambda: module(folder, "x = 1\ndef f(:\n"))
    assert sentence(error) == "SyntaxError: invalid syntax at mine.py:2"


def test_a_file_elsewhere_is_named_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    error = raised(module(tmp_path, "def f():\n    raise ValueError\n").f)
    assert sentence(error) == f"ValueError at {tmp_path / 'mine.py'}:2"


def test_of_a_long_message_the_first_line_is_told(folder: Path) -> None:
    error = raised(module(folder, "def f():\n    raise RuntimeError('\\n\\n  no room\\nand so on')\n").f)
    assert sentence(error) == "RuntimeError: no room at mine.py:2"


def test_lines_of_ours_and_of_libraries_are_no_place() -> None:
    with pytest.raises(ConfigError) as ours:
        Ddpo(weights={}, clip=1.0)
    assert "test_user_code.py:" in place(ours.value)
    ours.value.__traceback__ = ours.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert place(ours.value) == ""
    with pytest.raises(ValueError) as libraries:
        json.loads("{")
    libraries.value.__traceback__ = libraries.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert place(libraries.value) == ""
