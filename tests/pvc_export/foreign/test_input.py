"""An unusable reference, pair, name or file is an error that states the reason and the fix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from engines.errors import ModelError, PVCError, SpecError
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


def require_said(error: PVCError, said: dict[str, str]) -> None:
    """Check that each field matches its pattern. An unescaped '?' is a literal question mark."""
    for field, pattern in said.items():
        found = getattr(error, field)
        assert re.search(pattern.replace("?", r"\?"), found), f"{field}: {pattern!r} is not in {found!r}"


FORM = "pkg.module:Name or path/to/file.py:Name"
BAD_REFERENCES: dict[str, dict[str, str]] = {
    "Net": {"what": "names no model", "expected": FORM},
    "gone.py:Net": {"what": "gone.py does not exist"},
    "nowhere.module:Net": {
        "what": "importing nowhere.module failed: ModuleNotFoundError: No module named 'nowhere'",
        "fix": "python -c 'import nowhere.module'",
    },
    "TMP/broken.py:Net": {"what": r"importing .*broken.py failed: ZeroDivisionError: .*\(broken.py:2\)"},
    "TMP/script.py:Net": {
        "what": r"importing .*script.py failed: SystemExit: 3 ",
        "cause": "a script without a main guard",
    },
    "TMP/weights.pt:Net": {"what": "is neither a module nor a .py file", "cause": "a pickle, which are never loaded"},
    f"{__name__}:Cel": {"what": "has no 'Cel'", "fix": "Did you mean 'Cell'?"},
    f"{__name__}:STEPS": {"what": "is an object of type int", "expected": "a torch.nn.Module"},
    f"{__name__}:a_list": {"what": "makes an object of type list", "expected": "a torch.nn.Module"},
    f"{__name__}:needs_a_path": {
        "what": "cannot be made without arguments: TypeError",
        "fix": "add a function that passes them",
    },
    f"{__name__}:Swaps": {"what": "takes no argument 'h1' for the graph's input 'h1'", "fix": "Did you mean 'h_1'?"},
    f"{__name__}:WantsMask": {
        "what": "requires 'mask', which is not an input of the graph",
        "expected": "the graph's inputs: x, h0, h1",
    },
    f"{__name__}:TwoOutputs": {"what": "returns 2 tensors", "expected": "the graph's 3 outputs: y, h0_next, h1_next"},
    f"{__name__}:Misnamed": {
        "what": "returns a dict without 'h0_next', an output of the graph",
        "fix": "Did you mean 'h0_nxt'?",
    },
    f"{__name__}:OneMore": {"what": "returns 'score', which is not an output of the graph"},
    f"{__name__}:NoTensor": {
        "what": "returns an object of type NoneType for output 'h1_next'",
        "expected": "a torch tensor",
    },
    f"{__name__}:Whole": {"what": "returns int64 for 'y' float32 .*", "expected": "float"},
    f"{__name__}:Raises": {
        "what": r"fails on x float32 \(2, 4\), h0 float32 \(2, 6\).*RuntimeError: .*\(test_input.py:",
        "fix": "--size AXIS=N",
    },
    f"{__name__}:Rolls": {
        "what": "returns a different 'y' for the same inputs",
        "expected": "a function of its inputs",
    },
}


@pytest.mark.parametrize("reference", BAD_REFERENCES, ids=lambda text: text.rpartition(".")[2])
def test_a_reference_that_cannot_be_used_is_an_error_that_says_why(
    reference: str, check: Checker, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("x = 0\ny = 1 / x\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "weights.pt").write_bytes(b"not a pickle that anybody reads")
    with pytest.raises(ModelError) as info:
        check("cell", reference=reference.replace("TMP", str(tmp_path)))
    require_said(info.value, BAD_REFERENCES[reference])


def test_a_reference_in_a_file_may_import_its_neighbours_and_be_an_instance(check: Checker, tmp_path: Path) -> None:
    (tmp_path / "foreign_neighbour.py").write_text(f"from {MODELS} import Cell\n")
    (tmp_path / "model.py").write_text("from foreign_neighbour import Cell\nmodel = Cell().half().train()\n")
    report = check("cell in float16", reference=f"{tmp_path / 'model.py'}:model", steps=2)
    assert report.passed, report.failure_text()


def faithful(_: onnx.ModelProto) -> None:
    """Leave the graph unchanged."""


BAD_NAMES: list[tuple[str, Edit, dict[str, tuple[str, ...]], dict[str, str]]] = [
    ("cell", faithful, {"states": ("h0_nxt=h0",)}, {"what": "the input 'h0_nxt', which graph.onnx does not have"}),
    ("cell", faithful, {"states": ("h0=h0_nxt",)}, {"what": "the output 'h0_nxt', ", "fix": "Did you mean 'h0_next'?"}),
    ("cell", faithful, {"states": ("h0_next=h0",)}, {"cause": "an output of the graph: a pair is INPUT=OUTPUT"}),
    ("cell", faithful, {"states": ("h0=h0_next", "h1=h0_next")}, {"what": "names the output 'h0_next' twice"}),
    (
        "cell",
        other_dtype,
        {},
        {"what": "'h0' float32 .batch, 6., but the output is 'h0_next' float64", "expected": "the same dtype"},
    ),
    (
        "cell",
        faithful,
        {"states": ("h0=y",)},
        {"what": "'h0' float32 .batch, 6., but the output is 'y' ", "expected": "the same shape"},
    ),
    (
        "cell",
        faithful,
        {"states": ("h0=h0_next@append:1",)},
        {"what": "axis 1 of .* has a fixed size", "expected": "dynamic axes, which are 0$"},
    ),
    ("cell", faithful, {"states": ("h0=h0_next@append:2",)}, {"what": "has no such axis", "expected": "of 0..1"}),
    ("cell", faithful, {"states": ("h0=h0_next@start:2",)}, {"what": "no axis of 'h0' grows"}),
    ("cell", faithful, {"sizes": ("bach=3",)}, {"what": "has no dynamic axis 'bach'", "fix": "Did you mean 'batch'?"}),
    ("attention, new rows", faithful, {"sizes": ("past=3",)}, {"what": "that axis grows with its state"}),
    ("cell", faithful, {"bounds": ("h0=0:1",)}, {"what": "names 'h0', which is not a drawn input of graph.onnx"}),
    ("decoder", faithful, {"bounds": ("input_ids=0.5:1",)}, {"what": "does not fit 'input_ids' int64"}),
]


@pytest.mark.parametrize(
    ("case", "edit", "options", "said"), BAD_NAMES, ids=[next(iter(said.values())) for *_, said in BAD_NAMES]
)
def test_a_name_or_a_pair_that_the_graph_cannot_have_is_an_error_that_says_why(
    case: str, edit: Edit, options: dict[str, tuple[str, ...]], said: dict[str, str], check: Checker
) -> None:
    with pytest.raises(SpecError) as info:
        check(case, edit, **options)
    require_said(info.value, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"states": ("h0",)}, {"what": "--state h0 is not valid", "expected": "INPUT=OUTPUT"}),
        ({"sizes": ("batch",)}, {"what": "--size batch is not valid", "expected": "AXIS=N"}),
        ({"bounds": ("x=1",)}, {"what": "--bound x=1 is not valid", "expected": "INPUT=LOW:HIGH"}),
        ({"bounds": ("x=2:1",)}, {"what": "--bound x=2:1 is not valid", "expected": "LOW <= HIGH"}),
        ({"bounds": ("x=a:b",)}, {"what": "--bound x=a:b is not valid"}),
        ({"bounds": ("x=0:1e999",)}, {"what": "--bound x=0:1e999 is not valid"}),
        ({"steps": 0}, {"what": "--steps is 0", "expected": "at least 1"}),
    ],
    ids=lambda value: value.get("what", "given"),
)
def test_a_request_that_says_nothing_is_refused_before_anything_is_read(
    options: dict[str, Any], said: dict[str, str]
) -> None:
    with pytest.raises(SpecError) as info:
        ForeignRequest(reference="a:B", graph=Path("gone.onnx"), **options)
    require_said(info.value, said)


def test_a_graph_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    request = ForeignRequest(reference=f"{MODELS}:Cell", graph=tmp_path / "gone.onnx")
    with pytest.raises(ModelError) as info:
        check_foreign(request)
    require_said(info.value, {"what": "is not a file", "expected": "an ONNX graph"})
    for content, message in ((b"", "has no outputs"), (b"\xffnot onnx", "is not an ONNX file")):
        request.graph.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            check_foreign(request)
