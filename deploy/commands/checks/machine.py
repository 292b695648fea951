"""Checks this machine: Python and packages, the device, room on disk and in shared memory, ports on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from drover.deploy.commands.checks.finding import Finding

OLDEST_PYTHON = (3, 11)
ENOUGH_DISK = 5 << 30  # bytes; a checkpoint takes about four times the weights
ENOUGH_SHARED = 1 << 30  # bytes; Ray keeps published weights there
GB = 1e9


def python() -> list[Finding]:
    """Check the version of Python, and that every package that drover requires is there in a fitting version."""
    came = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("python", "problem", f"Python {came}", "make a new environment with Python 3.11 or newer")]
    missing = _unmet()
    if missing:
        fix = (
            "in a checkout: pip install --constraint constraints.txt . (the package drover of PyPI is another project)"
        )
        return [Finding("python", "problem", f"Python {came}, but {'; '.join(missing)}", fix)]
    return [Finding("python", "ok", f"Python {came}, every package in a version that drover takes")]


def _unmet() -> list[str]:
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires("drover-rl") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            came = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(came, prereleases=True):
            found.append(f"{wanted.name} is {came}, wanted {wanted.specifier}")
    return found


def device() -> list[Finding]:
    """List the GPUs that torch sees, with their memory. A GPU that torch cannot use is a problem."""
    import torch

    count = torch.cuda.device_count()
    if count:
        return [_gpu(number) for number in range(count)]
    build = f"torch {torch.__version__}"
    if Path("/dev/nvidia0").exists():
        has_cuda = torch.version.cuda is not None
        fix = (
            "update the NVIDIA driver, and see that CUDA_VISIBLE_DEVICES is not empty"
            if has_cuda
            else "install torch's CUDA build"
        )
        return [Finding("device", "problem", f"this machine has an NVIDIA GPU that {build} cannot use", fix)]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Finding("device", "ok", f"{build}, no GPU: roles compute on {threads} CPU cores")]


def _gpu(number: int) -> Finding:
    import torch

    try:
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        fix = "look at nvidia-smi; the driver and torch must fit"
        return Finding("device", "problem", f"GPU {number} does not answer: {str(error).splitlines()[0]}", fix)
    found = f"GPU {number}: {torch.cuda.get_device_name(number)}, {free / GB:.1f} of {total / GB:.1f} GB free"
    if free < total / 2:
        return Finding("device", "advice", found, "another process holds the rest; end it before a large run")
    return Finding("device", "ok", found)


def disk(runs_dir: Path) -> list[Finding]:
    """Check that run folders can be written, and that there is enough room."""
    there = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "make it writable, or name another place with --runs-dir"
        return [Finding("disk", "problem", f"cannot write in {there} ({error.strerror})", fix)]
    free = shutil.disk_usage(there).free
    found = f"{free / GB:.1f} GB free for {runs_dir}"
    if free < ENOUGH_DISK:
        fix = "make room, or name another place with --runs-dir; each checkpoint takes some four times the weights"
        return [Finding("disk", "problem", found, fix)]
    return [Finding("disk", "ok", found)]


def shared_memory(path: Path = Path("/dev/shm")) -> list[Finding]:
    """Check the room for Ray's object store, which is in shared memory; systems without that use files."""
    if not path.is_dir():
        return []
    usage = shutil.disk_usage(path)
    found = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB free in {path}"
    if usage.free < ENOUGH_SHARED:
        fix = "free it, or enlarge it: --shm-size of a container, an emptyDir with medium Memory in Kubernetes"
        return [Finding("shared memory", "problem", found, fix)]
    return [Finding("shared memory", "ok", found)]


def ports() -> list[Finding]:
    """Check that processes of this machine can listen on loopback and resolve its own name."""
    try:
        _listen()
    except OSError as error:
        fix = "bring up the loopback interface (ip link set lo up) and allow listening on it"
        return [Finding("ports", "problem", f"nothing can listen on 127.0.0.1 ({error.strerror})", fix)]
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        fix = f"add {name} to /etc/hosts, or set GLOO_SOCKET_IFNAME: several learner ranks need it to meet on CPUs"
        return [Finding("ports", "advice", f"this machine does not know its own name, {name}", fix)]
    return [Finding("ports", "ok", "free ports on 127.0.0.1; this machine knows its own name")]


def _listen() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        socket.create_connection(probe.getsockname(), 5.0).close()
