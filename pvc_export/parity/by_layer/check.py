"""Check of a bundle against a reference whose weights stay in their files, in bounded memory.

The vision side runs as a stream, as usual. Each layer of the LLM is fed the reference's input (sweep.py), as are the
embedding table and the head. Checks that need the whole model at once are reported as not executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.bundle import graph_path, verify_files
from engines.manifest import Manifest
from engines.memory import Array
from engines.session import Session
from engines.sizes import available_bytes
from engines.spec import VISION_GRAPHS
from pvc_ref.prompt import IMAGE_CONTEXT

from ...graphs.models import LoadedModel, require_same_weights
from ...graphs.precision import TORCH_DTYPE
from ...terminal.console import size_text
from ..against_reference import compare_text, compare_tokens, text_noise
from ..bfloat16_on_cpu import open_on_cpu
from ..clip import QUESTION
from ..engines import check_engines
from ..evidence import Evidence, never_seen
from ..facts import hold_facts
from ..float16_on_cpu import Float16Products
from ..fresh import FreshGraphs
from ..metrics import compare_arrays
from ..places import Place, Rung
from ..recording import Progress, to_numpy
from ..report import ParityReport, judge
from ..rounding import Reference
from ..structure import compare_graphs
from .cut import CutDecoder
from .held import read_when_called
from .per_run import OpenedPerRun
from .sweep import sweep
from .vision import see

NUM_FRAMES = 4
"""Frames of the clip that the conversation is about."""
NUM_HEADS = 16
"""Last rows of the conversation whose logits are compared."""
LEFT_OUT = "the whole LLM in one pass, answers, state rules and the ladder"
"""Key in `not_executed` for everything that this kind of check omits."""
ASKED = "a layer-by-layer check was requested"
BYTES_A_WEIGHT = 12
"""Memory per weight of a whole check: the reference in float32, and ONNX Runtime's copies of a narrow graph."""
ROOM = 0.85
"""Fraction of the free memory that a check may use. A golden recording after it took 13 bytes per weight; with 1.87
billion weights the process was killed on a machine with 23 GiB, all of it free."""


def why_by_layer(loaded: LoadedModel) -> str | None:
    """Why a model must be checked layer by layer; None if it is in memory already, or fits."""
    free = available_bytes()
    needed = BYTES_A_WEIGHT * sum(weight.numel() for weight in loaded.model.parameters())
    if loaded.model.stored is None or free is None or needed <= ROOM * free:
        return None
    return f"a whole check needs about {size_text(needed)} of memory, and only {size_text(free)} are free"


@torch.no_grad()
def check_by_layer(
    folder: Path, loaded: LoadedModel, exports: FreshGraphs, *, why: str, scratch: Path | None, progress: Progress
) -> ParityReport:
    """Check a bundle layer by layer. Raises what check_bundle raises. why: the reason, for the report."""
    manifest = Manifest.load(folder)
    verify_files(folder, manifest, engines=False)
    require_same_weights(manifest, loaded)
    reference = Reference.of(loaded.model, manifest.precision, manifest.islands)
    evidence = Evidence(not_executed={LEFT_OUT: why}) + check_engines(folder, manifest)
    with read_when_called(reference):
        with open_on_cpu(folder, VISION_GRAPHS, opened=OpenedPerRun) as bundle:
            facts, bundle = hold_facts(bundle, loaded, scratch=scratch)
            evidence += facts
            seen = see(bundle, reference, lambda x: progress(0.35 * x))
            evidence += seen.evidence
        if not seen.ended_early:
            conversation, found = _read(folder, loaded, reference, seen.frame_embeds[:NUM_FRAMES])
            evidence += found
            cut = CutDecoder(folder / graph_path("llm"), manifest.graphs["llm"])
            swept = sweep(cut, manifest, reference, conversation, lambda x: progress(0.35 + 0.45 * x))
            evidence += swept.evidence
            if swept.hidden is not None:
                evidence += _say(folder, manifest, reference, swept.hidden[:, -NUM_HEADS:])
                evidence += never_seen(evidence, manifest)
    evidence += compare_graphs(folder, manifest, loaded, exports)
    progress(1.0)
    return judge(evidence, manifest, num_frames=seen.num_frames)


def _read(folder: Path, loaded: LoadedModel, reference: Reference, frames: Tensor) -> tuple[Tensor, Evidence]:
    """The conversation's embeddings (1, L, E), which include the frames' (T, M, E), and a comparison of the bundle's
    embedding table on its text."""
    manifest = Manifest.load(folder)
    prompt = loaded.prompt_ids(num_frames=len(frames), question=QUESTION)
    text = prompt[prompt != loaded.token_id(IMAGE_CONTEXT)]
    with _one(folder, "embed") as session:
        (fed,) = session.run({"input_ids": text[None].numpy()}).values()
    want = reference.model.llm.embed_tokens(text).to(TORCH_DTYPE[manifest.precision])[None]
    found = (compare_text(manifest.precision, _host(session, fed), want), text_noise(reference, text))
    room = manifest.limits.context
    return loaded.prompt_embeds(prompt, frames)[:, :room], Evidence(differences=found)


def _say(folder: Path, manifest: Manifest, reference: Reference, hidden: Tensor) -> Evidence:
    """Compare the head's logits and likeliest tokens for hidden rows (1, L, E), each run as if it were the newest."""
    hidden = hidden.to(TORCH_DTYPE[manifest.precision]).float()
    with Float16Products():
        own = to_numpy(reference.model.llm.logits(hidden[0]))
        twin = to_numpy(reference.twin.llm.logits(hidden[0].to(reference.dtype)))
    rung, heads, found = Rung("bundle", manifest.precision), list[Array](), []
    with _one(folder, "head") as session:
        entry = session.spec.input("hidden")
        for index in range(len(own)):
            row = hidden[:, index : index + 1].numpy().astype(entry.dtype)
            heads.append(_host(session, session.run({"hidden": row})["logits"]))
            one, where = slice(index, index + 1), Place("token", index)
            found.append(compare_arrays(heads[-1], own[one], rung=rung, graph="head", tensor="logits", where=where))
            found.append(reference.noise(own[one], twin[one], graph="head", tensor="logits", where=where))
    tokens = [int(head.argmax()) for head in heads]
    said = compare_tokens(tokens, heads, own, manifest.rounding)
    return Evidence(differences=tuple(found), num_tokens=len(tokens)) + said


@contextmanager
def _one(folder: Path, name: str) -> Iterator[Session]:
    with open_on_cpu(folder, (name,), opened=OpenedPerRun) as bundle:
        yield bundle.sessions[name]


def _host(session: Session, tensor: object) -> Array:
    return np.array(session.memory.to_host(tensor))  # type: ignore[arg-type]
