"""Resources for 1, 100 and 10,000 cameras, simulated from one stream's service times and checked on the real scheduler.

python -m apps.scale BUNDLE            measures, runs and simulates: the tables of docs/scale.md
python -m apps.scale --times FILE      only simulates, with times measured or estimated elsewhere
"""

from __future__ import annotations

import json
import os
import platform
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from engines.bundle import open_bundle
from engines.errors import BundleError, PVCError
from engines.terminal import fail, print_json

from .fleet import KIB, MOST_DROPPED, Fleet, Sizes, fleet, most_cameras
from .load import Load, Outcome
from .measured import clip, measure, measure_snapshot, run
from .simulation import Rules, ServiceTimes, cost, simulate

MIB = 1 << 20
FLEETS = (1, 100, 10_000)
COLUMNS = (
    "utilisation",
    "dropped",
    "frame_p50_ms",
    "frame_p99_ms",
    "first_token_p50_ms",
    "first_token_p99_ms",
    "failed",
)
HEADINGS = ("busy", "dropped", "frame p50, ms", "p99", "first token p50, ms", "p99", "answers cut")
PACKAGES = ("numpy", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Results for one number of cameras.

    alone  simulated with the times of a single stream, measured just before
    true   measured on the scheduler; None if it was not run
    beside simulated with those times multiplied by `slower`: how much longer the same work took in the run
    """

    cameras: int
    alone: Outcome
    true: Outcome | None = None
    beside: Outcome | None = None
    slower: float = 1.0

    def to_json(self) -> dict[str, Any]:
        outcomes = {"alone": self.alone, "true": self.true, "beside": self.beside}
        figures = {name: outcome.figures() for name, outcome in outcomes.items() if outcome is not None}
        return {"cameras": self.cameras, "slower": self.slower, **figures}


def rows(folder: Path | None, times: ServiceTimes | None, told: Namespace) -> Iterator[tuple[Row, ServiceTimes]]:
    """One row per number of cameras. With a bundle, times are measured again before each, since machines fluctuate."""
    bundle = None if folder is None else open_bundle(folder, trust_engines=told.trust_engines)
    frames = clip() if bundle is not None else []
    for cameras in told.cameras:
        load = replace(told.load, cameras=cameras)
        measured = times if bundle is None else measure(bundle, frames)
        assert measured is not None
        row = Row(cameras=cameras, alone=simulate(measured, load, told.rules))
        if bundle is not None:
            true = run(bundle, load, frames)
            slower = true.busy / cost(measured, true)
            beside = simulate(measured.scaled(slower), load, told.rules)
            row = replace(row, true=true, beside=beside, slower=slower)
        yield row, measured


def sizes_of(told: Namespace) -> Sizes:
    """Sizes of a bundle's streams, or those given as options. The caches count twice: a stream that re-anchors prepares
    its next episode alongside the current one."""
    if told.bundle is None:
        return Sizes(
            state=told.state_mib * MIB, snapshot=told.snapshot_mib * MIB, picture=told.jpeg_kib * KIB, open=told.open_s
        )
    bundle = open_bundle(told.bundle, trust_engines=told.trust_engines)
    limits = bundle.manifest.limits
    state = 2 * sum(spec.state_bytes(limits) for spec in bundle.manifest.graphs.values())
    snapshot = measure_snapshot(bundle, clip())
    return Sizes(state=state, snapshot=snapshot.num_bytes, picture=told.jpeg_kib * KIB, open=snapshot.open)


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *lines))


def compared(found: Sequence[Row]) -> str:
    """A table of simulated and measured figures: each cell has `alone / beside / true`, or `alone` without a run."""
    lines = []
    for row in found:
        outcomes = [each.figures() for each in (row.alone, row.beside, row.true) if each is not None]
        cells = [" / ".join(_cell(column, figures[column]) for figures in outcomes) for column in COLUMNS]
        lines.append([str(row.cameras), f"{row.slower:.2f}", *cells])
    return table(("cameras", "slower", *HEADINGS), lines)


def needed(fleets: Sequence[Fleet]) -> str:
    lines = [
        [
            f"{each.cameras:,}", f"{each.processes:,}", _bytes(each.state_bytes), f"{_bytes(each.picture_rate)}/s",
            f"{_bytes(each.snapshot_rate)}/s", f"{each.handover:.2g} s",
        ]
        for each in fleets
    ]  # fmt: skip
    headings = ("cameras", "processes", "caches", "pictures in", "snapshots out", "a process handed over")
    return table(headings, lines)


def _cell(column: str, value: float) -> str:
    if column == "failed":
        return f"{value:.0f}"
    if column in ("utilisation", "dropped"):
        return f"{value:.1%}" if column == "dropped" else f"{value:.0%}"
    return "-" if value != value else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def environment() -> dict[str, Any]:
    """The context of the figures: processor, cores, versions, the machine's load beforehand, date."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions, "load_before": before, "date": date}


def main() -> int:
    told = _parser().parse_args()
    if (told.bundle is None) == (told.times is None):
        _parser().error("give either BUNDLE or --times FILE")
    try:
        told.load = Load(
            cameras=1, fps=told.fps, questions=told.questions, seconds=told.seconds, save_every=told.save_every
        )
    except ValueError as error:
        _parser().error(str(error))
    told.rules = Rules(most=told.most, is_batched=told.most > 1)
    try:
        _tell(told)
    except (PVCError, OSError) as error:
        return fail(error, as_json=told.json)
    return 0


def _tell(told: Namespace) -> None:
    about, found, all_times = environment(), list[Row](), list[ServiceTimes]()
    given = None if told.times is None else _read(told.times)
    sizes = sizes_of(told) if told.bundle is not None or told.state_mib else None
    for row, measured in rows(told.bundle, given, told):
        found.append(row)
        all_times.append(measured)
        if not told.json:
            print(f"{row.cameras} cameras done", file=sys.stderr, flush=True)
    times = sorted(all_times, key=lambda each: mean(each.frame))[len(all_times) // 2]
    most = most_cameras(times, replace(told.load, seconds=max(60.0, told.seconds)), told.rules)
    fleets = [] if sizes is None or not most else [
        fleet(cameras, times, told.load, sizes, per_process=most) for cameras in FLEETS
    ]  # fmt: skip
    if told.json:
        print_json({
            "environment": about, "load": asdict(told.load), "times": times.to_json(), "per_process": most,
            "rows": [row.to_json() for row in found], "fleets": [each.to_json() for each in fleets],
            "sizes": sizes and asdict(sizes),
        })  # fmt: skip
        return
    print(f"{_heading(told, about)}\n")
    print(f"One stream alone, ms (median of {len(all_times)} measurements): {times.summary()}\n\n{compared(found)}\n")
    print(
        f"One process serves {most} cameras: at most {MOST_DROPPED:.1%} of frames dropped, and p99 below the time "
        "between frames.\n"
    )
    if fleets:
        print(needed(fleets))


def _heading(told: Namespace, about: dict[str, Any]) -> str:
    """The origin of the figures: this machine, or a file."""
    if told.times is not None:
        return f"simulated only, with the times in {told.times}"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    load = about["load_before"]
    before = "" if load is None else f"; load {load:.1f} before the run"
    return f"{about['cpu']}, {about['cores']} cores, {versions}{before}; {about['date']}"


def _read(path: Path) -> ServiceTimes:
    """Read service times from a file. Raises BundleError if it has none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return ServiceTimes.from_json(data.get("times", data) if isinstance(data, dict) else {})
    except ValueError as error:
        raise BundleError(
            f"{path} does not contain service times: {error}",
            expected='times in seconds, such as {"frame": [0.01], "ingest": 0.002, "begin": [0.01], "token": [0.002]}',
            fix="measure them from a bundle: python -m apps.scale BUNDLE --json > FILE",
        ) from error


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(each) for each in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2,4") from error
    if min(numbers) < 1:
        raise ArgumentTypeError("expected numbers of cameras of 1 or more")
    return numbers


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m apps.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder made by pvc-export")
    parser.add_argument("--times", type=Path, metavar="FILE", help="service times as JSON, instead of BUNDLE")
    parser.add_argument(
        "--cameras", type=_numbers, default=[1, 2, 4, 8, 16], help="numbers of cameras; default: 1,2,4,8,16"
    )
    parser.add_argument("--fps", type=float, default=4.0, help="frames per second per camera; default: 4")
    parser.add_argument("--questions", type=float, default=6.0, help="questions per minute per camera; default: 6")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each run; default: 20")
    parser.add_argument("--save-every", type=int, default=8, help="frames between snapshots, 0: none; default: 8")
    parser.add_argument("--most", type=int, default=1, help="in the simulation: streams per pass; default: 1")
    parser.add_argument(
        "--jpeg-kib", type=int, default=60, help="size of a frame on the network, an estimate; default: 60"
    )
    parser.add_argument("--state-mib", type=int, default=0, help="with --times: size of one stream's caches")
    parser.add_argument("--snapshot-mib", type=int, default=0, help="with --times: size of one stream's snapshot")
    parser.add_argument("--open-s", type=float, default=0.0, help="with --times: seconds to resume from a snapshot")
    parser.add_argument("--trust-engines", action="store_true", help="run engines built on another machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
