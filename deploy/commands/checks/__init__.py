"""The checks of `drover doctor`: machine, recipe, Redis and Ray, a file each."""
