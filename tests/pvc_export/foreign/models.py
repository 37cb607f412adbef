"""Stateful graphs that our exporter did not write, each with its reference, and a class that saves and checks one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper, parser
from torch import Tensor, nn

from pvc_export.foreign import ForeignRequest, check_foreign
from pvc_export.foreign.report import ForeignReport

Array = np.ndarray[Any, Any]
Edit = Callable[[onnx.ModelProto], None]
MODELS = __name__
STEPS = 20


def draw(seed: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32) for name, shape in shapes.items()}


CELL = draw(
    0, wz0=(4, 6), uz0=(6, 6), wc0=(4, 6), uc0=(6, 6), wz1=(6, 6), uz1=(6, 6), wc1=(6, 6), uc1=(6, 6), wo=(6, 3)
)
ATTENTION = draw(1, wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8))


class Weights(nn.Module):
    def __init__(self, weights: dict[str, Array]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name, torch.from_numpy(value.copy()))


class Cell(Weights):
    """Two gated recurrent layers. x (B, 4), h0 and h1 (B, 6) -> y (B, 3) and the new h0, h1."""

    def __init__(self) -> None:
        super().__init__(CELL)

    def layer(self, i: int, x: Tensor, h: Tensor) -> Tensor:
        gate = torch.sigmoid(x @ getattr(self, f"wz{i}") + h @ getattr(self, f"uz{i}"))
        new = torch.tanh(x @ getattr(self, f"wc{i}") + h @ getattr(self, f"uc{i}"))
        return gate * h + (1 - gate) * new

    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new0 = self.layer(0, x, h0)
        new1 = self.layer(1, new0, h1)
        return new1 @ self.wo, new0, new1


CELL_TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
cell (float[batch, 4] x, float[batch, 6] h0, float[batch, 6] h1)
  => (float[batch, 3] y, float[batch, 6] h0_next, float[batch, 6] h1_next) {
  %LAYER0%
  %LAYER1%
  y = MatMul(h1_next, wo)
}"""
LAYER = """
  a%i = MatMul(%x, wz%i)
  b%i = MatMul(h%i, uz%i)
  s%i = Add(a%i, b%i)
  z%i = Sigmoid(s%i)
  d%i = MatMul(%x, wc%i)
  e%i = MatMul(h%i, uc%i)
  f%i = Add(d%i, e%i)
  n%i = Tanh(f%i)
  kept%i = Mul(z%i, h%i)
  rest%i = Sub(one, z%i)
  new%i = Mul(rest%i, n%i)
  h%i_next = Add(kept%i, new%i)"""


def cell(dtype: type = np.float32) -> onnx.ModelProto:
    text = CELL_TEXT
    for index, source in (("0", "x"), ("1", "h0_next")):
        text = text.replace(f"%LAYER{index}%", LAYER.replace("%i", index).replace("%x", source))
    text = text.replace("float[", "float16[") if dtype is np.float16 else text
    return with_weights(parser.parse_model(text), CELL | {"one": np.array(1.0, np.float32)}, dtype)


class Attention(Weights):
    """Causal attention over a cache. x (B, L, 8), past (B, P, 8) -> y (B, L, 8), and new rows or the whole cache."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__(ATTENTION)
        self.whole = whole

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> dict[str, Tensor]:
        rows = x @ self.wk, x @ self.wv
        k, v = torch.cat([past_k, rows[0]], dim=1), torch.cat([past_v, rows[1]], dim=1)
        seen = torch.ones(x.shape[1], k.shape[1]).tril(past_k.shape[1]).bool()
        scores = (x @ self.wq @ k.mT / 8**0.5).masked_fill(~seen, -1e30)
        states = {"present_k": k, "present_v": v} if self.whole else {"new_k": rows[0], "new_v": rows[1]}
        return {"y": scores.softmax(-1) @ v @ self.wo, **states}


def whole_cache() -> Attention:
    return Attention(whole=True)


def new_rows() -> Attention:
    return Attention(whole=False)


ATTENTION_TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
attend (float[batch, rows, 8] x, float[batch, past, 8] past_k, float[batch, past, 8] past_v) => (%OUT%) {
  q = MatMul(x, wq)
  new_k = MatMul(x, wk)
  new_v = MatMul(x, wv)
  present_k = Concat <axis = 1> (past_k, new_k)
  present_v = Concat <axis = 1> (past_v, new_v)
  turned = Transpose <perm = [0, 2, 1]> (present_k)
  raw = MatMul(q, turned)
  scores = Mul(raw, scale)
  num_rows = Shape <start = 1, end = 2> (x)
  num_total = Shape <start = 1, end = 2> (present_k)
  num_past = Sub(num_total, num_rows)
  total = Squeeze(num_total)
  past = Squeeze(num_past)
  column = Range(zero, total, step)
  line = Range(past, total, step)
  row = Unsqueeze(line, last)
  seen = LessOrEqual(column, row)
  masked = Where(seen, scores, low)
  shares = Softmax <axis = -1> (masked)
  mixed = MatMul(shares, present_v)
  y = MatMul(mixed, wo)
}"""
CONSTANTS = {
    "scale": np.array(8**-0.5, np.float32),
    "low": np.array(-1e30, np.float32),
    "zero": np.array(0),
    "step": np.array(1),
    "last": np.array([1]),
}


