"""Makes the Redis user of one run: a line for ACL SETUSER that allows drover's commands on the run's keys and nothing else.

The password stays in a file; the line has its SHA-256, with which nobody can log in.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import tyro

from drover.common.errors import ConfigError
from drover.common.secrets import from_file

# The commands that common/transport sends, and those that its scripts call: Redis checks both against the user.
COMMANDS = (
    "ping", "info", "script|load", "evalsha",
    "set", "get", "getrange", "unlink", "scan",
    "xadd", "xreadgroup", "xack", "xdel", "xtrim", "xlen", "xrange", "xrevrange",
    "xpending", "xclaim", "xautoclaim", "xgroup", "xinfo", "exists", "time",
)  # fmt: skip
TOKEN = "[0-9a-f]" * 8  # the token that each start of a run adds to its name; see `drover.deploy.cluster.service`
_RUN = re.compile(r"[\w.\-]{1,100}\*?", re.ASCII)


@dataclass(frozen=True)
class RedisUserOptions:
    """Print the ACL SETUSER line of a Redis user that can run drover's commands on the run's own keys only."""

    run: tyro.conf.Positional[str]
    """Name of the run, or the beginning of names with a star: "vision-*"."""
    password_file: Path
    """File with the user's password; if it is missing, it is made with a new password, readable for you only."""
    user: str = ""
    """Name of the user; default: drover-RUN."""


def run(options: RedisUserOptions) -> int:
    """Print the line; return the exit code."""
    print(setuser_line(options.run, password_of(options.password_file), user=options.user))
    return 0


def setuser_line(run: str, password: str, *, user: str = "") -> str:
    """Return the line "ACL SETUSER ..." for redis-cli. An ACL file has "user" in the place of its first two words."""
    if not _RUN.fullmatch(run):
        raise ConfigError(
            f"{run!r} names no run; use letters, digits, dots, dashes or underscores, and a star at the end"
        )
    user = user or f"drover-{run.removesuffix('*').rstrip('.-_') or 'all'}"
    if not _RUN.fullmatch(user) or "*" in user:
        raise ConfigError(f"{user!r} cannot be a user of Redis here; use letters, digits, dots, dashes or underscores")
    rights = " ".join(f"+{command}" for command in COMMANDS)
    digest = sha256(password.encode()).hexdigest()
    return f"ACL SETUSER {user} reset on #{digest} ~{key_pattern(run)} {rights}"


def key_pattern(run: str) -> str:
    """Return the pattern of the keys of runs with that name. It matches no other name that begins with it."""
    return f"drover:{run}" if run.endswith("*") else f"drover:{run}.{TOKEN}:*"


def password_of(path: Path) -> str:
    """Return the password in the file; without a file, make one with a new password."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}); give a path that you may write") from None
    return from_file(path, "--password-file")
