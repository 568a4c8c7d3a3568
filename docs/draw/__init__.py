"""Draws the pictures of docs/images from text and simulations: `make pictures`."""
