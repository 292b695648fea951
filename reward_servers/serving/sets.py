"""Check the sets of samples that a reward over sets judges together."""

from __future__ import annotations

from collections.abc import Sequence

from drover.common.errors import ScoringFailed


def members(sets: Sequence[slice], count: int) -> list[range]:
    """The rows of each set. Raises `ScoringFailed` unless the sets hold each of ``count`` samples once, because the value
    of a sample that is left out or shared would be unknown.
    """
    rows = [range(count)[each] for each in sets]
    if sorted(row for some in rows for row in some) != list(range(count)):
        raise ScoringFailed(f"the sets {list(sets)} do not hold each of {count} samples once")
    return rows
