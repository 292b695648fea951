"""Runs every test, in two processes beside each other: ``python -m tests ARGS``, where ARGS are pytest's.

Tests of whole services mostly wait for processes to start and to be replaced; meanwhile the other tests compute. Each of
the two processes starts its own services, on free ports and in temporary folders. The output of the service tests is shown
as it comes, the output of the others at the end. ARGS that name files under tests/ are given to one process.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from pytest import ExitCode

SERVICES = "tests/end_to_end"
PYTEST = (sys.executable, "-m", "pytest", "-q")


def main(arguments: Sequence[str]) -> int:
    """pytest's exit code."""
    if any(argument.startswith("tests/") for argument in arguments):
        return subprocess.call([*PYTEST, *arguments])
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches both, and each ends the processes it has started
    with tempfile.TemporaryFile() as later:
        others = subprocess.Popen([*PYTEST, f"--ignore={SERVICES}", *arguments], stdout=later, stderr=subprocess.STDOUT)
        # A cache of its own: each process writes down at its end which of its tests failed.
        services = subprocess.call([*PYTEST, SERVICES, "-o", "cache_dir=.pytest_cache/services", *arguments])
        print(f"\ndrover: the tests of services have ended with exit code {services}; the other tests:", flush=True)
        others.wait()
        later.seek(0)
        shutil.copyfileobj(later, sys.stdout.buffer)
    print(f"drover: exit codes {services} (services) and {others.returncode} (others)")
    return verdict(services, others.returncode)


def verdict(*codes: int) -> int:
    """The first code of a failure; else 0, or pytest's code for no tests where no process had one."""
    good = (ExitCode.OK, ExitCode.NO_TESTS_COLLECTED)
    return next((code for code in codes if code not in good), min(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
