"""Measurements in, weights out. Knows no actor process and no reward implementation."""
