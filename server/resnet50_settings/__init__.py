"""Settings of a command, shared by the server and the gateway: groups, flags, error messages."""
