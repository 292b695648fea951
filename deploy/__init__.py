"""The command line, the configuration, the recipes, and the processes of a run. No other package imports this one."""
