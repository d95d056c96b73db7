"""CIFAR-10: its layout, and where it comes from."""
