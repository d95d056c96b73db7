"""Disk and network; no TensorFlow."""
