"""gRPC model server for torchvision ResNet50 weights."""
