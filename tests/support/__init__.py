"""Shared by tests, benchmarks and fuzzing: servers, clients, weights, images, faults, fakes."""
