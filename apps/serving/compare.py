"""Benchmark of many streams of one bundle: one by one, side by side, and in one pass; the answers must be equal.

python -m apps.serving.compare BUNDLE [--streams 8] [--frames 24] [--rounds 7] [--clock run-on]
                               [--baseline CHECKOUT OLD_BUNDLE]

In each round, each variant pushes the same synthetic frames to the same number of streams and asks each stream once.
Printed per variant: frames per second, and their ratio to the first variant. A baseline is another checkout of this
project with a bundle it exported; its streams run one by one, with that checkout's defaults, in a separate process.
Exit code 3 if an answer differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from apps.live import QUESTION
from apps.synthetic import SyntheticDevice
from engines import Bundle, open_bundle
from engines.many.handle import QueueLimits
from engines.many.passes import Passes
from engines.many.scheduler import OneByOne, Scheduler, Together
from engines.many.side_by_side import SideBySide
from engines.memory import Array
from engines.threads import num_cores

SIZE, MAX_NEW_TOKENS = 224, 32
WORKER = """
import sys, json, time
import numpy as np
from engines import PVCStream, open_bundle
shown, question, most = np.load(sys.argv[2])["shown"], sys.argv[3], int(sys.argv[4])
bundle = open_bundle(sys.argv[1])
streams = [PVCStream(bundle) for _ in shown]
for _ in sys.stdin:
    for stream in streams:
        stream.reset()
    started = time.perf_counter()
    for index in range(shown.shape[1]):
        for stream, frames in zip(streams, shown):
            stream.push(frames[index])
    answers = [stream.ask(question, max_new_tokens=most).text for stream in streams]
    print(json.dumps([time.perf_counter() - started, answers]), flush=True)
"""
Way = Callable[[], tuple[float, list[str]]]
"""One round: seconds, and the answers by stream."""


def compare(
    folder: Path, *, streams: int, frames: int, rounds: int, clock: str, baseline: list[Path]
) -> dict[str, Any]:
    """Per variant: frames per second, their ratio to the first variant in the same rounds, and whether all answers
    are equal."""
    shown = np.stack([_pictures(seed, frames) for seed in range(streams)])
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        if baseline:
            ways[f"{baseline[0].name}, one by one"] = stack.enter_context(_worker(baseline[0], baseline[1], shown))
        for name, together in _togethers(folder, streams, stack).items():
            ways[name] = stack.enter_context(_scheduled(together, shown, clock=clock))
        for way in ways.values():
            way()  # the first run allocates
        found: dict[str, list[tuple[float, list[str]]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(way())
    first, num_frames = found[next(iter(ways))], streams * frames
    return {
        name: {
            "frames_per_s": round(median(num_frames / seconds for seconds, _ in each), 1),
            "ratio": round(median(before / now for (before, _), (now, _) in zip(first, each, strict=True)), 2),
            "same_answers": all(answers == first[0][1] for _, answers in each),
        }
        for name, each in found.items()
    }


def _togethers(folder: Path, streams: int, stack: ExitStack) -> dict[str, Together]:
    """All variants possible with this bundle on this machine."""
    cores = num_cores()
    opened: dict[int | None, Bundle] = {n: open_bundle(folder, threads=n) for n in (None, 1, cores)}
    ways: dict[str, Together] = {"one by one": OneByOne(bundle=opened[None])}
    if cores > 1:
        ways[f"side by side, {cores} at a time"] = stack.enter_context(SideBySide(opened[1]))
    if opened[1].manifest.limits.streams > 1:
        for threads in sorted({1, cores}):
            ways[f"in one pass, {threads} threads"] = Passes(opened[threads], max_streams=streams)
    return ways


@contextmanager
def _scheduled(together: Together, shown: Array, *, clock: Any) -> Iterator[Way]:
    scheduler = Scheduler(together, max_streams=len(shown))
    limits = QueueLimits(frames=shown.shape[1])
    handles = [scheduler.open(limits=limits, clock=clock) for _ in shown]

    def way() -> tuple[float, list[str]]:
        for handle in handles:
            handle.call(lambda stream: stream.reset()).result()
        started = time.perf_counter()
        for index in range(shown.shape[1]):
            for handle, frames in zip(handles, shown, strict=True):
                handle.push(frames[index])
        asked = [handle.ask(QUESTION, max_new_tokens=MAX_NEW_TOKENS) for handle in handles]
        answers = [answer.result().text for answer in asked]
        return time.perf_counter() - started, answers

    try:
        yield way
    finally:
        scheduler.close()


@contextmanager
def _worker(checkout: Path, bundle: Path, shown: Array) -> Iterator[Way]:
    with tempfile.TemporaryDirectory(prefix="pvc-compare-") as folder:
        np.savez(Path(folder) / "shown.npz", shown=shown)
        command = [sys.executable, "-c", WORKER, str(bundle), f"{folder}/shown.npz", QUESTION, str(MAX_NEW_TOKENS)]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def way() -> tuple[float, list[str]]:
            stdin.write("\n")
            stdin.flush()
            seconds, answers = json.loads(stdout.readline())
            return seconds, answers

        try:
            yield way
        finally:
            stdin.close()
            stdout.close()
            process.wait()


def _pictures(seed: int, count: int) -> Array:
    device = SyntheticDevice(seed=seed, size=SIZE)
    shown = (device.read() for _ in range(count))
    return np.stack([each.bgr for each in shown if each is not None])


def _read_options() -> Namespace:
    parser = ArgumentParser(prog="python -m apps.serving.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by pvc-export")
    parser.add_argument("--streams", type=int, default=8, help="cameras at once; default: 8")
    parser.add_argument("--frames", type=int, default=24, help="frames per camera and round; default: 24")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; default: 7")
    parser.add_argument(
        "--clock", choices=("run-on", "reanchor"), default="run-on", help="frame times past the trained ones"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs=2,
        default=[],
        metavar=("CHECKOUT", "OLD_BUNDLE"),
        help="also time another version of this code, with a bundle that it made",
    )
    told = parser.parse_args()
    if told.baseline and told.clock != "run-on":
        parser.error("--baseline needs --clock run-on: another clock gives different answers")
    return told


def main() -> int:
    told = _read_options()
    found = compare(
        told.bundle, streams=told.streams, frames=told.frames, rounds=told.rounds, clock=told.clock,
        baseline=[path.resolve() for path in told.baseline],
    )  # fmt: skip
    print(json.dumps(found, indent=1))
    return 0 if all(each["same_answers"] for each in found.values()) else 3


if __name__ == "__main__":
    raise SystemExit(main())
