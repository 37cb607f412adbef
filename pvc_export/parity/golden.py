"""Make a golden recording (engines/golden): samples of a bundle's reference, with limits from the model's noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from engines.golden.recording import Golden, Pass, Samples, sampled
from engines.manifest import Manifest
from engines.memory import Array
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT, STOP_TOKEN

from ..graphs.hollow import in_memory
from ..graphs.models import LoadedModel
from ..graphs.precision import TORCH_DTYPE
from ..graphs.quantize import as_held
from .against_reference import Dialogue, logits_of, run_dialogue, text_noise
from .by_layer.check import why_by_layer
from .by_layer.held import read_when_called
from .clip import QUESTION, real_frames, render_clip
from .limits import NoiseTable, near_tie
from .metrics import Difference, compare_arrays
from .places import Place, PlaceKind, Rung
from .recorded_stream import frames_that_fit
from .recording import EMBEDS, Frames, Progress, noise_of, run_torch, run_twin, to_numpy, twin_embeds
from .rounding import Reference

NUM_REAL = 2
"""Camera frames at the end of the clip. The others are rendered, which take a tenth of the space in a file."""
NUM_TOKENS, NUM_TOKENS_ON_DISK = 8, 2
"""Tokens of the answer. With weights on disk, each costs a pass over all of them."""
NUM_ROWS, NUM_STATE_ROWS = 8, 16
"""Rows kept per output, and per cache, whose rows are heads."""
NUM_LOGITS, NUM_LIKELIEST = 2048, 16
"""Logits kept: so many spread evenly over the vocabulary, and the likeliest of each step."""


@torch.no_grad()
def record_golden(loaded: LoadedModel, manifest: Manifest, progress: Progress = lambda _: None) -> Golden:
    """Record the model that a bundle holds, quantised weights included, in float32.

    Raises SpecError if one frame, a question and an answer do not fit in the context.
    """
    on_disk = loaded.model.stored is not None and why_by_layer(loaded) is not None
    if loaded.model.stored is not None and not on_disk:
        loaded = replace(loaded, model=in_memory(loaded.model))
    held = as_held(loaded, manifest)
    reference = Reference.of(held.model, manifest.precision, manifest.islands)
    with read_when_called(reference) if on_disk else nullcontext():
        return _record(held, manifest, reference, progress, num_tokens=NUM_TOKENS_ON_DISK if on_disk else NUM_TOKENS)


def _record(
    loaded: LoadedModel, manifest: Manifest, reference: Reference, progress: Progress, *, num_tokens: int
) -> Golden:
    window, temporal = manifest.limits.window, manifest.graphs["temporal"]
    pixels = _pixels(window + 2, manifest.shape.image_size)
    total = len(pixels) if manifest.time_mode == "fixed" else None
    frames = Frames(pixels=pixels, times=range(len(pixels)), total_frames=total)
    own = run_torch(reference.model, frames, temporal, lambda x: progress(0.3 * x))
    twin = run_twin(reference, frames, temporal, lambda x: progress(0.3 + 0.3 * x))
    noise = list(noise_of(reference, own, twin, frames.times).differences)
    prompt = _prompt(loaded, manifest, len(pixels), num_tokens)
    num_told = int((prompt == loaded.token_id(IMAGE_CONTEXT)).sum()) // manifest.shape.num_frame_tokens
    seen = {torch.float32: np.concatenate([frame[EMBEDS] for frame in own[:num_told]])}
    seen[reference.dtype] = twin_embeds(own, twin, num_told)
    answer = _answer(loaded, prompt, torch.from_numpy(seen[torch.float32]), num_tokens)
    progress(0.8)
    dialogue = Dialogue(prompt=prompt, answer=answer, frame_embeds=seen)
    runs = run_dialogue(reference, loaded, manifest.graphs["llm"], dialogue)
    logits, of_logits = logits_of(runs, first=len(prompt) - 1)
    passes = _passes(prompt, answer, loaded.token_id(IMAGE_CONTEXT), manifest.shape.num_frame_tokens)
    spans = list(_spans(passes, manifest))
    noise += [*of_logits, *runs.noise_of_rows(Place("pass"), [stop - 1 for _, stop in spans])]
    noise += [text_noise(reference, torch.tensor(passes[0].ids))]
    recorded = list(_vision(own, window))
    recorded += _text(reference, passes, manifest)
    recorded += _language(runs.own.tensors, spans)
    recorded += [("head", "logits", step, row[None]) for step, row in enumerate(logits)]
    table = NoiseTable(noise, manifest.rounding)
    progress(1.0)
    return Golden(
        weights_sha256=manifest.model.weights_sha256,
        frames=np.stack(pixels),
        time_divisor=total or 1,
        passes=passes,
        tokens=tuple(answer.tolist()),
        likeliest=tuple(int(row.argmax()) for row in logits),
        ties=tuple(near_tie(row, manifest.rounding) for row in logits),
        samples=tuple(_samples(recorded, table, manifest)),
    )


Recorded = tuple[str, str, int, Array]
"""Graph, tensor, run, and the reference's full output there."""


def _pixels(num_frames: int, size: int) -> list[Array]:
    rendered = list(render_clip(num_frames - NUM_REAL))
    return [resize_frame(frame[..., ::-1], size=size) for frame in (*rendered, *real_frames()[:NUM_REAL])]


