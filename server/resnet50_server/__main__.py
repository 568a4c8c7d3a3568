"""`python -m resnet50_server` is the command `resnet50-server`."""

from resnet50_server.cli.main import run

if __name__ == "__main__":
    run()
