"""End-to-end trials with programs of others."""
