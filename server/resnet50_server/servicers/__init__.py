"""The RPCs: where gRPC meets the rest."""
