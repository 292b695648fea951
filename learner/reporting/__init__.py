"""The reports and statistics that rank 0 sends about a run."""