def _prompt(loaded: LoadedModel, manifest: Manifest, num_frames: int, num_tokens: int) -> torch.Tensor:
    """The conversation about as many of the first frames as fit."""
    count = frames_that_fit(manifest, loaded, num_frames, num_tokens=num_tokens)
    return loaded.prompt_ids(num_frames=count, question=QUESTION)


def _answer(loaded: LoadedModel, prompt: torch.Tensor, frame_embeds: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The reference's answer, padded with arbitrary tokens if shorter: int64 (num_tokens,)."""
    embeds = loaded.prompt_embeds(prompt, frame_embeds)
    said = loaded.model.generate(embeds, max_new_tokens=num_tokens, stop_ids=[loaded.token_id(STOP_TOKEN)])
    return torch.tensor([*said, *range(num_tokens - len(said))])


def _passes(prompt: torch.Tensor, answer: torch.Tensor, context_id: int, num_frame_tokens: int) -> tuple[Pass, ...]:
    """The passes in which a stream feeds them: each frame with the text before it, the text after the last frame, and
    each token."""
    passes, text, ids = list[Pass](), list[int](), prompt.tolist()
    index = 0
    while index < len(ids):
        if ids[index] == context_id:
            passes.append(Pass(ids=tuple(text), frame=len(passes)))
            text, index = [], index + num_frame_tokens
        else:
            text.append(ids[index])
            index += 1
    return (*passes, Pass(ids=tuple(text)), *(Pass(ids=(token,)) for token in answer.tolist()))


def _spans(passes: Sequence[Pass], manifest: Manifest) -> Iterator[tuple[int, int]]:
    """First row and last row + 1 of each run of the LLM, which splits a long pass into chunks."""
    start, chunk = 0, manifest.limits.chunk
    for one in passes:
        stop = start + len(one.ids) + (0 if one.frame is None else manifest.shape.num_frame_tokens)
        for first in range(start, stop, chunk):
            yield first, min(first + chunk, stop)
        start = stop


def _vision(own: Sequence[dict[str, Array]], window: int) -> Iterator[Recorded]:
    """The first frames, the frames around the ring's wrap, and the last one."""
    kept = {0, 1, window - 1, window, len(own) - 1}
    for run in sorted(kept & set(range(len(own)))):
        for name, array in own[run].items():
            graph, tensor = name.split("/")
            yield graph, tensor, run, array


def _text(reference: Reference, passes: Sequence[Pass], manifest: Manifest) -> Iterator[Recorded]:
    """Embeddings of each chunk of text, rounded to the bundle's dtype: a lookup rounds only the table."""
    chunk = manifest.limits.chunk
    pieces = [one.ids[first : first + chunk] for one in passes for first in range(0, len(one.ids), chunk)]
    for run, ids in enumerate(pieces):
        found = reference.model.llm.embed_tokens(torch.tensor(ids)).to(TORCH_DTYPE[manifest.precision])
        yield "embed", "inputs_embeds", run, to_numpy(found)[None]


def _language(tensors: Mapping[str, Array], spans: Sequence[tuple[int, int]]) -> Iterator[Recorded]:
    """The hidden row of every run, and the new cache rows of the first, the middle and the last run."""
    kept = {0, len(spans) // 2, len(spans) - 1}
    for run, (start, stop) in enumerate(spans):
        yield "llm", "hidden", run, tensors["hidden"][:, stop - 1 : stop]
        if run in kept:
            yield from (("llm", name, run, rows[:, start:stop]) for name, rows in tensors.items() if name != "hidden")


def _samples(recorded: Iterable[Recorded], table: NoiseTable, manifest: Manifest) -> Iterator[Samples]:
    found: dict[tuple[str, str], dict[int, Array]] = {}
    for graph, tensor, run, array in recorded:
        found.setdefault((graph, tensor), {})[run] = array
    for (graph, tensor), runs in found.items():
        columns = _columns(list(runs.values())) if tensor == "logits" else None
        is_state = tensor.startswith(("new.", "present."))
        num_rows = NUM_STATE_ROWS if is_state else 1 if tensor in ("hidden", "logits") else NUM_ROWS
        values = np.stack([sampled(array, num_rows, columns) for array in runs.values()]).astype(np.float32)
        yield Samples(
            graph=graph, tensor=tensor, runs=tuple(runs), values=values, columns=columns,
            limits=_limits(table, graph, tensor, manifest),
        )  # fmt: skip


def _columns(logits: Sequence[Array]) -> Array | None:
    """Indices of the kept logits, ascending; None if all are kept."""
    num = logits[0].shape[-1]
    if num <= NUM_LOGITS:
        return None
    likeliest = {int(i) for row in logits for i in np.argsort(row[0])[-NUM_LIKELIEST:]}
    return np.asarray(sorted(likeliest | set(np.linspace(0, num - 1, NUM_LOGITS).astype(int).tolist())))


def _limits(table: NoiseTable, graph: str, tensor: str, manifest: Manifest) -> dict[str, float]:
    """Limits of the target's own runtime, over all places."""
    kinds: dict[str, PlaceKind] = {"embed": "text", "llm": "pass", "head": "token"}
    rung, nothing, where = Rung("gpu", manifest.precision), np.zeros(1), Place(kinds.get(graph, "frame"))
    one: Difference = compare_arrays(nothing, nothing, rung=rung, graph=graph, tensor=tensor, where=where)
    return table.judged(one).limits