def attention(*, whole: bool) -> onnx.ModelProto:
    names, axis = (("present_k", "present_v"), "total") if whole else (("new_k", "new_v"), "rows")
    outputs = ["float[batch, rows, 8] y", *(f"float[batch, {axis}, 8] {name}" for name in names)]
    return with_weights(parser.parse_model(ATTENTION_TEXT.replace("%OUT%", ", ".join(outputs))), ATTENTION | CONSTANTS)


def with_weights(model: onnx.ModelProto, weights: dict[str, Array], dtype: type = np.float32) -> onnx.ModelProto:
    for name, value in weights.items():
        value = value.astype(dtype) if value.dtype == np.float32 else value
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


class Sum(nn.Module):
    """A state that never forgets: total + x."""

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        return total + x


def sum_graph() -> onnx.ModelProto:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
sum (float[batch, 64] x, float[batch, 64] total) => (float[batch, 64] total_next) {
  kept = Mul(total, decay)
  total_next = Add(kept, x)
}"""
    return with_weights(parser.parse_model(text), {"decay": np.ones(1, np.float32)})


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


def batch_mean() -> onnx.ModelProto:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
mean (float[n, 4] x) => (float[n, 4] y) {
  mean = ReduceMean <axes = [0]> (x)
  y = Sub(x, mean)
}"""
    return parser.parse_model(text)


class BatchPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(len(x), dtype=x.dtype)[:, None]


def batch_place() -> onnx.ModelProto:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
place (float[n, 4] x) => (float[n, 4] y) {
  size = Shape <start = 0, end = 1> (x)
  count = Squeeze(size)
  places = Range(zero, count, step)
  column = Unsqueeze(places, last)
  place = Cast <to = 1> (column)
  y = Add(x, place)
}"""
    return with_weights(parser.parse_model(text), CONSTANTS)


class Decoder(Weights):
    """Token ids, a mask over past and new rows, and a cache with a dotted name, as LLM exporters write them."""

    def __init__(self) -> None:
        super().__init__(DECODER)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_0: Tensor) -> dict[str, Tensor]:
        cache = torch.cat([past_0, self.table[input_ids]], dim=1)
        return {"y": (cache * attention_mask[:, :, None]).sum(1), "present.0": cache}


DECODER = draw(2, table=(16, 8))


def decoder() -> onnx.ModelProto:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
decode (int64[batch, rows] input_ids, int64[batch, seen] attention_mask, float[batch, past, 8] past_0)
  => (float[batch, 8] y, float[batch, all, 8] present_0) {
  embeds = Gather(table, input_ids)
  present_0 = Concat <axis = 1> (past_0, embeds)
  mask = Cast <to = 1> (attention_mask)
  column = Unsqueeze(mask, axes)
  masked = Mul(present_0, column)
  y = ReduceSum <keepdims = 0> (masked, step)
}"""
    model = with_weights(parser.parse_model(text), DECODER | {"axes": np.array([2]), "step": np.array([1])})
    for node in model.graph.node:
        node.input[:], node.output[:] = ([n.replace("_0", ".0") for n in names] for names in (node.input, node.output))
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("_0", ".0")
    return model


