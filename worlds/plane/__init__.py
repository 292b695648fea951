"""A chain of five Gaussian steps in the plane: the smallest policy, whose best outcome is known."""
