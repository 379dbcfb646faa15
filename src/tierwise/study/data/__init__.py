"""Outcome tables: read, checked, gathered from journals, and whom to believe."""
