"""Kills, cuts off and halts parts of a running service at random moments; the trained weights must not differ by a bit."""
