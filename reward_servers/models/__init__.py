"""Loading of the networks that several rewards share."""
