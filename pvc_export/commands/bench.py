"""`pvc-export bench`: selects the measurement from the options, and prints its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.terminal import one_of, print_json

from ..terminal.console import Console
from ..terminal.usage import refuse, usage_errors


def bench_command(bundle: Path | None, given: dict[str, Any], *, threads: int, as_json: bool) -> None:
    """Time a bundle, or compare variants of a part. `given` has every option by name, with None if it was left out.

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
    frames = given.pop("--frames") or 500
    refuse(given, "{} cannot be given with a BUNDLE, which is measured as it is")
    from ..bench.bundle import bench_bundle, describe_stream  # without torch

    report = bench_bundle(bundle, num_frames=frames, threads=threads, console=console)
    return report.to_json(), describe_stream(report)


def _compare(given: dict[str, Any], threads: int, console: Console) -> tuple[dict[str, Any], list[str]]:
    refuse({"--frames": given.pop("--frames")}, "{} needs a BUNDLE that streams them")
    from ..bench.compare import Bench
    from ..bench.language import LanguageBench
    from ..bench.vision import VisionBench

    parts: dict[str, type[Bench]] = {"vision": VisionBench, "language": LanguageBench}
    with usage_errors():
        asked = given.pop("--part")
        part = one_of("--part", "vision" if asked is None else asked, parts)
        if part == "language":
            refuse({name: given[name] for name in ("--window",)}, "{} cannot be given with --part language")
        else:
            refuse({"--past": given["--past"]}, "{} needs --part language")
        options = {name.removeprefix("--"): value for name, value in given.items() if value is not None}
        bench = parts[part](**options, threads=threads)
    report = bench.run(console)
    return bench.to_json(report), bench.describe(report)
