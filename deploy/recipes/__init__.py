"""The shipped recipes: public functions that return a `RunConfig`; their keyword parameters are options of the command line."""
