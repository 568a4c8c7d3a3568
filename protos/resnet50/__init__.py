"""Generated messages and stubs of the resnet50 protos."""
