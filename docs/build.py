"""Build the documentation's site with Sphinx: python -m docs.build, or `make docs`.

python -m docs.build            build it into .cache/site; a dead link or an orphan page fails
python -m docs.build --serve    build it, and serve it on 127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / ".cache" / "site"


def build(source: Path = ROOT, site: Path = SITE, builder: str = "html") -> int:
    """Build the pages of a repository; print each warning.

    Args:
        source: Root of the repository.
        site: Directory for the result. Unchanged parts are reused in the next build.
        builder: Name of Sphinx's builder: "html", or "dummy" to check without writing.

    Returns:
        The exit code: 0, or 1 if there was a warning.
    """
    strict = ["--fail-on-warning", "--keep-going", "--quiet"]
    folders = ["--conf-dir", source / "docs", "--doctree-dir", f"{site}.doctrees", source, site]
    return build_main([*strict, "--jobs", "auto", "--builder", builder, *map(str, folders)])


def serve(port: int) -> None:
    """Serve the site on the loopback interface until it is interrupted."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main() -> int:
    """Build, and serve if that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve the site afterwards")
    parser.add_argument("--port", type=int, default=8000, help="port of 127.0.0.1")
    options = parser.parse_args()
    code = build()
    if code == 0:
        print(f"built {SITE / 'index.html'}")
        if options.serve:
            serve(options.port)
    return code


if __name__ == "__main__":
    sys.exit(main())
