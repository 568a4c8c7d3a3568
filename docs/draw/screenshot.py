"""Screenshots of the HTML report of `resnet50 bench`, in light and dark: `make screenshots`.

Chromium takes them. Each file says in its text `source` which report it shows, so that a stale one
is found without a browser.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from resnet50_bench import report
from resnet50_bench.result import Bench

from .bench import DATA

IMAGES = Path(__file__).resolve().parents[1] / "images"
ROOT = IMAGES.parents[1]
# Chromium's names of the two modes.
MODES = {"light": 1, "dark": 0}
SIZE = (1180, 1380)
# The tables are left out: docs/images/bench.svg shows them.
PLOTS_ALONE = "<style>h2:not(figure h2), table, .note, details { display: none }</style>"
# The report's text and style; its plots are drawn anew by each matplotlib.
SOURCES = (
    DATA,
    ROOT / "client" / "resnet50_bench" / "report.html",
    ROOT / "client" / "resnet50_cli" / "report.html",
)


def source() -> str:
    """Return the digest of all that determines the report."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in SOURCES)).hexdigest()


def path_of(mode: str) -> Path:
    """Return the screenshot of a mode, "light" or "dark"."""
    return IMAGES / f"bench-report-{mode}.png"


def take(chromium: str) -> None:
    """Take the screenshots.

    Raises:
        subprocess.CalledProcessError: Chromium failed.
        OSError: There is no Chromium, or it took none.
    """
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "report.html", Path(folder) / "shot.png"
        shown = report.page(Bench.load(DATA)).replace("</head>", f"{PLOTS_ALONE}</head>", 1)
        page.write_text(shown, encoding="utf-8")
        for mode, number in MODES.items():
            subprocess.run(
                [
                    chromium,
                    *("--headless", "--no-sandbox", "--hide-scrollbars"),
                    f"--user-data-dir={folder}/{mode}",
                    f"--blink-settings=preferredColorScheme={number}",
                    f"--window-size={SIZE[0]},{SIZE[1]}",
                    f"--screenshot={shot}",
                    page.as_uri(),
                ],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            facts = PngInfo()
            facts.add_text("source", source())
            with Image.open(shot) as image:
                image.convert("RGB").save(path_of(mode), pnginfo=facts, optimize=True)
            print(f"wrote {path_of(mode).name}")


def stale() -> list[str]:
    """Return the names of the screenshots that show another report, or are missing."""
    names = []
    for path in map(path_of, MODES):
        shown = None
        if path.exists():
            with Image.open(path) as image:
                shown = image.info.get("source")
        if shown != source():
            names.append(path.name)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m docs.draw.screenshot", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--chromium", default="chromium", help="the browser's command")
    take(parser.parse_args().chromium)
