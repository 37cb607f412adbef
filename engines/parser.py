"""Operators and dtypes that TensorRT's ONNX parser supports. Data in engines/parsers/*.json, one file per version.

Note: a parser that reads an opset need not have all its operators. TensorRT 10.13 reads opset 23 but has no Attention.
A parser may also accept a file of any opset and then fail at the node.
Source: docs/operators.md of onnx-tensorrt; each file names the commit. Operators found on other pages only are under
`also`. Restrictions that the list states in words are not included: only the parser itself can check a node for those.
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
    """The operators of a parser, from its published list.

    source     where the list comes from, and its version if none was found for this one
    opsets     first and last opset it reads
    dtypes     of any tensor, by the names of numpy and ml_dtypes
    operators  of ONNX's default domain, each with the dtypes it computes on; empty where the list names none
    """

    name: str
    source: str
    opsets: tuple[int, int]
    dtypes: frozenset[str]
    operators: Mapping[str, frozenset[str]]


@functools.cache
def load_parser(version: str) -> Parser:
    """The parser of a TensorRT version; a Target names the version."""
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
