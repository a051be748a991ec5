"""Populations, the run that trains and evaluates them, and its report."""
