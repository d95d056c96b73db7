"""Reporting: show a run's metrics as pages, pictures and tables."""
