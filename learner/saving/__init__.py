"""Checkpoints: what is saved, in which files, and the progress that they hold."""
