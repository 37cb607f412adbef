"""The lists of what each TensorRT's ONNX parser supports, and that targets need nothing else."""

from __future__ import annotations

import json
import re

import pytest

from engines.parser import FOLDER, load_parser
from engines.target import load_target, target_names

VERSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))
IN_PLACE = {"TensorScatter", "Attention"}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_list_says_where_it_is_from_and_lists_no_operator_twice(version: str) -> None:
    data = json.loads((FOLDER / f"{version}.json").read_text("utf-8"))
    assert re.search(r"onnx-tensorrt at [0-9a-f]{40}", data["source"])
    for groups in (data["operators"], data["also"]):
        names = [name for group in groups.values() for name in group.split()]
        assert len(names) == len(set(names))
        assert {dtype for dtypes in groups for dtype in dtypes.split()} <= set(data["dtypes"])
    assert data["also_source"]


def test_a_later_parser_has_what_an_earlier_one_had() -> None:
    parsers = [load_parser(version) for version in sorted(VERSIONS, key=numbers)]
    for earlier, later in zip(parsers, parsers[1:], strict=False):
        assert later.opsets[1] >= earlier.opsets[1]
        for operator, dtypes in earlier.operators.items():
            assert dtypes <= later.operators[operator] or not later.operators[operator]


@pytest.mark.parametrize("name", target_names())
def test_a_target_with_engines_names_the_parser_of_the_oldest_version_that_may_build_or_one_before_it(
    name: str,
) -> None:
    target = load_target(name)
    assert (target.parser is None) == (target.builder is None)
    if target.parser is not None and target.builder == "tensorrt":
        assert target.parser in VERSIONS
        oldest = numbers(target.builder_versions[0])
        assert target.parser == max((v for v in VERSIONS if numbers(v) <= oldest), key=numbers)


@pytest.mark.parametrize("name", [name for name in target_names() if load_target(name).parser])
def test_a_target_asks_for_nothing_that_its_parser_lacks(name: str) -> None:
    target = load_target(name)
    parser = load_parser(target.parser or "")
    assert (target.cache_update == "aliased") == (set(parser.operators) >= IN_PLACE)
    assert bool(target.int4_blocks) == ("int4" in parser.operators["DequantizeLinear"] and parser.opsets[1] >= 21)
