"""Checkpoints: their contents, their files, and the progress of the run that they hold."""
