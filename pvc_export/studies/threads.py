"""What threads do for streams on the CPU: whole pushes a second of one stream and of two side by side, at each number.

    python -m pvc_export.studies.threads BUNDLE [--frames 30] [--rounds 7]

Two streams share a bundle's sessions, each in a Python thread of its own, as ONNX Runtime's sessions allow. All ways are
tried in every round; figures are medians of wall time.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.threads import num_cores

from ..bench.rounds import Spread, describe_environment, environment, interleave
from ..parity.clip import Frame, render_clip


def push_all(bundle: Bundle, frames: list[Frame], *, num_streams: int) -> None:
    """Each stream is new, and sees every frame."""
    streams = [PVCStream(bundle) for _ in range(num_streams)]

    def watch(stream: PVCStream) -> None:
        for frame in frames:
            stream.push(frame)

    if num_streams == 1:
        watch(streams[0])
        return
    threads = [threading.Thread(target=watch, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.threads", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle, as pvc-export makes it")
    parser.add_argument("--frames", type=int, default=30, help="pushed into each stream (30)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (7)")
    args = parser.parse_args()
    facts = environment(f"python -m pvc_export.studies.threads {args.bundle}", threads=num_cores())
    frames = list(render_clip(args.frames, seed=1, width=640, height=480))
    counts: list[int | None] = [*range(1, num_cores() + 1), None]
    bundles = {count: open_bundle(args.bundle, runtime="cpu", threads=count) for count in counts}
    runs: dict[tuple[int | None, int], Callable[[], None]] = {
        (count, num_streams): partial(push_all, bundle, frames, num_streams=num_streams)
        for count, bundle in bundles.items()
        for num_streams in (1, 2)
    }
    interleave(runs, rounds=1, threads=2)
    seconds = interleave(runs, rounds=args.rounds, threads=2)
    for (count, num_streams), found in seconds.items():
        spread, pushed = Spread.of(found), 1e3 * args.frames * num_streams
        chosen = f"{count} threads" if count else "as chosen" + str(sorted(set(bundles[None].threads.values())))
        rates = f"{pushed / spread.median_ms:.1f} ({pushed / spread.q3_ms:.1f} - {pushed / spread.q1_ms:.1f})"
        print(f"{chosen:<14} {num_streams} streams   {rates} frames a second together")
    print("\n".join(describe_environment(facts)))


if __name__ == "__main__":
    main()
