"""One reward, one file: a frozen description with `name` and `load(device)`, and the scorer it loads."""
