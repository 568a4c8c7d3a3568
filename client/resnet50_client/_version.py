"""The version of the SDK, of its command line and of the server: one distribution."""

__version__ = "0.1.0"
