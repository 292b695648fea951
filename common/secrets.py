"""Read passwords and tokens from an environment variable, or a file that one names. They are never options and never logged."""

from __future__ import annotations

import os
import re
from pathlib import Path

from drover.common.errors import ConfigError

FILE = "_FILE"  # VARIABLE_FILE names a file, as mounted secrets are
MAX_BYTES = 4096
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def from_environment(variable: str) -> str:
    """The value of ``variable``, or the content of the file that ``variable``_FILE names; "" where neither is set.

    Raises `ConfigError`, which never shows the secret.
    """
    plain, path = os.environ.get(variable, ""), os.environ.get(variable + FILE, "")
    if plain and path:
        raise ConfigError(f"{variable} and {variable}{FILE} are both set; unset one of them")
    if path:
        return from_file(path, f"{variable}{FILE}")
    return checked(plain, variable) if plain else ""


def from_file(path: str | Path, said_by: str) -> str:
    """The secret in a file of one line. ``said_by`` names the option or variable that gave the path, for errors."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{said_by} names the file {str(path)!r}, which cannot be read ({error.strerror}); correct the path or its rights"
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{said_by} names the file {str(path)!r}, which is larger than {MAX_BYTES} bytes: no secret")
    return checked(content.decode("latin-1").strip("\r\n"), f"the file of {said_by}")


def checked(secret: str, where: str) -> str:
    """Return the secret if it has the form of one. Raises `ConfigError` otherwise."""
    if not _PRINTABLE.fullmatch(secret):
        state = "holds spaces, line ends or characters outside ASCII" if secret else "is empty"
        raise ConfigError(f"a secret is taken from {where}, which {state}; make it one word of printable ASCII")
    return secret
