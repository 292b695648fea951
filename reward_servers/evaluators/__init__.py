"""Fit preference models to the choices of raters."""
