"""Exporting: from a trained classifier to files that other programs run."""
