"""The command line over the SDK (extra `[cli]`)."""
