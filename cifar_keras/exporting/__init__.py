"""From a trained classifier to files that others run."""
