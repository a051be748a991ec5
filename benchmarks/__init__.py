"""Measurements that take longer than a test; each prints its figures and names its command."""
