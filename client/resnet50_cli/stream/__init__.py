"""`resnet50 stream`: frames of videos, cameras and folders."""
