"""The command `resnet50-server`: serve, variants, tokens."""