CELL_STATES = ("h0=h0_next", "h1=h1_next")
WHOLE_STATES = ("past_k=present_k", "past_v=present_v")
ROW_STATES = ("past_k=new_k@append:1", "past_v=new_v@append:-2")
CASES = {
    "cell": (cell, "Cell", CELL_STATES),
    "cell in float16": (lambda: cell(np.float16), "Cell", CELL_STATES),
    "attention, whole cache": (lambda: attention(whole=True), "whole_cache", WHOLE_STATES),
    "attention, new rows": (lambda: attention(whole=False), "new_rows", ROW_STATES),
}

OTHERS = {
    "sum": (sum_graph, "Sum", ("total=total_next",)),
    "batch mean": (batch_mean, "BatchMean", ()),
    "batch place": (batch_place, "BatchPlace", ()),
    "decoder": (decoder, "Decoder", ("past.0=present.0",)),
}


class Checker:
    """Saves a graph and climbs the ladder with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "graph.onnx"

    def request(self, case: str, edit: Edit = lambda _: None, **options: Any) -> ForeignRequest:
        make, name, states = (CASES | OTHERS)[case]
        model = make()
        edit(model)
        onnx.save(model, self.path)
        given = {"reference": name if ":" in name else f"{MODELS}:{name}", "states": states, "steps": STEPS} | options
        return ForeignRequest(graph=self.path, **given)

    def __call__(self, case: str, edit: Edit = lambda _: None, **options: Any) -> ForeignReport:
        return check_foreign(self.request(case, edit, **options))


class SinglePrecision(Cell):
    """Always computes in float32, even if asked for float64."""

    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(x.float(), h0, h1)


class NotANumber(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, *states = super().forward(x, h0, h1)
        return y * torch.inf * 0, *states


class Chaos(Cell):
    """Amplifies rounding far too much per step for any stream to be compared."""

    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, new0, new1 = super().forward(x, h0, h1)
        return y, torch.sin(1e4 * new0), new1


class Masked(nn.Module):
    """Attention over the rows of x (B, L, 4) that `marked` (B, L) shows or hides; a row that sees nothing is NaN."""

    def __init__(self, *, hides: bool) -> None:
        super().__init__()
        self.hides = hides

    def forward(self, x: Tensor, marked: Tensor) -> Tensor:
        hidden = marked if self.hides else ~marked
        scores = (x @ x.mT).masked_fill(hidden[:, None, :], -torch.inf)
        return scores.softmax(-1) @ x


def marks_hide() -> Masked:
    return Masked(hides=True)


def marks_show() -> Masked:
    return Masked(hides=False)


def masked(*, hides: bool) -> onnx.ModelProto:
    """`marked` is not named as a mask. Only its use shows that it is one, here through a Not if marks show rows."""
    mark = "mark = Identity(marked)" if hides else "mark = Not(marked)"
    text = """
<ir_version: 9, opset_import: ["" : 17]>
attend (float[batch, rows, 4] x, bool[batch, rows] marked) => (float[batch, rows, 4] y) {
  %MARK%
  hidden = Unsqueeze(mark, middle)
  turned = Transpose <perm = [0, 2, 1]> (x)
  raw = MatMul(x, turned)
  scores = Where(hidden, low, raw)
  shares = Softmax <axis = -1> (scores)
  y = MatMul(shares, x)
}"""
    weights = {"middle": np.array([1]), "low": np.array(-np.inf, np.float32)}
    return with_weights(parser.parse_model(text.replace("%MARK%", mark)), weights)


class Scaled(nn.Module):
    """x (B, 4) times a rate that is not an index."""

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        return x * rate.to(x.dtype)


def scaled() -> onnx.ModelProto:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
scale (float[batch, 4] x, int64 rate) => (float[batch, 4] y) {
  factor = Cast <to = 1> (rate)
  y = Mul(x, factor)
}"""
    return parser.parse_model(text)


OTHERS |= {
    "marks hide": (lambda: masked(hides=True), "marks_hide", ()),
    "marks show": (lambda: masked(hides=False), "marks_show", ()),
    "scaled": (scaled, "Scaled", ()),
}
