"""Backbones, their pretrained weights, and the classifier built on them."""
