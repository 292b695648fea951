"""A user's project with folders called as drover's packages are trains from anywhere, importing its own modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.own_project import write_project
from tests.end_to_end.service import Train, account

pytestmark = pytest.mark.service


def test_a_project_elsewhere_trains_on_the_service_with_its_own_modules(tmp_path: Path, shared: dict[str, str]) -> None:
    write_project(tmp_path / "project")
    recipe = f"{tmp_path / 'project' / 'mine.py'}:mine"
    with Train(recipe, "--iterations", "2", runs_dir=tmp_path, env=shared) as run:
        assert account(run.finish())["trained"] == 2 * 4
