"""What `drover doctor` looks at, a file for each place where things go wrong."""
