"""Scripts that trained the models of this world."""
