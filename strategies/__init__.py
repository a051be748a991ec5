"""Federated strategies, one file a method, its paper in the docstring."""
