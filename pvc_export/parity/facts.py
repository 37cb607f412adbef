"""Check of the manifest and the tokenizer against the model: every field, and every part of the file.

A stream of a few frames would not reveal most errors: the 96th frame, the seventh tile, a token that is in no answer. A
new field of the manifest fails every check until it is either checked here or listed in ELSEWHERE.
A wrong fact is reported once, and the check continues with the model's value, so any later failure is another fault.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from engines.bundle import TOKENIZER_NAME, Bundle
from engines.errors import EXPORT_AGAIN
from engines.graph_specs import graph_specs
from engines.manifest import Manifest
from engines.prompt import PromptTokenizer
from engines.target import load_target

from ..graphs.clock_table import with_num_times
from ..graphs.facts import model_facts
from ..graphs.models import LoadedModel
from .evidence import Evidence
from .levels import Rule
from .tokenizer import compare_tokenizer

ELSEWHERE: dict[str, str] = {
    "format_version": "only this version is read (engines/manifest.py)",
    "created_utc": "a note",
    "target": "the exporter's choice; `graphs` are checked against it",
    "precision": "the exporter's choice; the weights are checked against it (weights.py)",
    "islands": "the exporter's choice; the weights are checked against it (weights.py)",
    "quantization": "the exporter's choice; the weights are checked against it (weights.py)",
    "calibration": "measured on frames and text; weights and constants are checked against it (structure.py)",
    "int8_states": "the exporter's choice; `graphs` are checked against it",
    "unfused": "the exporter's choice; `graphs` are checked against it",
    "engines": "each must be built from the graph next to it (engines.py)",
    "versions": "a note",
    "needs": "whatever opens the bundle also derives it from the graphs and uses the later version (engines/needs.py)",
    "files": "every file's hash is checked when a bundle is opened (engines/bundle.py)",
    "parity": "the result of this check",
}
"""Fields of the manifest that are not facts of the model, and how they are checked instead."""
NAMES = ("model.name.", "model.mapping.")
"""The same model may be in another folder, with its tensors under other names."""
IN_WORDS = ("prompt", "images")
"""Fields whose faults show in the model's prompt; the others concern its graphs."""
NEXT_STEP = f"Name the model that the bundle was made from with -m, or {EXPORT_AGAIN}"
MOST = 3
"""Wrong facts that are listed individually."""


def hold_facts(bundle: Bundle, loaded: LoadedModel, *, scratch: Path | None = None) -> tuple[Evidence, Bundle]:
    """Check manifest and tokenizer against the model. If any fact is wrong, the returned bundle has the model's facts.

    `shape`, `limits` and `graphs` are not replaced: the open sessions were made for them.
    """
    manifest = bundle.manifest
    wrong = list(wrong_facts(manifest, loaded))
    rules = [_rule("A", "facts of the model", [fact for name, fact in wrong if name not in IN_WORDS])]
    rules += [_rule("K", "prompt and images", [fact for name, fact in wrong if name in IN_WORDS])]
    rules += compare_tokenizer(bundle, loaded)
    evidence = Evidence(rules=tuple(rules))
    if all(rule.passed for rule in rules):
        return evidence, bundle
    own = {name: fact for name, fact in model_facts(loaded).items() if name not in ("model", "shape")}
    manifest = replace(manifest, **own)
    with tempfile.TemporaryDirectory(prefix="pvc-tokenizer-", dir=scratch) as folder:
        path = Path(folder) / TOKENIZER_NAME
        path.write_text(loaded.tokenizer.to_str(), encoding="utf-8")
        return evidence, replace(bundle, manifest=manifest, tokenizer=PromptTokenizer(path, manifest.prompt))


def wrong_facts(manifest: Manifest, loaded: LoadedModel) -> Iterator[tuple[str, str]]:
    """Each wrong fact: its field, and its value and the expected one in words."""
    expected = _expected(manifest, loaded)
    for field in (field.name for field in fields(Manifest)):
        if field in ELSEWHERE:
            continue
        if field not in expected:
            yield field, f"the field {field} is not checked, expected a fact of the model or an entry in ELSEWHERE"
            continue
        got, want = _leaves(field, getattr(manifest, field)), _leaves(field, expected[field])
        for path in dict.fromkeys([*want, *got]):
            said, right = got.get(path, "missing"), want.get(path, "nothing")
            if said != right and not f"{path}.".startswith(NAMES):
                yield field, f"{path} is {_excerpt(said, right)}, expected {_excerpt(right, said)}"
    if manifest.limits.context > loaded.config.llm.max_positions:
        most = loaded.config.llm.max_positions
        yield "limits", f"limits.context is {manifest.limits.context}, expected at most the model's {most} positions"


def _expected(manifest: Manifest, loaded: LoadedModel) -> dict[str, Any]:
    """The expected fields of this manifest; in `limits`, only what the model determines."""
    facts, limits, target = model_facts(loaded), manifest.limits, load_target(manifest.target)
    if limits.num_times is not None:
        limits = with_num_times(limits, loaded.config)
    graphs = graph_specs(
        facts["shape"], limits, manifest.precision, target.spelling,
        cache_update=target.update_of(manifest.int8_states), quantization=manifest.quantization,
        int8_states=manifest.int8_states, unfused=manifest.unfused,
    )  # fmt: skip
    return {**facts, "limits": limits, "graphs": graphs}


def _leaves(path: str, value: Any) -> dict[str, Any]:
    """Path -> value for every single value under a field: 'prompt.start', 'graphs.llm.inputs.0.name'."""
    plain = json.loads(json.dumps({"it": value}, default=asdict))["it"]

    def walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{path}.{key}", part)
        else:
            yield path, value

    return dict(walk(path, plain))


def _excerpt(value: Any, other: Any) -> str:
    """A value in words; for a long text, the part around its first difference from the other one."""
    if not (isinstance(value, str) and isinstance(other, str)) or len(value) <= 60:
        return repr(value)
    same = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), min(len(value), len(other)))
    start = max(same - 20, 0)
    return f"{'...' if start else ''}{value[start : start + 60]!r}{'...' if start + 60 < len(value) else ''}"


def _rule(level: str, name: str, wrong: list[str]) -> Rule:
    if not wrong:
        return Rule(level=level, name=name, passed=True, detail="every fact in the manifest matches the model")
    more = f" and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    return Rule(level=level, name=name, passed=False, detail=f"{'; '.join(wrong[:MOST])}{more}. {NEXT_STEP}")
