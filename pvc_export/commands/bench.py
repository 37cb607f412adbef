"""`pvc-export bench`: which measurement the options ask for, and what is printed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from engines.terminal import one_of, print_json

from ..terminal.console import Console


def bench_command(bundle: Path | None, given: dict[str, Any], *, threads: int, as_json: bool) -> None:
    """Time a bundle, or compare variants of a part. `given` are the options that were given, by name.

    Raises BadParameter for options that contradict each other, before any work.
    """
    console = Console(quiet=as_json)
    if bundle is None:
        data, lines = _compare(given, threads, console)
    else:
        data, lines = _time_bundle(bundle, given, threads, console)
    if as_json:
        print_json(data)
    for line in lines:
        console.print(line)


def _time_bundle(
    bundle: Path, given: dict[str, Any], threads: int, console: Console
) -> tuple[dict[str, Any], list[str]]:
    frames = given.pop("frames", 500)
    _refuse(given, *given, message="a BUNDLE is measured as it is: {} cannot be given with it")
    from ..bench.bundle import bench_bundle, describe_stream  # without torch

    report = bench_bundle(bundle, num_frames=frames, threads=threads, console=console)
    return report.to_json(), describe_stream(report)


def _compare(given: dict[str, Any], threads: int, console: Console) -> tuple[dict[str, Any], list[str]]:
    _refuse(given, "frames", message="{} needs a BUNDLE to stream them through")
    from ..bench.compare import Bench
    from ..bench.language import LanguageBench
    from ..bench.vision import VisionBench

    parts: dict[str, type[Bench]] = {"vision": VisionBench, "language": LanguageBench}
    try:
        part = one_of("--part", given.pop("part", "vision"), parts)
        if part == "language":
            _refuse(given, "window", "skip", message="{} cannot be given with --part language")
        else:
            _refuse(given, "past", message="{} needs --part language")
        bench = parts[part](**given, threads=threads)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    report = bench.run(console)
    return bench.to_json(report), bench.describe(report)


def _refuse(given: dict[str, Any], *names: str, message: str) -> None:
    if wrong := [f"--{name}" for name in given if name in names]:
        raise typer.BadParameter(message.format(", ".join(wrong)))
