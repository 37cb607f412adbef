"""A reference, a pair, a name or a file that cannot be used: each is an error that says why, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import ModelError, SpecError
from pvc_export.foreign import ForeignRequest, check_foreign

from .faults import other_dtype
from .models import MODELS, Cell, Checker, Edit

STEPS = 3


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


class Swaps(Cell):
    def forward(self, x: Tensor, h0: Tensor, h_1: Tensor) -> Any:
        return super().forward(x, h0, h_1)


class WantsMask(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor, mask: Tensor) -> Any:
        return super().forward(x, h0, h1)


class TwoOutputs(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        return super().forward(x, h0, h1)[:2]


class Misnamed(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        return dict(zip(("y", "h0_nxt", "h1_next"), super().forward(x, h0, h1), strict=True))


class OneMore(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        names = ("y", "h0_next", "h1_next")
        return dict(zip(names, super().forward(x, h0, h1), strict=True)) | {"score": x}


class NoTensor(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        return *super().forward(x, h0, h1)[:2], None


class Whole(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        return super().forward(x, h0, h1)[0].long(), h0, h1


class Raises(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        return x @ h0


class Rolls(Cell):
    def forward(self, x: Tensor, h0: Tensor, h1: Tensor) -> Any:
        y, *states = super().forward(x, h0, h1)
        return y + torch.rand(()), *states


def a_list() -> list[int]:
    return []


def needs_a_path(path: Path) -> Cell:
    return Cell()


BAD_REFERENCES = {
    "Net": "does not say what to import. Expected pkg.module:Name or path/to/file.py:Name",
    "gone.py:Net": "gone.py does not exist",
    "nowhere.module:Net": "importing nowhere.module failed: ModuleNotFoundError: No module named 'nowhere'",
    "TMP/broken.py:Net": r"importing .*broken.py failed: ZeroDivisionError: .*\(broken.py:2\)",
    "TMP/script.py:Net": r"importing .*script.py failed: SystemExit: 3 .*a script without a main guard",
    "TMP/weights.pt:Net": "is neither a module nor a .py file.*pickles are never loaded",
    f"{__name__}:Cel": "has no 'Cel'. Did you mean 'Cell'?",
    f"{__name__}:STEPS": "is of type int, expected a torch.nn.Module",
    f"{__name__}:a_list": "made an object of type list, expected a torch.nn.Module",
    f"{__name__}:needs_a_path": "cannot be made without arguments: TypeError.*write a function beside it",
    f"{__name__}:Swaps": "takes no argument 'h1', but the graph has an input 'h1'. Did you mean 'h_1'?",
    f"{__name__}:WantsMask": "requires 'mask', which is no input of the graph; it has x, h0, h1",
    f"{__name__}:TwoOutputs": "returns 2 tensors, but the graph has 3 outputs: y, h0_next, h1_next",
    f"{__name__}:Misnamed": "returns a dict without 'h0_next', an output of the graph. Did you mean 'h0_nxt'?",
    f"{__name__}:OneMore": "returns 'score', which is no output of the graph",
    f"{__name__}:NoTensor": "returns an object of type NoneType for output 'h1_next', expected a torch tensor",
    f"{__name__}:Whole": "returns int64 for 'y' float32 .*, expected float",
    f"{__name__}:Raises": r"fails on x float32 \(2, 4\), h0 float32 \(2, 6\).*RuntimeError: .*test_foreign_input.py:",
    f"{__name__}:Rolls": "returns another 'y' for the same inputs, expected a function of them",
}


@pytest.mark.parametrize("reference", BAD_REFERENCES, ids=lambda text: text.rpartition(".")[2])
def test_a_reference_that_cannot_be_used_is_an_error_that_says_why(
    reference: str, check: Checker, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "weights.pt").write_bytes(b"not a pickle that anybody reads")
    pattern = BAD_REFERENCES[reference].replace("?", r"\?")
    with pytest.raises(ModelError, match=pattern):
        check("cell", reference=reference.replace("TMP", str(tmp_path)))


def test_a_reference_in_a_file_may_import_its_neighbours_and_be_an_instance(check: Checker, tmp_path: Path) -> None:
    (tmp_path / "foreign_neighbour.py").write_text(f"from {MODELS} import Cell\n")
    (tmp_path / "model.py").write_text("from foreign_neighbour import Cell\nmodel = Cell().half().train()\n")
    report = check("cell in float16", reference=f"{tmp_path / 'model.py'}:model", steps=2)
    assert report.passed, report.failure_text()


BAD_NAMES: list[tuple[str, Edit, dict[str, tuple[str, ...]], str]] = [
    ("cell", lambda _: None, {"states": ("h0_nxt=h0",)}, "names the input 'h0_nxt', which graph.onnx does not have"),
    ("cell", lambda _: None, {"states": ("h0=h0_nxt",)}, "the output 'h0_nxt', .* Did you mean 'h0_next'?"),
    ("cell", lambda _: None, {"states": ("h0_next=h0",)}, "It has an output of that name: a pair is INPUT=OUTPUT"),
    ("cell", lambda _: None, {"states": ("h0=h0_next", "h1=h0_next")}, "names the output 'h0_next' twice"),
    ("cell", other_dtype, {}, "'h0' float32 .batch, 6., the output 'h0_next' float64 .*Expected one dtype"),
    ("cell", lambda _: None, {"states": ("h0=y",)}, "'h0' float32 .batch, 6., the output 'y' .*Expected one shape"),
    (
        "cell",
        lambda _: None,
        {"states": ("h0=h0_next@append:1",)},
        "axis 1 of .* has a fixed size.* dynamic axes are 0",
    ),
    ("cell", lambda _: None, {"states": ("h0=h0_next@append:2",)}, "has no such axis. Expected one of 0..1"),
    ("cell", lambda _: None, {"states": ("h0=h0_next@start:2",)}, "no axis of 'h0' grows"),
    ("cell", lambda _: None, {"sizes": ("bach=3",)}, "has no dynamic axis 'bach'. Did you mean 'batch'?"),
    ("attention, new rows", lambda _: None, {"sizes": ("past=3",)}, "that axis grows with its state"),
    ("cell", lambda _: None, {"bounds": ("h0=0:1",)}, "names 'h0', which is no input of graph.onnx that is drawn"),
    ("decoder", lambda _: None, {"bounds": ("input_ids=0.5:1",)}, "does not fit 'input_ids' int64"),
]


@pytest.mark.parametrize(
    ("case", "edit", "options", "message"), BAD_NAMES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_name_or_a_pair_that_the_graph_cannot_have_is_an_error_that_says_why(
    case: str, edit: Edit, options: dict[str, tuple[str, ...]], message: str, check: Checker
) -> None:
    with pytest.raises(SpecError, match=message.replace("?", r"\?")):
        check(case, edit, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": ("h0",)}, "--state h0 is no pair, expected INPUT=OUTPUT"),
        ({"sizes": ("batch",)}, "--size batch is no size"),
        ({"bounds": ("x=1",)}, "--bound x=1 is no range"),
        ({"bounds": ("x=2:1",)}, "--bound x=2:1 is no range"),
        ({"bounds": ("x=a:b",)}, "--bound x=a:b is no range"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_says_nothing_is_refused_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ForeignRequest(reference="a:B", graph=Path("gone.onnx"), **options)


def test_a_graph_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    request = ForeignRequest(reference=f"{MODELS}:Cell", graph=tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is not a file, expected an ONNX graph"):
        check_foreign(request)
    for content, message in ((b"", "holds no graph with outputs"), (b"\xffnot onnx", "is not an ONNX file")):
        request.graph.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            check_foreign(request)
