"""Serve rewards over HTTP: the endpoint of drover serve, its wire format, and a client."""
