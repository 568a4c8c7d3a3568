"""Tests, and what they share: see `support`."""
