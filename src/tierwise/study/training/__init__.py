"""Estimators: fitted on outcome tables, kept as artefacts."""
