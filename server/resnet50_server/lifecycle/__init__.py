"""Variants in memory: registry, loader, control operations, directory watcher, devices."""
