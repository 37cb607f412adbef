"""Template engine of all pages: it escapes all text, and spells out control characters (text.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..terminal import numbers
from ..terminal.console import size_text
from . import figures, text


def fill(template: str, **content: Any) -> str:
    """Fill a template of this folder."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": numbers.number, "plain": numbers.plain, "share": numbers.share, "when": text.when}
    environment.filters["size"] = size_text
    environment.globals |= {"bar": figures.bar, "heat_figure": figures.heat_figure, "count": text.count}
    environment.globals |= {"drift_figure": figures.drift_figure, "interval_figure": figures.interval_figure}
    return environment


def _finalize(value: Any) -> Any:
    """Spell out control characters in a value before it is written into the page."""
    return value if isinstance(value, Markup) else text.clean(str(value))
