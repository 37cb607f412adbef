"""Which operators an ONNX parser of TensorRT has, and of which dtypes. Data in engines/parsers/*.json, one a version.

Unusual: that a parser reads an opset does not say that it has its operators. TensorRT 10.13 reads opset 23 and has no
Attention; and a parser may take a file of any opset, and fail at the node.
Source: docs/operators.md of onnx-tensorrt, by commit in each file. What that list lacks and other pages have is under
`also`. What it says in words beside an operator is not here: only a parser can hold a node against that.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "parsers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parser:
    """What a parser has, as its list says.

    source     where the list is from, and of which version where none of this one was found
    opsets     the first and the last opset of a file that it reads
    dtypes     of any tensor, by numpy's names and those of ml_dtypes
    operators  of ONNX's own domain, each with the dtypes that it computes on; none where the list has none
    """

    name: str
    source: str
    opsets: tuple[int, int]
    dtypes: frozenset[str]
    operators: Mapping[str, frozenset[str]]


@functools.cache
def load_parser(version: str) -> Parser:
    """The parser of that version of TensorRT: a Target names it."""
    data: dict[str, Any] = json.loads((FOLDER / f"{version}.json").read_text(encoding="utf-8"))
    operators: dict[str, frozenset[str]] = {}
    for groups in (data["operators"], data["also"]):
        for dtypes, names in groups.items():
            for name in names.split():
                operators[name] = operators.get(name, frozenset()) | frozenset(dtypes.split())
    first, last = data["opsets"]
    return Parser(
        name=data["name"],
        source=data["source"],
        opsets=(first, last),
        dtypes=frozenset(data["dtypes"]),
        operators=operators,
    )
