"""Render pages from templates: every value is escaped unless it is markup already."""

import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("gradscope", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """Render a template, such as ``reporting/templates/page.html``, with ``values``."""
    return _environment().get_template(template).render(**values)


def source(name: str) -> Markup:
    """Read a script or style sheet, such as ``reporting/templates/page.css``, unchanged."""
    return Markup((resources.files("gradscope") / name).read_text(encoding="utf-8"))


def script_json(value: Any) -> Markup:
    """Encode ``value`` as JSON for a script element: nothing in it can end or open an element."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))
