"""What a manifest and a tokenizer say of the model, held against the model: every field, and every part of the file.

A stream of a few frames would not show most of it: the 96th frame, the seventh tile, a token that no answer has. A new
field of the manifest fails every check until it is either held here or named in ELSEWHERE.
Where a fact is wrong it is told once, and the check goes on with the model's own: what fails then is another fault.
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
    "format_version": "no other is read (engines/manifest.py)",
    "created_utc": "a note",
    "target": "the exporter's choice; `graphs` are held to it",
    "precision": "the exporter's choice; the weights are held to it (weights.py)",
    "islands": "the exporter's choice; the weights are held to it (weights.py)",
    "quantization": "the exporter's choice; the weights are held to it (weights.py)",
    "calibration": "found on frames and text; the weights and constants of the graphs are held to it (structure.py)",
    "int8_states": "the exporter's choice; `graphs` are held to it",
    "unfused": "the exporter's choice; `graphs` are held to it",
    "engines": "each is of the graph beside it (check.py)",
    "versions": "a note",
    "needs": "whoever opens it works it out from the graphs too, and holds to the later (engines/needs.py)",
    "files": "every file is held to its hash when a bundle is opened (engines/bundle.py)",
    "parity": "what this check will say",
}
"""Fields of the manifest that say nothing of the model, and what they are held to instead."""
NAMES = ("model.name.", "model.mapping.")
"""The same model may lie in another folder, its tensors under other names."""
IN_WORDS = ("prompt", "images")
"""Fields whose faults show in what the model is told; the others are of its graphs."""
NEXT_STEP = f"Name the model that it was made from with -m, or {EXPORT_AGAIN}"
MOST = 3
"""Wrong facts that are told one by one."""


def hold_facts(bundle: Bundle, loaded: LoadedModel, *, scratch: Path | None = None) -> tuple[Evidence, Bundle]:
    """Hold manifest and tokenizer against the model. Returns the bundle too, with the model's own where any is wrong.

    `shape`, `limits` and `graphs` stay as they are: the sessions are open, and made for them.
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
    """The field of each fact that is not the model's, and in words what it is and should be."""
    expected = _expected(manifest, loaded)
    for field in (field.name for field in fields(Manifest)):
        if field in ELSEWHERE:
            continue
        if field not in expected:
            yield field, f"{field} is held against nothing, expected a fact of the model or a line in ELSEWHERE"
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
    """What the fields of this manifest should be; of `limits`, what the model leaves no choice about."""
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
    """Every single value below a field, by its path: 'prompt.start', 'graphs.llm.inputs.0.name'."""
    plain = json.loads(json.dumps({"it": value}, default=asdict))["it"]

    def walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{path}.{key}", part)
        else:
            yield path, value

    return dict(walk(path, plain))


def _excerpt(value: Any, other: Any) -> str:
    """A value in words; of a long text, the part around where it leaves the other one."""
    if not (isinstance(value, str) and isinstance(other, str)) or len(value) <= 60:
        return repr(value)
    same = next((i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), min(len(value), len(other)))
    start = max(same - 20, 0)
    return f"{'...' if start else ''}{value[start : start + 60]!r}{'...' if start + 60 < len(value) else ''}"


def _rule(level: str, name: str, wrong: list[str]) -> Rule:
    if not wrong:
        return Rule(level=level, name=name, passed=True, detail="every fact of the manifest is the model's")
    more = f" and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    return Rule(level=level, name=name, passed=False, detail=f"{'; '.join(wrong[:MOST])}{more}. {NEXT_STEP}")
