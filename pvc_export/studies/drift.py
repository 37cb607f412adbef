"""Measure whether the error grows over 10,000 frames: python -m pvc_export.studies.drift [BUNDLE | --wide]"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engines.errors import EXIT_DIFFERENT, PVCError
from engines.session import Session
from engines.spec import VISION_GRAPHS, Precision, StreamLimits
from engines.target import load_target
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig

from ..graphs.models import load_reference
from ..graphs.sessions import open_graphs
from ..parity.bfloat16_on_cpu import open_on_cpu
from ..parity.drift.measure import measure_drift, vision_noise
from ..terminal.console import Console

NUM_FRAMES = 10_000
WIDE = PVCConfig(
    vision=VisionConfig(image_size=112, num_layers=4, num_temporal_layers=2),  # 1024 wide
    compressor=CompressorConfig(num_tokens=64),
    llm=LLMConfig(vocab_size=264, hidden_size=256, num_layers=1, num_heads=4, num_kv_heads=4, mlp_size=256),
    template="tiny",
)
"""The published width, with a depth and resolution that two cores can stream."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.drift", description=__doc__.splitlines()[0])
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("bundle", nargs="?", type=Path, help="a bundle from pvc-export")
    subject.add_argument(
        "--wide", action="store_true", help="a random model of width 1024 with 4 layers, exported for this"
    )
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help=f"length of the stream (default {NUM_FRAMES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every curve to this file")
    args = parser.parse_args()
    try:
        with (
            _open(args.bundle) as (name, sessions, model, precision, islands),
            Console().stage(f"{args.frames} frames") as (_, progress),
        ):
            noise = vision_noise(model, sessions["temporal"].spec, precision=precision, islands=islands)
            report = measure_drift(
                sessions, model, noise, num_frames=args.frames, precision=precision, progress=progress
            )
    except PVCError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    print("\n".join([name, *report.table(), report.summary()]))
    if args.json is not None:
        args.json.write_text(json.dumps({"model": name} | report.to_json(), indent=1) + "\n", encoding="utf-8")
    if not report.passed:
        parser.exit(EXIT_DIFFERENT)


@contextmanager
def _open(bundle: Path | None) -> Iterator[tuple[str, Mapping[str, Session], PVC, Precision, tuple[str, ...]]]:
    """Open the subject: its name, sessions, the model from which they were made, precision and islands.

    It is a bundle, or without one the wide random model, exported in float32 for this.
    """
    if bundle is not None:
        with open_on_cpu(bundle) as opened:
            model = load_reference(opened.manifest).model
            yield str(bundle), opened.sessions, model, opened.manifest.precision, tuple(opened.manifest.islands)
        return
    model = PVC.random(WIDE, seed=0)
    with tempfile.TemporaryDirectory(prefix="pvc-drift-") as folder:
        sessions = open_graphs(model, VISION_GRAPHS, load_target("cpu"), StreamLimits(), Path(folder))
        yield "width 1024, random weights", sessions, model, "fp32", ()


if __name__ == "__main__":
    main()
