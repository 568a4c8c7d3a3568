"""Reports of commands as self-contained HTML pages, made from Jinja templates."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill a template; all values are escaped, except `markupsafe.Markup`.

    Templates extend `resnet50_cli/report.html`, which defines the style.

    Args:
        template: Path of the template from the folder of its package, e.g.
            "resnet50_bench/report.html".
        values: Values by name; the template may use no others.

    Raises:
        jinja2.UndefinedError: The template uses a value that is not given.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _source(path: str) -> str:
    package, _, name = path.rpartition("/")
    return resources.files(package.replace("/", ".")).joinpath(name).read_text("utf-8")
