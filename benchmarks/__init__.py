"""Benchmarks that measure the cost of drover and of other trainers side by side. Each module prints its figures."""
