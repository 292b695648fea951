"""A run as processes: the driver, the pools of workers, the learner group, and where each of them is placed."""
