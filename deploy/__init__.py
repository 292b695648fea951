"""The composition root: configuration, recipes, where roles run, the command line. Nobody imports it."""
