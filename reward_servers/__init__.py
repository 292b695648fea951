"""Media in, measurements out. Knows no training."""
