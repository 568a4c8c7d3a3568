"""Contract `resnet50.v1`: see the .proto files beside this one."""
