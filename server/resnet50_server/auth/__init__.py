"""Who calls: identity, bearer tokens, TLS certificates, and reloading their files."""
