"""Other trainers, run unmodified in environments of their own, on the same weights, prompts and rewards as drover."""
