"""Data: where the images come from, and how they become batches."""
