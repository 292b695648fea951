"""A run's folder: its files, its history, and the pictures that are drawn into it."""
