"""The image, built and run by Podman as docs/how-to/deploy.md says for Docker: `make image`.

Both targets are built from the Dockerfile and .dockerignore as they are. Containers are started by
the page's `docker run` commands in a network namespace of their own, called with the SDK from
outside, and stopped. The exit code is 1 if a step or a check fails.

No registry is needed: `python:3.12-slim` is imitated by Debian's packages (debootstrap) and this
machine's CPython 3.12. If PyTorch's index of CPU builds cannot be reached, the target `cpu` gets
the packages of `torch-cuda.txt`.

Not a test of pytest: needs root, the packages podman, runc and debootstrap of Debian, and 14 GB
below `.cache/image`, where the layers are kept for the next run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.e2e.image import trial
from tests.e2e.image.engine import build, configure, import_base, layer_sizes

# As docs/how-to/deploy.md calls them.
TAGS = {"cpu": "localhost/resnet50-serving", "cuda": "localhost/resnet50-serving:cuda"}


def main() -> int:
    """Print the outcomes; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"default: {' '.join(TAGS)}")
    targets = parser.parse_args().targets or list(TAGS)
    if unknown := set(targets) - set(TAGS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(TAGS)}")
    configure()
    import_base()
    failed = False
    for target in targets:
        began = time.monotonic()
        print(f"{target}: building", flush=True)
        build(target, TAGS[target])
        for line in layer_sizes(TAGS[target]):
            print(f"  {line}", flush=True)
        print(f"{target}: containers", flush=True)
        command = [sys.executable, "-m", trial.__name__, target, TAGS[target]]
        failed |= subprocess.run(command).returncode != 0
        print(f"{target}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
