"""Measure the noise floor of a faithful export, and write thresholds.json from it: python -m pvc_export.noise

Exports correct models of several seeds, and one deep and narrow model, in both precisions; takes the worst difference
of each tensor, and sets each limit to MARGIN times that. Run it again after a change that is meant to change rounding,
and only then; the file keeps what was measured, with what, and when.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from engines.spec import Precision, StreamLimits
from engines.target import load_target
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.prompt import byte_tokenizer

from .console import Console
from .export import ExportRequest, export, versions
from .models import LoadedModel, load_model, loaded_model
from .parity import THRESHOLDS, ParityReport, limit_key

MARGIN = 4.0
"""A limit is this many times the worst that was measured: room for other seeds, depths and processors."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
DEEP = PVCConfig(
    vision=VisionConfig(
        image_size=112, hidden_size=64, num_layers=24, num_heads=4, mlp_size=256, num_temporal_layers=8
    ),
    compressor=CompressorConfig(num_tokens=16),
    llm=LLMConfig(vocab_size=264, hidden_size=128, num_layers=24, num_heads=8, num_kv_heads=2, mlp_size=256),
    template="tiny",
)
"""The depth of InternVL2-8B's vision tower and most of its LLM, at a width that exports in a minute."""


def models(num_seeds: int) -> Iterator[LoadedModel]:
    for seed in range(num_seeds):
        yield load_model("tiny", seed=seed)
    yield loaded_model(PVC.random(DEEP, seed=0), byte_tokenizer(), name="deep")


def measure(num_seeds: int, console: Console) -> dict[Precision, list[ParityReport]]:
    """A parity report of every model in every precision, no limit applied."""
    reports: dict[Precision, list[ParityReport]] = {"fp32": [], "fp16": []}
    for loaded in models(num_seeds):
        for precision in PRECISIONS:
            name = f"{loaded.source.name} seed {loaded.source.seed} {precision}"
            with console.stage(name) as (stage, _), tempfile.TemporaryDirectory() as folder:
                request = ExportRequest(
                    out=Path(folder) / "bundle", target=load_target("cpu"), precision=precision, limits=StreamLimits()
                )
                reports[precision].append(export(loaded, request, publish_failures=True))
                stage.note = reports[precision][-1].summary()
    return reports


def limits_from(reports: list[ParityReport]) -> dict[str, dict[str, float]]:
    """'graph/tensor' -> the worst measured value of each metric and its limit."""
    limits: dict[str, dict[str, float]] = {}
    for row in (row for report in reports for row in report.rows):
        entry = limits.setdefault(
            limit_key(row.graph, row.tensor), {"rel_l2_measured": 0.0, "worst_token_measured": 0.0}
        )
        entry["rel_l2_measured"] = max(entry["rel_l2_measured"], row.worst.rel_l2)
        entry["worst_token_measured"] = max(entry["worst_token_measured"], row.worst.worst_token)
    for key, entry in limits.items():
        for metric in ("rel_l2", "worst_token"):
            entry[f"{metric}_measured"] = float(f"{entry[f'{metric}_measured']:.2e}")
            # A copy is exact: the embedding table may not differ at all.
            entry[metric] = (
                float(f"{MARGIN * entry[f'{metric}_measured']:.2e}") if key != "embed/inputs_embeds" else 1e-12
            )
    return limits


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.noise", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many tiny models to measure")
    parser.add_argument("--write", action="store_true", help="replace the committed thresholds.json")
    args = parser.parse_args()
    reports = measure(args.seeds, Console())
    data = {
        "measured": {
            "command": f"python -m pvc_export.noise --seeds {args.seeds} --write",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()} CPU, ONNX Runtime CPU (float16 graphs computed in float32)",
            "versions": {
                name: value for name, value in versions().items() if name in ("torch", "onnxruntime", "onnxscript")
            },
            "margin": MARGIN,
        },
        "limits": {precision: limits_from(reports[precision]) for precision in PRECISIONS},
    }
    text = json.dumps(data, indent=1)
    print(text)
    if args.write:
        THRESHOLDS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
