"""Parts of a running service are killed, cut off and halted, at random moments; what is learned must not differ by a bit."""
