"""Evaluation: compute numbers about a model. The pictures are in `reporting`."""
