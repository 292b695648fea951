"""The kinds of media: decoded samples, as rewards judge them and people see them. Each kind has a file."""
