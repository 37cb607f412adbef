"""Five ways to run the LLM in a stream, timed together: a decoded token, and an ingested frame, after P past rows.

    eager        the PyTorch reference, its cache concatenated in each step; logits of the last row
    ort-default  what one gets without this project: the decoder exported by torch with default options, with the cache
                 as input and longer cache as output, logits of every row; ONNX Runtime with its defaults
    ours         the embed, llm and head graphs with a linear cache, as PVCStream runs them. Ingest computes no logits
    int8, int4   the same, with layers as by --int8 llm and --int4 llm, and the head as by --int8 head

One artefact serves both steps of a variant. The last row's logits are compared; ours in ingest are computed for that,
outside the clock. Decode must read every weight, so its limit is memory bandwidth; ingest's is GEMM. The variants are
in language_variants.py, the comparison in compare.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from engines.spec import Part, Quantization
from engines.terminal import one_of

from ..terminal.console import Console
from .baselines import gemm_peak, int4, int8, read_peak
from .compare import FEW_BITS_LIMIT, LIMIT, Bench, Comparison, Report, Step, Variant, count_flops
from .language_variants import (
    NUM_FRAME_ROWS,
    SIZES,
    LanguageScene,
    append_rows,
    default_variant,
    eager_variant,
    our_language_model,
    our_language_sessions,
    our_variant,
)
from .rounds import describe_environment

ANSWER = 8
"""Tokens that are decoded in a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageBench(Bench):
    """Raises ValueError for an unknown size, and for a past that the model cannot hold.

    Facts of the report:
    context        rows our cache has room for
    decode_bytes   weights of layers, norm and head, and past keys and values: read once per token
    ingest_gflop   matmuls of the layers, without the head
    """

    program: ClassVar[str] = "pvc-export bench --part language"
    skippable = ("int8", "int4")

    size: str = "0.5b"
    past: int = 1024

    def __post_init__(self) -> None:
        Bench.__post_init__(self)  # not super(), which a class with slots has lost
        one_of("--size", self.size, SIZES)
        most = SIZES[self.size].llm.max_positions - NUM_FRAME_ROWS
        if not 1 <= self.past <= most:
            raise ValueError(f"--past is {self.past}, expected 1 to {most}, so that a frame still fits")

    def scene(self) -> LanguageScene:
        return LanguageScene.render(SIZES[self.size], num_past=self.past)

    def prepare(self, folder: Path, console: Console) -> Comparison:
        with console.stage("draw the weights, fill the past"):
            scene = self.scene()
        with console.stage("default export"):
            default = default_variant(scene, folder / "default.onnx", threads=self.threads)
        with console.stage("our graphs"):
            sessions = our_language_sessions(scene, folder / "ours", threads=self.threads)
            ours = our_variant(scene, our_language_model(scene, sessions))
        few = {
            name: self.unless_skipped(name, partial(self._few_bits, scene, folder / name, how, console))
            for name, how in (("int8", int8("llm", "head")), ("int4", int4()))
        }
        gflop = count_flops(lambda: append_rows(scene.model.llm, scene.frame, scene.past)) / 1e9
        return Comparison(
            variants={"eager": eager_variant(scene), "ort-default": default, "ours": ours, **few},
            steps={
                "decode": Step(work=sum(scene.decode_bytes.values()) / 1e9, peak=read_peak(), in_a_row=ANSWER),
                "ingest": Step(work=gflop, peak=gemm_peak()),
            },
            facts={"context": scene.context, "decode_bytes": scene.decode_bytes, "ingest_gflop": gflop},
        )

    def _few_bits(
        self, scene: LanguageScene, folder: Path, how: Mapping[Part, Quantization], console: Console
    ) -> Variant:
        with console.stage(f"our graphs in {folder.name}"):
            sessions = our_language_sessions(scene, folder, threads=self.threads, quantization=how)
        return our_variant(scene, our_language_model(scene, sessions), limit=FEW_BITS_LIMIT)

    def model_text(self) -> str:
        return f"size {self.size}, random weights"

    def to_json(self, report: Report) -> dict[str, Any]:
        data = asdict(report)
        return {"limit": LIMIT, **data.pop("facts"), **data}

    def describe(self, report: Report) -> list[str]:
        facts = report.facts
        weights, cache = (facts["decode_bytes"][name] / 1e6 for name in ("weights", "cache"))
        return [
            f"language model, {self.model_text()}, {self.past} past rows, our cache for {facts['context']}; float32 "
            f"unless named otherwise, one artefact per variant; {self.rounds} interleaved rounds",
            "",
            f"decode: a token, through layers and head to its logits; mean of {ANSWER} in a row",
            f"reads {weights:.1f} MB of weights, {cache:.1f} MB of cache; {report.peak_line('decode')}",
            *report.table("decode", digits=1),
            "",
            f"ingest: {NUM_FRAME_ROWS} rows; logits of all in the default export, of the last in eager, none in ours",
            f"multiplies {facts['ingest_gflop']:.2f} GFLOP without logits; {report.peak_line('ingest')}",
            *report.table("ingest", digits=1),
            "",
            *describe_environment(report.environment),
        ]
