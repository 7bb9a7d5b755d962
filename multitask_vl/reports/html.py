"""Self-contained HTML pages: templates, number formats and a content security policy."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from multitask_vl.errors import InputError
from multitask_vl.reports.table import MeanStd, Range, Value, format_value
from multitask_vl.storage.atomic import atomic_write

TEMPLATES_DIR = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """Render a template of this folder; every text in ``values`` is escaped.

    The page has one script, which only sorts and filters. The content security policy allows this script by its digest
    and no other, whatever text a run has written.
    """
    script = (TEMPLATES_DIR / "script.html").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return _environment().get_template(template).render(script=Markup(script), policy=policy, **values)


def write_page(out: Path, page: str) -> Path:
    """Write a page atomically.

    Raises:
        InputError: the folder of ``out`` does not exist.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out}: its folder does not exist. Run: mkdir -p {out.parent}")
    atomic_write(out, page)
    return out


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["format_value"] = functools.partial(format_value, minus="−", plus_minus=" ± ")
    environment.filters["sort_key"] = _sort_key
    return environment


def _sort_key(value: Value) -> str:
    """The number by which a browser sorts a table cell; empty for texts and missing values."""
    number = value.mean if isinstance(value, MeanStd) else value.low if isinstance(value, Range) else value
    return f"{number:.6g}" if isinstance(number, int | float) and number == number else ""
