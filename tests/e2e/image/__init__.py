"""The image, built and run by Podman: `make image`."""
