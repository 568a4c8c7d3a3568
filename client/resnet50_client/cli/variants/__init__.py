"""`resnet50 variants`: the weights that servers hold, listed and changed."""
