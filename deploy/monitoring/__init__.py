"""Grafana dashboards and Prometheus alert rules, made from the metric declarations."""
