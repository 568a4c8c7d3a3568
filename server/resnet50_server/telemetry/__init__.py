"""Metrics, tracing, logging and the HTTP port for scrapes; listeners to events."""
