"""Numbers about a model; no pictures."""
