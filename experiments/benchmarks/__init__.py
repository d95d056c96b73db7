"""How fast we are, beside plain Keras, PyTorch, and what the machine's matrix products allow."""
