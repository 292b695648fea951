"""One import name: the wheel and the editable install both make `drover`, and no other name, importable."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"actors", "common", "deploy", "learner", "reward_servers", "worlds"}


def test_every_package_of_drover_is_a_folder_of_the_root() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "src" / "drover").iterdir() if path.is_symlink()}
    assert links == {name: ROOT / name for name in FOLDERS}


@pytest.mark.slow
def test_the_wheel_installs_one_name_and_every_file_of_the_folders(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # a build writes files into the folder that it builds
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path), str(tree)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("drover_rl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"drover"}
    python = {f"drover/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert python <= set(names)
    for kind in ("unet/diffusion_pytorch_model.safetensors", "alerts.yml", "drover-learning.json", "raycluster.yaml"):
        assert any(name.endswith(kind) for name in names), kind


def test_the_packages_are_not_importable_by_their_bare_names(tmp_path: Path) -> None:
    script = f"import importlib.util; print([name for name in {sorted(FOLDERS)} if importlib.util.find_spec(name)])"
    result = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
