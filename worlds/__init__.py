"""Small worlds in which the truth about a sample is known exactly, for training and testing without a reward network."""
