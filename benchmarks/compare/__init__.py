"""The same network behind other model servers: `make compare`."""
