"""The reward server's loop, which scores groups in batches and puts measurements."""
