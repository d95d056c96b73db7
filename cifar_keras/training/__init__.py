"""Training: plan the phases of a run, fit them, save checkpoints, and log the progress."""
