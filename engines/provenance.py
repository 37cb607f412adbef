"""Who built an engine, and from what: signed where it is built, looked at again wherever it is opened or checked.

A hash finds damage. It does not say that an engine was built from the graph beside it: two engines of one bundle, or
those of two bundles of the same shapes, can be exchanged with their hashes, and run. The signature says it, to the
machine that built them; any other can only be told so, and trust it or not.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import replace
from typing import Literal

from .machine import is_own_mark, make_mark, sign
from .manifest import Manifest

Origin = Literal["here", "exchanged", "elsewhere", "unsigned"]
"""here       built on this machine, from this graph, for this bundle
exchanged  built on this machine, but not as the manifest says now: another engine, graph or bundle, or edited since
elsewhere  built on another machine: nobody can verify it on this one
unsigned   the manifest is of an earlier version, whose signatures covered the engine alone
"""

SIGNED = (
    "path", "runtime", "runtime_version", "compute_capabilities", "num_layers", "fused_attention", "build_s",
    "built_on", "built_from",
)  # fmt: skip
"""Of an engine's entry: everything but the signature."""


def sign_engines(manifest: Manifest) -> Manifest:
    """The manifest with every engine signed by this machine, as the one that built them all just now.

    Its `files` must list the engines.
    """
    marked = {name: replace(entry, built_on=make_mark(), signature="") for name, entry in manifest.engines.items()}
    manifest = replace(manifest, engines=marked)
    signed = {name: replace(entry, signature=sign(_statement(manifest, name))) for name, entry in marked.items()}
    return replace(manifest, engines=signed)


def origin_of(manifest: Manifest, graph: str) -> Origin:
    """Where the engine of a graph comes from, as far as this machine can tell."""
    entry = manifest.engines[graph]
    if not entry.signature:
        return "unsigned"
    if not is_own_mark(entry.built_on):
        return "elsewhere"
    is_as_signed = hmac.compare_digest(entry.signature.encode(), sign(_statement(manifest, graph)).encode())
    return "here" if is_as_signed else "exchanged"


def _statement(manifest: Manifest, graph: str) -> str:
    """All that makes a build what it is: the engine's bytes, the graph's (`built_from`), its name, its tensors and
    profiles, the target, and what else the engine's entry says. A field that comes later must not change it."""
    entry, spec = manifest.engines[graph], manifest.graphs[graph]
    build = {
        "graph": graph,
        "tensors": [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)],
        "profiles": [{dim: (r.min, r.opt, r.max) for dim, r in ranges.items()} for ranges in spec.profiles],
        "aliases": spec.aliases,
        "target": manifest.target,
        "engine": manifest.files[entry.path].sha256,
        "entry": {name: getattr(entry, name) for name in SIGNED}
        | ({} if entry.visible == "all" else {"visible": entry.visible}),
    }
    return json.dumps(build, sort_keys=True)
