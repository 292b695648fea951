"""Benchmarks of other trainers. They run unmodified, in environments of their own, on drover's weights, prompts and rewards."""
