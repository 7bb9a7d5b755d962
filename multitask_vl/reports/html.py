"""How do values become an HTML page that needs no other file: templates, number formats, the one script it may run."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from multitask_vl.errors import InputError
from multitask_vl.reports.table import Range, Spread, Value, cell
from multitask_vl.storage.atomic import write_whole

HERE = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """A template of this folder as a page; every text in ``values`` is shown as it is.

    The page's script only sorts and filters what is there: nothing is lost without it. Its digest stands in the page's
    policy, so that a browser runs no other, whatever texts a run has left.
    """
    script = (HERE / "script.html").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return _environment().get_template(template).render(script=Markup(script), policy=policy, **values)


def write_page(out: Path, page: str) -> Path:
    """Write a page whole; InputError where its folder does not exist."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: its folder does not exist. Run: mkdir -p {out.parent}")
    write_whole(out, page)
    return out


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda value, kind="score": cell(value, kind, minus="−", plus_minus=" ± ")
    environment.filters["sort_key"] = _sort_key
    return environment


def _sort_key(value: Value) -> str:
    """What a browser sorts a cell by: a number, or nothing for texts and gaps."""
    number = value.mean if isinstance(value, Spread) else value.low if isinstance(value, Range) else value
    return f"{number:.6g}" if isinstance(number, int | float) and number == number else ""
