"""Bulk runs over many images: their sources, a checkpoint, and outputs.

Shared by the command `resnet50` and by `resnet50_server.offline`; imports neither.
"""
