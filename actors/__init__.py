"""Prompts in, samples out. Knows no reward and no objective."""
