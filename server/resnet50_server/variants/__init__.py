"""Variants: their specs, checkpoints, download, network and directory. No runtime state."""
