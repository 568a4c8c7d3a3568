"""`python -m resnet50_gateway`, the same as `resnet50-gateway`."""

from .command import run

if __name__ == "__main__":
    run()
