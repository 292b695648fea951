"""Predicts a run's pace at other pool sizes from its own measurements."""
