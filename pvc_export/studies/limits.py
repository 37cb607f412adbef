"""Differences of faithful exports from their reference, in multiples of the model's noise; they set the factors.

    python -m pvc_export.studies.limits [--write] [--only NAME ...] [--model FOLDER] [--json FILE]

More than forty exports: random models from `tiny` to 24 layers and width 512 over several seeds, the trained model, and
any checkpoint folder, in three precisions, both spellings of attention, both cache updates, and streams of three sizes.
Each gets the usual check.
A factor is the smallest power of two that leaves MARGIN above the largest difference of any export on any rung. There
is one factor for all lengths, and one for each metric that accumulates differently. Which rung is worst depends on the
models, so all rungs have the same factors. Every export must pass; the printed table is in docs/numerics.md. Results
are kept in --json and not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from math import ceil, log2
from pathlib import Path
from typing import Any

from engines.spec import Precision, StreamLimits
from engines.target import load_target
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.prompt import byte_tokenizer

from ..bundles.export import ExportRequest, write_graphs
from ..graphs.models import LoadedModel, load_model, loaded_model
from ..parity.check import check_bundle
from ..parity.limits import GATED, THRESHOLDS, thresholds
from ..parity.report import ParityReport
from ..terminal.console import Console
from ..terminal.facts import installed

MARGIN = 1.75
"""Least margin for other models, processors and versions. Squared for metrics that add up in squares (1 - cosine)."""
ALIKE: dict[tuple[str, ...], int] = {("rel_l2", "worst_token", "worst_value"): 1, ("cosine_gap",): 2, ("norm_gap",): 1}
"""Metrics that share a factor -> the power with which they add up."""
LIMITS = (
    StreamLimits(),
    StreamLimits(window=4, context=512, streams=2),
    StreamLimits(window=12, context=1024, streams=3),
)
"""Used in turn: false alarms that depended on the context or number of streams were once found by accident."""
SEEDS = 3
NUM_QUESTIONS = 24
"""Questions for a model whose world is known."""


def _random(width: int, layers: int, seed: int, *, heads: int = 4, kv_heads: int = 2) -> LoadedModel:
    """Make a random model of equal width and depth on both sides, with small frames."""
    config = PVCConfig(
        vision=VisionConfig(
            image_size=56, hidden_size=width, num_layers=layers, num_heads=heads, mlp_size=4 * width,
            num_temporal_layers=max(layers // 4, 1),
        ),
        compressor=CompressorConfig(num_tokens=4),
        llm=LLMConfig(
            vocab_size=264, hidden_size=width, num_layers=layers, num_heads=2 * heads, num_kv_heads=kv_heads,
            mlp_size=3 * width,
        ),
        template="tiny",
    )  # fmt: skip
    return loaded_model(PVC.random(config, seed=seed), byte_tokenizer(), name=f"random {width} x {layers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """One faithful export to check."""

    name: str
    precision: Precision
    target: str
    limits: StreamLimits
    load: Callable[[], LoadedModel]

    @property
    def key(self) -> str:
        size = f"window {self.limits.window}, context {self.limits.context}, streams {self.limits.streams}"
        return f"{self.name}, {self.precision}, {self.target}, {size}"


def exports(folder: str | None) -> Iterator[Export]:
    """Yield every model in every precision.

    Targets and limits take turns, so that each spelling and cache update is combined with each dtype, and each size of
    stream with each kind of model.
    """
    models: dict[str, Callable[[], LoadedModel]] = {}
    for seed in range(SEEDS):
        models[f"tiny, seed {seed}"] = partial(load_model, "tiny", seed=seed)
        models[f"128 wide, 6 layers, seed {seed}"] = partial(_random, 128, 6, seed)
        models[f"64 wide, 24 layers, seed {seed}"] = partial(_random, 64, 24, seed)
        models[f"256 wide, 12 layers, seed {seed}"] = partial(_random, 256, 12, seed)
    models["512 wide, 24 layers, seed 0"] = partial(_random, 512, 24, 0, heads=8)
    models["shapes"] = partial(load_model, "shapes")
    if folder is not None:
        models[Path(folder).name] = partial(load_model, folder)
    targets: dict[Precision, tuple[str, ...]] = {
        "fp32": ("cpu", "cuda"),
        "fp16": ("rtx", "cpu", "tensorrt-10"),
        "bf16": ("rtx",),
    }
    for index, (name, load) in enumerate(models.items()):
        for turn, (precision, some) in enumerate(targets.items(), start=index):
            limits = LIMITS[turn % len(LIMITS)]
            yield Export(name=name, precision=precision, target=some[index % len(some)], limits=limits, load=load)


def measure(export: Export) -> dict[str, Any]:
    """Check one export, and return the result and its largest differences."""
    target = replace(load_target(export.target), builder=None, engine_graphs=())  # graphs only
    loaded = export.load()
    with tempfile.TemporaryDirectory(prefix="pvc-limits-") as folder:
        request = ExportRequest(out=Path(folder), target=target, precision=export.precision, limits=export.limits)
        write_graphs(loaded, request, Path(folder), Console(quiet=True))
        report = check_bundle(Path(folder), loaded, num_questions=NUM_QUESTIONS)
    conversations = report.conversations
    return {
        "passed": report.passed,
        "summary": report.summary(),
        "worst_row": report.worst_row.text(),
        "share": report.worst_row.share(),
        "ratios": ratios(report),
        "scaled_kl": max(conversation.scaled_kl for conversation in conversations),
        "noise_of_features": max(one.rel_l2 for one in report.differences if is_noise(one.rung.kind, one.name)),
        "closest_flip": max((flip.margin / flip.tie for c in conversations for flip in c.flips), default=0.0),
    }


def is_noise(kind: str, name: str) -> bool:
    return kind == "torch" and name == "compressor/frame_embeds"


def ratios(report: ParityReport) -> dict[str, dict[str, float]]:
    """Map rung -> metric -> the largest difference of any tensor at any place, divided by the noise there."""
    worst: dict[str, dict[str, float]] = {}
    for one in report.differences:
        of_rung = worst.setdefault(str(one.rung.limits), {}) if one.noise else {}
        for metric, noise in one.noise.items():
            if noise:
                of_rung[metric] = max(of_rung.get(metric, 0.0), getattr(one, metric) / noise)
    return worst


def factors_from(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Compute each metric's factor, the same for every rung."""
    factors: dict[str, float] = {}
    for metrics, power in ALIKE.items():
        of_all = (
            of_rung.get(name, 0.0) for one in found.values() for of_rung in one["ratios"].values() for name in metrics
        )
        factors |= dict.fromkeys(metrics, 2.0 ** ceil(log2(max(of_all) * MARGIN**power)))
    return factors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the committed factors")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="only exports whose name contains one of these")
    parser.add_argument("--model", metavar="FOLDER", help="also measure this checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep results in this file, and resume from it")
    args = parser.parse_args()
    kept = args.json is not None and args.json.exists()
    found: dict[str, dict[str, Any]] = json.loads(args.json.read_text(encoding="utf-8")) if kept else {}
    for export in exports(args.model):
        if export.key in found or not (args.only is None or any(part in export.key for part in args.only)):
            continue
        found[export.key] = measure(export)
        print(f"{export.key}: {found[export.key]['summary']}", flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*table(found), "", *worst(found)]))
    factors = factors_from(found)
    print(json.dumps(factors, indent=1))
    if args.write:
        measured = {
            "command": " ".join(
                ["python -m pvc_export.studies.limits --write", *(["--model", args.model] if args.model else [])]
            ),
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()} CPU, ONNX Runtime CPU (float16 graphs computed in float32)",
            "versions": installed(("torch", "onnxscript", "onnxruntime")),
            "num_exports": len(found),
            "margin": MARGIN,
        }
        data = thresholds() | {"measured": measured, "factors": dict.fromkeys(thresholds()["factors"], factors)}
        THRESHOLDS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield one line per export, for docs/numerics.md."""
    yield "| export | passed | noise of frame_embeds | worst share of a limit | KL / mean square |"
    yield "|---|---|---|---|---|"
    for key, one in found.items():
        verdict = "yes" if one["passed"] else "**no**"
        yield f"| {key} | {verdict} | {one['noise_of_features']:.1e} | {one['share']:.0%} | {one['scaled_kl']:.1e} |"


def worst(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield one line per rung: the largest difference of any export, in multiples of its noise."""
    yield f"| stage | {' | '.join(GATED)} |"
    yield f"|---|{'---|' * len(GATED)}"
    for rung in thresholds()["factors"]:
        of_all = [one["ratios"][rung] for one in found.values() if rung in one["ratios"]]
        yield f"| {rung} | {' | '.join(f'{max(ratios[name] for ratios in of_all):.1f}' for name in GATED)} |"


if __name__ == "__main__":
    main()
