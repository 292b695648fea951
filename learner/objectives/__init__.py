"""The objectives, a file for each paper: each turns measurements into credit, and batches into a loss."""
