"""Fuzzing of decoding and parsing: `python -m fuzz.run`."""
