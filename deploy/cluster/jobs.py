"""Refuses runs that would lose their results inside a job of ``ray job submit``.

Ray runs the job's command on the head node, in a copy of the submitted folder that it deletes some time after the job.
The command has the environment of the head node, not that of the person who submitted it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from drover.common.errors import ConfigError
from drover.deploy.cluster.connection import REDIS_URL

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of every job's command
COPIES = "working_dir_files"  # the folder of Ray's copies


def in_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the command of a submitted job."""
    return JOB in environ


def check_job(runs_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` for a job that would lose its results, or whose Redis other nodes could not reach."""
    if not in_job(environ):
        return
    where = Path(runs_dir).resolve()
    if COPIES in where.parts:
        raise ConfigError(
            f"the results of this job would be deleted with Ray's copy of its folder ({where}); pass --runs-dir with an "
            "absolute path on storage that the head and the learner's nodes share"
        )
    if not environ.get(REDIS_URL):
        raise ConfigError(
            f"{REDIS_URL} is not set where jobs run; put it into the environment of the head node's `ray start` (a job "
            "does not see the environment it is submitted from), with a Redis that every node reaches"
        )
