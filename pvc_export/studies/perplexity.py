"""What few bits cost an LLM on text: perplexity of the model as it is, and of each way to hold its layers.

    python -m pvc_export.studies.perplexity MODEL FILE... [--rows 20] [--length 1024] [--precision fp32]

MODEL is a checkpoint folder with a tokenizer of its own, FILE text. It is cut into `rows` pieces of `length` tokens,
each of which is scored alone, in float32 with the weights that a graph of that precision would hold.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.spec import Inputs, Method, Precision, Quantization
from pvc_ref.llm import Decoder

from ..graphs.models import load_model
from ..graphs.quantize import Quantizer
from ..terminal.quantization import quantization_text

BLOCK = 32


@torch.no_grad()
def perplexity(llm: Decoder, rows: Tensor) -> float:
    """exp of the mean surprise of tokens (R, L), each row on its own, its first token given."""
    total = 0.0
    for row in rows:
        hidden, _ = llm(llm.embed_tokens(row)[None], torch.arange(len(row))[None])
        logits = llm.logits(hidden[0])
        total += float(F.cross_entropy(logits[:-1], row[1:], reduction="sum"))
    return math.exp(total / (rows.numel() - len(rows)))


def ways() -> Iterator[Quantization | None]:
    """The model as it is, then every way that a target can ask for, eight bits first."""
    yield None
    for method in get_args(Method):
        yield Quantization(bits=8, block=None, zero_points=False, method=method, inputs="rows")
    of_targets: dict[bool, Inputs] = {False: "float", True: "blocks"}
    for zero_points, inputs in of_targets.items():
        for method in get_args(Method):
            yield Quantization(block=BLOCK, zero_points=zero_points, method=method, inputs=inputs)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.studies.perplexity", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    args = parser.parse_args()
    loaded = load_model(args.model)
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in args.files)
    ids = torch.tensor(loaded.tokenizer.encode(text, add_special_tokens=False).ids)
    num_rows = min(args.rows, len(ids) // args.length)
    rows = ids[: num_rows * args.length].reshape(num_rows, args.length)
    print(f"{args.model}: {rows.numel()} tokens in {num_rows} rows, {args.precision}", flush=True)
    first = 0.0
    for how in ways():
        held = Quantizer.of(loaded.model, {} if how is None else {"llm": how}, args.precision).model()
        found = perplexity(held.llm, rows)
        first = first or found
        name = "as it is" if how is None else quantization_text("llm", how)
        print(f"  {name:<56}{found:10.3f}  {found / first - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
