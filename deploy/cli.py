"""The `drover` command and its sub-commands. The parameters of a recipe are options; there are no other settings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drover.common.errors import ConfigError, DroverError
from drover.common.stopping import stop_on_signals
from drover.deploy import catalogue
from drover.deploy.views.output import tolerant

if TYPE_CHECKING:
    from drover.deploy.catalogue import RunOptions
    from drover.deploy.config import RunConfig
    from drover.deploy.run_folder.results import Resume, RunFolder

T = TypeVar("T")

_TILDE = re.compile(r"((?:--[\w-]+=)?)(~[\w.-]*(?:/.*)?)")

USAGE = """\
drover: fine-tune diffusion models with reinforcement learning, on a laptop or a cluster

From a first run to its pictures:
  drover doctor                        check this machine, its Ray and Redis, and name the fix of each problem
  drover recipes                       list the recipes
  drover train RECIPE --help           show a recipe's options with their defaults
  drover train RECIPE [--option ...]   train; RECIPE is a name from that list or a path/to/file.py:function of yours
  drover status [RUN]                  show how runs stand or ended
  drover train RECIPE --resume RUN     go on with a run that was stopped
  drover sample --model runs/RUN --prompts "a red circle"   draw pictures with the fine-tuned model

While a run trains on a cluster:
  drover plan RUN                      propose sizes for its pools, from its own measurements
  drover scale RUN --rollout 8         change its pools
  drover serve REWARD                  answer a reward over HTTP, for runs elsewhere
  drover redis-user RUN                print a Redis user with the rights that the run needs, and no others

To change drover itself:
  drover bench [NAME] [--quick]        measure, in a checkout of the repository

Every command takes --help. A run leaves runs/NAME/: summary.json, metrics.jsonl, curves.png, samples.png, checkpoints/
and the fine-tuned model."""


def main() -> None:
    """Run the command. Errors that a user can act on are one line; exit codes: 0 done, 1 failed, 2 misused, 130 interrupted."""
    arguments = [_with_home(word) for word in sys.argv[1:]]
    with tolerant() as out:
        code = _answer(arguments)
        if loss := out.loss():
            _complain(f"not all of the output could be written ({loss}); make room there, or send it elsewhere")
            trained = arguments[:1] == ["train"]  # its results are in the run folder, even if lines were lost
            code = code if trained else max(code, 1)
    sys.exit(code)


def _with_home(word: str) -> str:
    """Replace "~" in ``--runs-dir=~/runs`` and ``~/runs`` by the home's path: shells do not behind "=" and in quotes."""
    match = _TILDE.fullmatch(word)
    return match[1] + os.path.expanduser(match[2]) if match else word


def _answer(arguments: list[str]) -> int:
    """Run the command that the arguments name; return the exit code."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "recipes": _recipes,
        "train": _train,
        "sample": _sample,
        "status": _status,
        "scale": _scale,
        "plan": _plan,
        "serve": _serve,
        "redis-user": _redis_user,
        "doctor": _doctor,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        return _complain(f"there is no command {arguments[0]!r}; the commands are {', '.join(commands)}", code=2)
    try:
        return commands[arguments[0]](arguments[1:])
    except ConfigError as error:
        return _complain(str(error), code=2)
    except DroverError as error:
        return _complain(str(error), code=1)
    except KeyboardInterrupt:
        lost = "; updates after the newest checkpoint are lost" if arguments[0] == "train" else ""
        return _complain(f"interrupted{lost}", code=130)


def _complain(message: str, *, code: int = 1) -> int:
    """Print the message to stderr; return the exit code."""
    print(f"drover: {message}", file=sys.stderr)
    return code


def _recipes(arguments: list[str]) -> int:
    """Print the recipes, each with the first line of its docstring."""
    found = {name: shipped.sentence for name, shipped in catalogue.recipes().items()}
    as_text = "\n".join(f"{name}\n    {sentence}" for name, sentence in found.items())
    print(json.dumps(found, indent=2) if "--json" in arguments else as_text)
    return 0


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: drover train RECIPE [--option ...]; RECIPE is a path/to/file.py:function of yours or one of these:\n"
        )
        _recipes([])
        return 0 if arguments else 2
    recipe = catalogue.find(arguments[0])
    config, options = catalogue.parse(recipe, arguments[1:])
    return run(config, options)


@tolerant()
def run(config: RunConfig, options: RunOptions) -> int:
    """Train, and write the results into the run folder; return the exit code."""
    from drover.deploy.cluster.jobs import check_job
    from drover.deploy.run_folder import run_log
    from drover.deploy.run_folder.resuming import check_newest
    from drover.deploy.run_folder.summary import conclude, conclude_badly
    from drover.deploy.views import sinks
    from drover.deploy.views.last_words import last_words
    from drover.deploy.views.progress import progress_view

    started = time.monotonic()
    config.model.check()
    if not options.one_process:
        check_job(options.runs_dir)
    folder = _open_folder(config, options)
    if options.resume_if_begun and folder.finished:
        print(json.dumps(folder.read_summary(), indent=2) if options.json else f"{folder.path} is finished")
        return 0
    check_newest(config, folder.checkpoints)
    folder.summary.unlink(missing_ok=True)  # the summary of an earlier start is no longer true
    facts: dict[str, object] = {"run": folder.path.name, "recipe": config.recipe}
    prompts = dict.fromkeys(told for task in config.tasks if (told := getattr(task.prompts, "told", "")))
    if prompts and not options.json:
        print("\n".join(prompts))
    view = (
        _SilentView() if options.json else progress_view(folder.path.name, config.recipe, plain=options.plain or None)
    )
    try:
        with run_log.kept(folder.path), sinks.beside(view, options.log_to, folder, config) as told:
            watcher = _train_in_place(config, folder, told, stop_on_signals(), options)
    except BaseException as error:
        conclude_badly(folder, error, facts)
        raise
    facts |= {"ended": watcher.ended or "stopped", "command_s": round(time.monotonic() - started, 2)}
    summary = conclude(folder, facts)
    folder.release()
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        print("\n".join(["", *last_words(summary, folder.path)]))
    return 0 if watcher.ended == "finished" else 130


def _open_folder(config: RunConfig, options: RunOptions) -> RunFolder:
    """Return the run's folder: a new one, or that of a run that goes on. Raises `ConfigError`."""
    from drover.deploy.run_folder.results import RunFolder

    if options.resume and options.run_name not in ("", options.resume):
        raise ConfigError(
            f"--resume {options.resume} and --run-name {options.run_name}: a run keeps its name; drop one"
        )
    if options.resume_if_begun and not options.run_name:
        raise ConfigError("--resume-if-begun needs the run's name; pass --run-name")
    name = options.resume or options.run_name or f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    how: Resume = "must" if options.resume else "may" if options.resume_if_begun else "never"
    return RunFolder.create(name, options.runs_dir, resume=how)


