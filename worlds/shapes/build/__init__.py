"""The scripts that trained the models of this world."""
