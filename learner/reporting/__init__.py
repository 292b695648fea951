"""What rank 0 reports about a run."""
