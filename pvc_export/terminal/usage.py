"""Usage errors of commands: one line above the usage, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import typer

from engines.errors import SpecError
from engines.spec import Precision

Made = Literal["trt", "onnx", "kit"]
"""Result of an export: a bundle with engines, a bundle without, or a kit, whose engines are built on the device."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn ValueError and SpecError from the block, about values of options, into a usage error."""
    try:
        yield
    except (ValueError, SpecError) as error:
        raise typer.BadParameter(str(error)) from error


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Raise BadParameter if any of these options was given. Their names replace the braces in `why`."""
    if wrong := [name for name, value in options.items() if value not in (None, [])]:
        raise typer.BadParameter(why.format(", ".join(wrong)))


def one_precision(**given: bool) -> Precision | None:
    """Whichever of --fp16, --bf16 and --fp32 was given, or None. Raises BadParameter for two."""
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} contradict each other; give one")
    return cast("Precision", chosen[0]) if chosen else None
