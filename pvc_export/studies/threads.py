"""Throughput by number of threads on the CPU: whole pushes per second, for one stream and two side by side.

    python -m pvc_export.studies.threads shapes | mid | 0.5b [--frames 10] [--rounds 7]

Two streams share a bundle's sessions, each in a separate Python thread, which ONNX Runtime's sessions support. Every
round runs all variants; figures are medians of wall time. float32, target cpu; mid and 0.5b have random weights.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.target import load_target
from engines.threads import num_cores
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

from ..bench import language_variants, vision_variants
from ..bench.rounds import Spread, describe_environment, environment, interleave
from ..bundles.export import ExportRequest, write_graphs
from ..graphs.models import LoadedModel, load_model, loaded_model
from ..parity.clip import Frame, render_clip
from ..terminal.console import Console

MODELS: dict[str, Callable[[], LoadedModel]] = {
    "shapes": lambda: load_model("shapes"),
    "mid": lambda: _random(vision_variants.SIZES["mid"]),
    "0.5b": lambda: _random(language_variants.SIZES["0.5b"]),
}


def _random(config: PVCConfig) -> LoadedModel:
    return loaded_model(PVC.random(config, seed=0), byte_tokenizer(), name="random")


def push_all(bundle: Bundle, frames: list[Frame], *, num_streams: int) -> None:
    """Push every frame into each of `num_streams` new streams."""
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
    parser.add_argument("model", choices=[*MODELS])
    parser.add_argument("--frames", type=int, default=10, help="frames pushed into each stream (default 10)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    args = parser.parse_args()
    facts = environment(f"python -m pvc_export.studies.threads {args.model}", threads=num_cores())
    with tempfile.TemporaryDirectory(prefix="pvc-threads-") as folder:
        request = ExportRequest(out=Path(folder), target=load_target("cpu"), precision="fp32")
        write_graphs(MODELS[args.model](), request, Path(folder), Console(quiet=True))
        for line in measure(Path(folder), num_frames=args.frames, rounds=args.rounds):
            print(line)
    print("\n".join(describe_environment(facts)))


def measure(folder: Path, *, num_frames: int, rounds: int) -> Iterator[str]:
    """Yield a line for each number of threads, and for the default choice, with one stream and with two."""
    frames = list(render_clip(num_frames, seed=1, width=640, height=480))
    counts: list[int | None] = [*range(1, num_cores() + 1), None]
    bundles = {n: open_bundle(folder, runtime="cpu", threads=n, unchecked=True) for n in counts}
    runs: dict[tuple[int | None, int], Callable[[], None]] = {
        (count, num_streams): partial(push_all, bundle, frames, num_streams=num_streams)
        for count, bundle in bundles.items()
        for num_streams in (1, 2)
    }
    interleave(runs, rounds=1, threads=2)
    yield f"chosen: {', '.join(f'{graph} {count}' for graph, count in bundles[None].threads.items())}"
    for (count, num_streams), seconds in interleave(runs, rounds=rounds, threads=2).items():
        spread, pushed = Spread.of(seconds), 1e3 * num_frames * num_streams
        name = "chosen" if count is None else f"{count} threads"
        quartiles = f"{pushed / spread.q3_ms:.1f} - {pushed / spread.q1_ms:.1f}"
        yield f"{name:<10} {num_streams} streams {pushed / spread.median_ms:>8.1f} frames/s in total   {quartiles}"


if __name__ == "__main__":
    main()
