"""Load the networks that several rewards share."""
