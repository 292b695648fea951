"""The reward server's loop: batches of groups in, measurements out."""
