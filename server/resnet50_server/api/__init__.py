"""The gRPC edge. Only this package imports grpc and the generated stubs."""
