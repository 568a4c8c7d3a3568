"""Process-level parts: worker threads, CPU budget, file locks, fatal errors, log writing."""
