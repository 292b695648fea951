"""Commands that only say something import no library that takes long to import: time itself is not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drover.deploy import catalogue

SLOW = ("torch", "diffusers", "transformers", "ray", "matplotlib")
THIRD_PARTY = (*SLOW, "numpy", "pyarrow", "PIL", "rich", "tyro", "prometheus_client")

SCRIPT = """
import sys
from drover.deploy import cli
try:
    cli.main()
except SystemExit as left:
    print("exit code", left.code)
print("imported", *sorted(name for name in sys.modules if "." not in name))
"""


def told(folder: Path, *arguments: str) -> tuple[str, int, set[str]]:
    """(the command's output, its exit code, the modules that it has imported)."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    *said, code, imported = done.stdout.splitlines()
    return "\n".join(said) + done.stderr, int(code.split()[-1]), set(imported.split())


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("--help",), "drover train RECIPE", 0),
        (("recipes",), "toy_ddpo\n    Move the end point", 0),
        (("train",), "toy_ddpo\n    Move the end point", 2),
        (("train", "toy_dpo"), "did you mean toy_ddpo?", 2),
        (("trian",), "there is no command", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_list_of_commands_or_recipes_needs_the_standard_library_alone(tmp_path, arguments, says, code):
    said, ended, imported = told(tmp_path, *arguments)
    assert says in said and ended == code
    assert imported & set(THIRD_PARTY) == set()


def test_the_status_of_runs_imports_no_library_that_is_slow(tmp_path):
    run = tmp_path / "runs" / "young"
    run.mkdir(parents=True)
    said, code, imported = told(tmp_path, "status", "young")
    assert "young: lost: " in said and code == 0
    assert imported & set(SLOW) == set()


@pytest.mark.parametrize("command", ["sample", "status", "scale", "plan", "serve", "redis-user"])
def test_the_help_of_a_command_imports_no_library_that_is_slow(tmp_path, command):
    said, code, imported = told(tmp_path, command, "--help")
    assert f"usage: drover {command}" in said and code == 0
    assert imported & set(SLOW) == set()


@pytest.mark.parametrize("recipe", catalogue.recipes())
def test_the_help_of_a_recipe_imports_no_library_that_is_slow(tmp_path, recipe):
    said, code, imported = told(tmp_path, "train", recipe, "--help")
    assert f"usage: drover train {recipe}" in said and code == 0
    assert imported & set(SLOW) == set()
