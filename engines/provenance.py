"""Origin of an engine: who built it, and from what. Signed when it is built, verified when it is opened or checked.

A hash detects damage. It does not show that an engine was built from the graph next to it: two engines of one bundle,
or of two bundles with the same shapes, can be exchanged along with their hashes, and they run. The signature shows it,
but only to the machine that built them; any other machine has to trust them or not.
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
exchanged  built on this machine, but not as in the manifest: another engine, graph or bundle, or edited since
elsewhere  built on another machine, so it cannot be verified on this one
unsigned   the manifest is from an earlier version, whose signatures covered only the engine
"""

SIGNED = (
    "path", "runtime", "runtime_version", "compute_capabilities", "num_layers", "fused_attention", "build_s",
    "built_on", "built_from",
)  # fmt: skip
"""Fields of an engine's entry that are signed: all but the signature."""


def sign_engines(manifest: Manifest) -> Manifest:
    """The manifest with every engine signed by this machine, which has just built them all.

    Its `files` must list the engines.
    """
    marked = {name: replace(entry, built_on=make_mark(), signature="") for name, entry in manifest.engines.items()}
    manifest = replace(manifest, engines=marked)
    signed = {name: replace(entry, signature=sign(_statement(manifest, name))) for name, entry in marked.items()}
    return replace(manifest, engines=signed)


def origin_of(manifest: Manifest, graph: str) -> Origin:
    """Origin of a graph's engine, as far as this machine can tell."""
    entry = manifest.engines[graph]
    if not entry.signature:
        return "unsigned"
    if not is_own_mark(entry.built_on):
        return "elsewhere"
    is_as_signed = hmac.compare_digest(entry.signature.encode(), sign(_statement(manifest, graph)).encode())
    return "here" if is_as_signed else "exchanged"


def _statement(manifest: Manifest, graph: str) -> str:
    """The signed facts of a build: the engine's bytes, the graph's (`built_from`), name, tensors and profiles, the
    target, and the other fields of the engine's entry. Fields added later must not change it."""
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
