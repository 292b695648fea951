"""The rewards, a file for each: a frozen description with `name` and `load(device)`, and the scorer it loads."""
