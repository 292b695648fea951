"""A user's project whose folders are called as drover's packages are. Its recipe imports from all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.end_to_end.service import RECIPES

FILES = {
    "common/__init__.py": "",
    "actors/__init__.py": "PAUSE_S = 0.05\n",
    "deploy/__init__.py": "",
    "deploy/sizes.py": "ITERATIONS = 40\n",
    "tests/__init__.py": "",
    "tests/limits.py": "LEASE_S = 2.0\n",
    "learner/__init__.py": "",
    "learner/judge.py": '''
from dataclasses import dataclass

from common.toys import SlowPoint
from drover.common.media.pictures import Pictures


@dataclass(frozen=True)
class Judge:
    """The slow point, whose pause is looked up in the process that scores."""

    name: str = "point"
    takes = Pictures

    def load(self, device: str):
        from actors import PAUSE_S

        return SlowPoint(PAUSE_S).load(device)
''',
    "mine.py": '''
from dataclasses import replace

from common.toys import slow_toy
from deploy.sizes import ITERATIONS
from drover.deploy.config import RunConfig
from learner.judge import Judge
from tests.limits import LEASE_S


def mine(*, iterations: int = ITERATIONS) -> RunConfig:
    """The slow toy, judged by a class of this project."""
    return replace(slow_toy(iterations=iterations, lease_s=LEASE_S), rewards=(Judge(),))
''',
}


def write_project(folder: Path) -> None:
    """``mine.py:mine`` and its packages; ``common/toys.py`` holds the toys of these tests."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    shutil.copy(RECIPES, folder / "common" / "toys.py")
