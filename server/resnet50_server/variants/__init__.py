"""Definitions of weight variants: checkpoints, download, network, directory. No runtime state."""
