"""One recipe, one file: a function whose keyword parameters are its command-line options, returning a `RunConfig`."""
