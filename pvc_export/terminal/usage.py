"""Errors in how a command was called: one line above its usage, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import typer

from engines.errors import SpecError
from engines.spec import Precision

Made = Literal["trt", "onnx", "kit"]
"""What an export makes: a bundle with engines, one without, or a folder for a device, which builds them itself."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """What the block finds wrong with the values of options, by ValueError or SpecError, is an error of usage."""
    try:
        yield
    except (ValueError, SpecError) as error:
        raise typer.BadParameter(str(error)) from error


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Raises BadParameter if one of these options was given: has a value. Their names go where `why` has braces."""
    if wrong := [name for name, value in options.items() if value not in (None, [])]:
        raise typer.BadParameter(why.format(", ".join(wrong)))


def one_precision(**given: bool) -> Precision | None:
    """The one of --fp16, --bf16 and --fp32 that was given; None if none was. Raises BadParameter for two."""
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} contradict each other; give one")
    return cast("Precision", chosen[0]) if chosen else None
