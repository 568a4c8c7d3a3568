"""Configuration of the documentation's site: `make docs` builds it with Sphinx.

The source directory is the repository's root, so that pages may link to README, CONTRIBUTING and
CHANGELOG, and to files that are no pages (these become downloads). Pages are plain Markdown that
GitHub shows as well; the navigation is here instead of in them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
VERSION = ROOT / "client" / "resnet50_client" / "_version.py"

# Pages below a page, by caption. A page that is missing here fails `make docs`.
NAVIGATION: dict[str, dict[str, list[str]]] = {
    "docs/index": {
        "Tutorials": [
            "docs/tutorials/first-classification",
            "docs/tutorials/serve-your-checkpoint",
            "docs/tutorials/video",
            "docs/tutorials/kubernetes",
        ],
        "How to call the server": [
            "docs/how-to/install",
            "docs/how-to/call-from-a-web-service",
            "docs/how-to/bulk",
            "docs/how-to/embed-millions-offline",
            "docs/how-to/vector-stores",
            "docs/how-to/stream-video",
            "docs/how-to/preprocess-at-the-client",
            "docs/how-to/http",
            "docs/how-to/open-inference-protocol",
            "docs/how-to/weaviate",
            "docs/how-to/other-languages",
            "docs/how-to/test-an-application",
            "docs/how-to/examples",
            "docs/how-to/faq",
        ],
        "How to serve weights": [
            "docs/how-to/serve",
            "docs/how-to/import-a-checkpoint",
            "docs/how-to/evaluate",
            "docs/how-to/upgrade-weights",
            "docs/how-to/canary-and-shadow",
            "docs/how-to/migrate-from-triton",
            "docs/how-to/migrate-from-torchserve",
        ],
        "How to operate a server": [
            "docs/how-to/deploy",
            "docs/how-to/helm",
            "docs/how-to/kserve",
            "docs/how-to/load-balance",
            "docs/how-to/ray",
            "docs/how-to/size-a-deployment",
            "docs/how-to/tune-latency-and-throughput",
            "docs/how-to/run-on-a-gpu",
            "docs/how-to/use-the-response-cache",
            "docs/how-to/secure",
            "docs/how-to/monitor",
            "docs/how-to/watch-live",
            "docs/how-to/console",
            "docs/how-to/trace",
            "docs/how-to/load-test",
            "docs/how-to/troubleshoot",
        ],
        "Reference": [
            "docs/reference/settings",
            "docs/reference/helm-values",
            "docs/reference/command-line",
            "docs/reference/sdk",
            "docs/reference/grpc",
            "docs/reference/http",
            "docs/reference/errors",
            "docs/reference/exit-codes",
            "docs/reference/limits",
            "docs/reference/formats",
            "docs/reference/variant-format",
            "docs/reference/variants-file",
            "docs/reference/metrics",
            "docs/reference/spans",
            "docs/reference/compatibility",
            "docs/reference/versioning",
            "docs/reference/glossary",
        ],
        "Explanation": [
            "docs/explanation/architecture",
            "docs/explanation/batching-and-deadlines",
            "docs/explanation/streaming",
            "docs/explanation/model-verification",
            "docs/explanation/traffic-splits",
            "docs/explanation/response-cache",
            "docs/explanation/cuda-engine",
            "docs/explanation/threat-model",
            "docs/explanation/fault-model",
        ],
        "Measurements": [
            "docs/benchmarks/results",
            "docs/benchmarks/results-amx",
            "docs/benchmarks/comparison",
            "docs/benchmarks/reliability",
            "docs/benchmarks/scale-out",
        ],
        "Project": ["CHANGELOG", "CONTRIBUTING", "SECURITY", "docs/adr/README"],
    },
    "docs/reference/sdk": {
        "Python SDK": [
            "docs/reference/sdk-client",
            "docs/reference/sdk-results",
            "docs/reference/results",
            "docs/reference/sdk-images",
            "docs/reference/streams",
            "docs/reference/sdk-tools",
        ],
    },
    "docs/adr/README": {
        "Records": sorted(
            str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("docs/adr/0*.md")
        )
    },
}

project = "resnet50-serving"
release = version = re.findall(r'__version__ = "(.+)"', VERSION.read_text())[0]
author = "the authors of resnet50-serving"
project_copyright = author
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
include_patterns = ["docs/**.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
# Directories that have no pages, so that they are not searched for some.
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]

# Anchors of all headings are those of GitHub.
myst_heading_anchors = 6
# Quotation marks of values, such as "bulk", stay as they are typed.
smartquotes = False
# Examples of output are shortened by an ellipsis, which is no JSON or TOML.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_permalinks_icon = "#"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs of a console


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append hidden tables of contents to a page of `NAVIGATION`, before it is parsed."""
    for caption, pages in NAVIGATION.get(docname, {}).items():
        listed = "\n".join(f"/{page}" for page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def unlink_directories(app: Sphinx, doctree: nodes.document) -> None:
    """Replace links to directories, which GitHub lists and a site cannot, by their text."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(pending_xref)):
        if (folder / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def copy_screenshots(app: Sphinx, error: Exception | None) -> None:
    """Copy the images of `<picture>` elements, which Sphinx does not see, beside the pages."""
    if error is None and app.builder.format == "html":
        images = Path(app.outdir) / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for path in ROOT.glob("docs/images/*.png"):
            shutil.copy(path, images)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above to the build."""
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", unlink_directories)
    app.connect("build-finished", copy_screenshots)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
