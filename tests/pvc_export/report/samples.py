"""Finished reports of a small check, as the page and the JUnit file get them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from engines.graph_specs import graph_specs
from engines.manifest import FORMAT_VERSION, FileEntry, ImageSpec, Manifest, ModelSource
from engines.spec import StreamLimits
from pvc_export.graphs.models import prompt_spec
from pvc_export.graphs.modules import model_shape
from pvc_export.parity.answers import Changed, Conversation, Flip, RungAnswers
from pvc_export.parity.culprit.record import Culprit
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.levels import Rule
from pvc_export.parity.limits import GATED, factors_of, thresholds
from pvc_export.parity.metrics import Difference
from pvc_export.parity.places import Place, Rung
from pvc_export.parity.report import ParityReport, judge
from pvc_export.report import ReportInput
from pvc_ref import PVCConfig

WINDOW = 4
TIMES = [*range(2 * WINDOW + 2), 103, 4103]
BUNDLE = Rung("bundle", "fp16")
FRAME = np.zeros((56, 56, 3), np.uint8)
NOISE = 1e-5
RUNGS = (Rung("torch", "fp32"), Rung("torch", "fp16"), Rung("onnx", "fp32"), Rung("onnx", "fp16"), BUNDLE)
TENSORS = (
    ("trunk", "trunk_features"), ("temporal", "features"), ("temporal", "new.0.key"), ("temporal", "new.1.key"),
    ("compressor", "frame_embeds"),
)  # fmt: skip
COORDINATES = {"d", "cx", "cy", "x", "y", "r", "width", "height", "viewbox"}


def difference(rung: Rung, graph: str, tensor: str, where: Place, *, part: float = 0.1) -> Difference:
    """A difference with every metric at `part` of its limit, and noise NOISE everywhere."""
    if rung.kind == "torch":
        noise, limits = {}, {"rel_l2": thresholds()["ceilings"][rung.dtype]}
        values = dict.fromkeys(GATED, NOISE) if part <= 1 else dict.fromkeys(GATED, part * limits["rel_l2"])
    else:
        noise = dict.fromkeys(GATED, NOISE)
        limits = {metric: factor * NOISE for metric, factor in factors_of(rung).items()}
        values = {metric: part * limit for metric, limit in limits.items()}
    at: dict[str, Any] = {"rung": rung, "graph": graph, "tensor": tensor, "where": where}
    return Difference(**at, max_abs=part, num_nonfinite=0, noise=noise, limits=limits, **values)


def found_of(parts: dict[tuple[Rung, str, Place], float] | None = None) -> tuple[Difference, ...]:
    """A small check's comparisons; `parts` lists the wrong ones: (rung, tensor, where) -> part of the limit."""

    def one(rung: Rung, graph: str, tensor: str, where: Place) -> Difference:
        return difference(rung, graph, tensor, where, part=(parts or {}).get((rung, tensor, where), 0.1))

    vision = [one(rung, g, t, Place("frame", time)) for rung in RUNGS for time in TIMES for g, t in TENSORS]
    words = [one(BUNDLE, "llm", "hidden", Place("pass", index)) for index in range(5)]
    words += [one(BUNDLE, "head", "logits", Place("token", index)) for index in range(4)]
    words += [one(BUNDLE, "llm", "hidden", Place("rows", words="1 rows behind 255, stream 0 of 1"))]
    noise = [one(Rung("torch", "fp16"), g, t, Place("row")) for g, t in (("llm", "hidden"), ("head", "logits"))]
    return (*vision, *words, *noise)


def conversation(kind: str, question: str, *, scaled_kl: float = 1e-6, flips: tuple[Flip, ...] = ()) -> Conversation:
    return Conversation(
        kind=kind, question=question, num_tokens=6, num_said=6, prefix=6, parting=None, text="a red", num_steps=7,
        reference_text="a red", max_kl=3e-6, mean_kl=1e-6, scaled_kl=scaled_kl, flips=flips,
    )  # fmt: skip


def answers_of(rung: Rung, *changed: Changed) -> RungAnswers:
    return RungAnswers(
        rung=rung, right={"colour": 480, "motion": 470}, count={"colour": 500, "motion": 500}, changed=changed
    )


def parity_of(found: Iterable[Difference], **changes: object) -> ParityReport:
    close = Changed(topic="motion", question="Where to?", expected="to the left", step=2, margin=1e-3, tie=5e-2)
    evidence = Evidence(
        differences=tuple(found), num_weights=137, num_tokens=4, num_equal_tokens=4,
        not_executed={"engine": "no CUDA runtime on this machine"},
        conversations=(
            conversation("video", "What moves?", flips=(Flip(step=3, k=5, margin=1e-4, tie=8e-3),)),
            conversation("text", ""),
        ),
        answers=(answers_of(RUNGS[0]), answers_of(BUNDLE, close)),
        rules=(
            Rule(level="G", name="a failed frame changes no state", passed=True, detail="12 faults planted"),
            Rule(level="I", name="two runs are equal", passed=None, detail="only one runtime is here"),
        ),
    )  # fmt: skip
    report = judge(evidence, manifest(), num_frames=2 * WINDOW + 2)
    return replace(report, **changes)  # type: ignore[arg-type]


def changed(report: ReportInput, **changes: object) -> ReportInput:
    """Return the report with the same conditions and another outcome."""
    return replace(report, parity=replace(report.parity, **changes))  # type: ignore[arg-type]


def manifest() -> Manifest:
    config, limits = PVCConfig.preset("tiny"), StreamLimits(window=WINDOW)
    shape = model_shape(config)
    return Manifest(
        format_version=FORMAT_VERSION,
        created_utc="2026-11-26T10:00:00+00:00",
        model=ModelSource(name="tiny", random_weights=True, seed=3, weights_sha256="f" * 64, config={}),
        shape=shape,
        limits=limits,
        target="cpu",
        precision="fp16",
        islands=("llm.layers.0.mlp",),
        time_mode="absolute",
        trained_frames=96,
        prompt=prompt_spec(config),
        images=ImageSpec(num_repeats=4, layout="tile_streams", max_tiles=6),
        graphs=graph_specs(shape, limits, "fp16", "split", cache_update="aliased"),
        engines={},
        versions={"torch": "2.13.0+cpu", "onnx": "1.23.2"},
        files={"graphs/trunk.onnx": FileEntry(sha256="0123456789abcdef" * 4, num_bytes=2048)},
        parity={},
    )


CULPRIT = Culprit(
    graph="trunk", where=Place("frame", 8), layer="trunk.layers.1.mlp.fc1", operation="linear",
    nodes=("MatMul_7", "Add_8"), line="vision.py:88", dtype="fp16", error=inf, limit=32.0,
    symptom="65 values are NaN or infinite", peak=91234.0, largest=65504.0, is_precision=True,
    island="trunk.layers.1.mlp",
)  # fmt: skip
