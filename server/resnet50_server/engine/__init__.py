"""Engines: what turns a batch of decoded images into probabilities and embeddings."""
