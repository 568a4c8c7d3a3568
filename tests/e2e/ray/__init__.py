"""Servers and bulk runs on a real Ray cluster."""
