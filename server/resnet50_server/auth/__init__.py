"""Authentication: caller identity, bearer tokens, TLS certificates, and their reload."""
