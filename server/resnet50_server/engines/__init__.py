"""Engines compute batches of uint8 pixels into probabilities and embeddings."""
