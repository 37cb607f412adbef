"""Cost of quantisation for an LLM on text: perplexity of the unchanged model and of each way to store its layers.

    python -m pvc_export.studies.perplexity MODEL FILE... [--rows 20] [--length 1024] [--precision fp32] [--only int8]

MODEL is a checkpoint folder with a tokenizer, FILE is text. The text is cut into `rows` chunks of `length` tokens. Each
is scored separately, in float32 with the weights that a graph of that precision would have.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.spec import Inputs, Method, Part, Precision, Quantization, State, StreamLimits, is_smoothed
from pvc_ref import PVC
from pvc_ref.llm import Decoder

from ..bundles.calibrate import CalibrationRequest, calibrate
from ..graphs.eight_bit_rows import round_states
from ..graphs.models import LoadedModel, load_model
from ..graphs.quantize import Quantizer
from ..terminal.quantization import quantization_text

BLOCK = 32


@torch.no_grad()
def perplexity(llm: Decoder, rows: Tensor) -> float:
    """exp of the mean cross-entropy of tokens (R, L), each row separately, with its first token given."""
    total = 0.0
    for row in rows:
        hidden, _ = llm(llm.embed_tokens(row)[None], torch.arange(len(row))[None])
        logits = llm.logits(hidden[0])
        total += float(F.cross_entropy(logits[:-1], row[1:], reduction="sum"))
    return math.exp(total / (rows.numel() - len(rows)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A way to store a model. `is_smoothed`: False omits the smoothing that exports do."""

    quantization: Mapping[Part, Quantization] = field(default_factory=dict)
    int8_states: tuple[State, ...] = ()
    is_smoothed: bool = True

    def __str__(self) -> str:
        parts = [quantization_text(part, how) for part, how in self.quantization.items()]
        parts += ["not smoothed"] if is_smoothed(self.quantization) and not self.is_smoothed else []
        return "; ".join([*parts, *(f"{state} in int8" for state in self.int8_states)]) or "as it is"

    def held(self, loaded: LoadedModel, precision: Precision) -> PVC:
        """Return the reference with which such a bundle would be compared."""
        quantizer, found = Quantizer.of(loaded.model, self.quantization, precision), None
        if self.is_smoothed and is_smoothed(self.quantization):
            found = calibrate(loaded, quantizer, CalibrationRequest(), StreamLimits(), lambda _: None)
        return round_states(quantizer.with_calibration(found).model(), self.int8_states)


def ways() -> Iterator[Way]:
    """Yield the unchanged model, then every way that a target can request, int8 first."""
    yield Way()
    yield Way(int8_states=("cache",))
    for wide_codes in (True, False):
        eight = Quantization(
            bits=8, block=None, zero_points=False, method="search", inputs="rows", wide_codes=wide_codes
        )
        yield Way(quantization={"llm": eight})
        yield Way(quantization={"llm": eight, "head": eight})
        yield Way(quantization={"llm": eight}, is_smoothed=False)
    of_targets: dict[bool, Inputs] = {False: "float", True: "blocks"}
    for zero_points, inputs in of_targets.items():
        for method in get_args(Method):
            yield Way(
                quantization={"llm": Quantization(block=BLOCK, zero_points=zero_points, method=method, inputs=inputs)}
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.studies.perplexity", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    parser.add_argument("--only", action="append", help="only ways whose description contains this; repeatable")
    args = parser.parse_args()
    loaded = load_model(args.model)
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in args.files)
    ids = torch.tensor(loaded.tokenizer.encode(text, add_special_tokens=False).ids)
    num_rows = min(args.rows, len(ids) // args.length)
    rows = ids[: num_rows * args.length].reshape(num_rows, args.length)
    print(f"{args.model}: {rows.numel()} tokens in {num_rows} rows, {args.precision}", flush=True)
    first = 0.0
    for way in ways():
        if args.only and not any(part in str(way) for part in (*args.only, "as it is")):
            continue
        found = perplexity(way.held(loaded, args.precision).llm, rows)
        first = first or found
        print(f"  {way!s:<72}{found:10.3f}  {found / first - 1:+.2%}", flush=True)


if __name__ == "__main__":
    main()
