"""The shipped recipes: public functions that return a `RunConfig` and whose keyword parameters are options of the command line."""
