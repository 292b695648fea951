"""Write numbers with their nouns in text."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """``1 problem``, ``0.5 GPUs``, ``2 nodes``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
