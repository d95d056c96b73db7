"""CIFAR-10: its layout, its sources, and its other test sets."""
