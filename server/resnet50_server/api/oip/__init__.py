"""The Open Inference Protocol v2 over gRPC, beside the server's own contract."""
