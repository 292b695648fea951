"""Weights by version, from the learner to the actors: one contract, several carriers."""
