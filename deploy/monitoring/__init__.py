"""Dashboards and alert rules, made from the metric declarations."""
