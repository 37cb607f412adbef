"""Measure the noise floor of a faithful export, and write thresholds.json from it: python -m pvc_export.studies.limits

Exports correct models of several seeds, one deep and narrow model and the trained one, in every precision; takes the
worst difference of each tensor, and sets each limit to a margin times that. Run it again after a change that is meant
to change rounding, and only then; the file keeps what was measured, with what, and when. `--add MODEL` measures one
model more and keeps the worse of old and new.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from engines.spec import Precision
from engines.target import load_target
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.prompt import byte_tokenizer

from ..bundles.export import NUM_QUESTIONS, ExportRequest, write_graphs
from ..graphs.models import LoadedModel, load_model, loaded_model
from ..parity.check import check_bundle
from ..parity.limits import GATED, THRESHOLDS
from ..parity.limits import kind_of as limit_key
from ..parity.places import Rung
from ..parity.report import ParityReport
from ..terminal.console import Console
from ..terminal.facts import installed

MARGINS = {"rel_l2": 4.0, "worst_token": 4.0, "cosine_gap": 16.0, "norm_gap": 16.0}
"""A limit is this many times the worst that was measured: room for other seeds, depths and processors.

The cosine's gap grows with the square of an error; the norm's is what is left when errors cancel, and varies more.
"""
FLOOR = 1e-12
"""The smallest limit: what float64, in which differences are computed, can still tell from zero."""
VARIANTS: tuple[tuple[Precision, str], ...] = (
    ("fp32", "cpu"), ("fp32", "cuda"), ("fp16", "cpu"), ("fp16", "cuda"), ("bf16", "rtx"),
)  # fmt: skip
"""Both spellings of attention and both cache updates; bfloat16 is computed on no CPU, so it has one."""
CEILING = {"fp32": 5e-4, "fp16": 1e-1, "bf16": 7e-1}
"""The largest limit of a precision, whatever was measured: what may be off by more than that is gated by nothing."""
KL_MARGIN = 16.0
"""As of the cosine's gap: a divergence grows with the square of an error."""
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
    yield load_model("shapes")


def measure(measured: Iterable[LoadedModel], console: Console) -> list[ParityReport]:
    """A parity report of every model in every precision and spelling, whether it passes or not."""
    reports: list[ParityReport] = []
    for loaded in measured:
        for precision, target_name in VARIANTS:
            name = f"{loaded.source.name} seed {loaded.source.seed} {precision} {target_name}"
            target = replace(load_target(target_name), builder=None, engine_graphs=())  # graphs only
            with console.stage(name) as (stage, _), tempfile.TemporaryDirectory() as folder:
                request = ExportRequest(out=Path(folder), target=target, precision=precision)
                write_graphs(loaded, request, Path(folder), Console(quiet=True))
                reports.append(check_bundle(Path(folder), loaded, num_questions=NUM_QUESTIONS))
                stage.note = reports[-1].summary()
    return reports


def limits_from(reports: list[ParityReport]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Stage -> 'graph/tensor' -> metric -> the worst measured value and its limit."""
    worst: dict[Rung, dict[str, dict[str, float]]] = {}
    for found in (found for report in reports for found in report.differences):
        metrics = worst.setdefault(found.rung.limits, {}).setdefault(limit_key(found.graph, found.tensor), {})
        for metric in GATED:
            metrics[metric] = max(metrics.get(metric, 0.0), float(getattr(found, metric)))
    return {
        str(rung): {
            key: {name: _limit(value, MARGINS[name], CEILING[rung.dtype]) for name, value in metrics.items()}
            for key, metrics in tensors.items()
        }
        for rung, tensors in sorted(worst.items(), key=lambda item: str(item[0]))
    }


def kl_limits_from(reports: list[ParityReport]) -> dict[str, dict[str, float]]:
    """Precision -> the worst KL of any step of any conversation, scaled as answers.Conversation says, and its limit."""
    worst: dict[str, float] = {}
    for report in reports:
        found = max(conversation.scaled_kl for conversation in report.conversations)
        worst[report.precision] = max(worst.get(report.precision, 0.0), found)
    return {precision: _limit(value, KL_MARGIN) for precision, value in worst.items()}


def _limit(measured: float, margin: float, ceiling: float = math.inf) -> dict[str, float]:
    """What was measured and the limit that follows, to three digits."""
    limit = min(max(margin * measured, FLOOR), ceiling)
    return {"measured": float(f"{measured:.2e}"), "limit": float(f"{limit:.2e}")}


def worse_of(old: Any, new: Any) -> Any:
    """Two tables of limits, merged: of each metric the one that was measured larger."""
    if "measured" in old:
        return max(old, new, key=lambda metric: float(metric["measured"]))
    return {key: worse_of(old[key], new[key]) if key in new else old[key] for key in old}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many tiny models to measure")
    parser.add_argument("--add", metavar="MODEL", help="measure this one alone, and keep the worse of old and new")
    parser.add_argument("--write", action="store_true", help="replace the committed thresholds.json")
    args = parser.parse_args()
    old = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    reports = measure([load_model(args.add)] if args.add else models(args.seeds), Console())
    command = f"python -m pvc_export.studies.limits --seeds {args.seeds} --write"
    data = {
        "measured": {
            "command": f"{old['measured']['command']}; --add {args.add} --write" if args.add else command,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()} CPU, ONNX Runtime CPU (float16 graphs computed in float32)",
            "versions": installed(("torch", "onnxscript", "onnxruntime")),
            "margins": MARGINS | {"kl": KL_MARGIN},
        },
        "kl": kl_limits_from(reports),
        "limits": limits_from(reports),
    }
    if args.add:
        data |= {key: worse_of(old[key], data[key]) for key in ("kl", "limits")}
    text = json.dumps(data, indent=1)
    print(text)
    if args.write:
        THRESHOLDS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
