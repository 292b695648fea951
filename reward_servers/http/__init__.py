"""Rewards over HTTP: the endpoint of drover serve and its wire format."""
