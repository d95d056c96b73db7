"""Benchmarks: the speed of this package next to plain Keras, PyTorch, and what the machine's matrix products allow."""
