"""Small worlds whose truth is known exactly, for training and testing without a reward network."""
