"""Fitting of preference models to the choices of raters."""
