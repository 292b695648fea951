"""One paper, one file: how measurements become credit, and credit becomes a loss."""