def _train_in_place(
    config: RunConfig, folder: RunFolder, view: Any, stopping: Callable[[], bool], options: RunOptions
) -> Any:
    if options.one_process:
        from drover.common.metrics import NullMeter
        from drover.deploy import local

        return local.train(config, folder, view, NullMeter(), stopping)
    from drover.deploy.cluster import service as cluster
    from drover.deploy.cluster.monitor import Listen

    metrics = Listen(options.metrics_host, options.metrics_port)
    run = folder.path.name
    return cluster.train(config, folder, view, stopping, run=run, autoscale=options.autoscale, metrics=metrics)


class _SilentView:
    """The view of --json, which shows nothing while the run goes on."""

    def update(self, report: object) -> None: ...

    def __enter__(self) -> _SilentView:
        return self

    def __exit__(self, *_: object) -> None: ...


def _sample(arguments: list[str]) -> int:
    from drover.deploy.commands.sampling import SampleOptions, draw

    print(draw(_options(SampleOptions, "sample", arguments)))
    return 0


def _status(arguments: list[str]) -> int:
    from drover.deploy.views import status

    return status.run(_options(status.StatusOptions, "status", arguments))


def _scale(arguments: list[str]) -> int:
    from drover.deploy.cluster import scaling

    return scaling.run(_options(scaling.ScaleOptions, "scale", arguments))


def _plan(arguments: list[str]) -> int:
    from drover.deploy.planning import plan

    return plan.run(_options(plan.PlanOptions, "plan", arguments))


def _serve(arguments: list[str]) -> int:
    from drover.deploy.commands import serve

    return serve.run(_options(serve.ServeOptions, "serve", arguments))


def _redis_user(arguments: list[str]) -> int:
    from drover.deploy.commands import redis_user

    return redis_user.run(_options(redis_user.RedisUserOptions, "redis-user", arguments))


def _doctor(arguments: list[str]) -> int:
    from drover.deploy.commands import doctor

    end = arguments.index("--") if "--" in arguments else len(arguments)  # then come the recipe's own options
    options = _options(doctor.DoctorOptions, "doctor", arguments[:end])
    return doctor.run(replace(options, recipe=(*options.recipe, *arguments[end + 1 :])))


def _options(kind: type[T], command: str, arguments: list[str]) -> T:
    """Parse the command's options. Exits with help or usage errors as tyro prints them."""
    import tyro

    return tyro.cli(kind, prog=f"drover {command}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _bench(arguments: list[str]) -> int:
    """Run a benchmark of the current checkout in a process of its own, so that this process does not disturb its figures."""
    folder = Path("benchmarks")
    if not (folder / "measure.py").is_file():
        raise ConfigError("benchmarks come with the repository; go to the root of a checkout of drover first")
    names = sorted(
        path.stem if path.suffix else path.name
        for path in (*folder.glob("*.py"), *(main.parent for main in folder.glob("*/__main__.py")))
        if path.is_dir() or "def main(" in path.read_text()
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"drover bench NAME [--quick] [--json] [--out FILE]\nbenchmarks: {', '.join(names)}")
        return 0
    if arguments[0] not in names:
        raise ConfigError(f"there is no benchmark {arguments[0]!r}; there are {', '.join(names)}")
    return subprocess.run([sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]], check=False).returncode
