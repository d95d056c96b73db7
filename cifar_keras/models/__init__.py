"""Models: the backbones, their pretrained weights, and the classifier built on a backbone."""
