"""Carry weights by version from the learner to the actors: in memory, or through Ray's object store."""
