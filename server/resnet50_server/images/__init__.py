"""Bytes to uint8 pixels: formats and their limits, guarded decoding, raw frames, transform."""
