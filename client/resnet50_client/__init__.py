"""Python SDK of the ResNet50 model server."""
