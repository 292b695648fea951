"""Media: samples as rewards judge them and people see them. One kind, one file."""
