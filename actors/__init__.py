"""Actors draw the samples that orders ask for. They know no reward and no objective."""
