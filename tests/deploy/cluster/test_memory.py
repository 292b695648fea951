"""An embedded Redis may take a quarter of the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drover.deploy.cluster import connection


def test_a_containers_limit_counts_where_it_is_below_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(connection, "CGROUP_LIMITS", (limit, tmp_path / "nothing"))
    assert connection.memory_bytes() == machine
    for written, wanted in (("max\n", machine), ("4096000\n", 4096000), (str(2**63), machine)):
        limit.write_text(written)
        assert connection.memory_bytes() == wanted
