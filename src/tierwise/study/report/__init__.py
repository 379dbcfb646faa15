"""Whole reports: the bench of routing, its tables and plots."""
