"""Runs a training as processes: the driver, the pools of workers, the learner group, and their placement on nodes."""
