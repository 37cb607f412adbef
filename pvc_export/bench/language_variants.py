"""Variants for `pvc-export bench --part language`: decode and frame ingest, each run in three ways.

One session serves both steps of a variant, as in a stream, so the default export has dynamic dimensions; its other
options are the defaults. The model's vision side is `tiny` and never runs: random rows stand in for frame tokens.
Dimension key:  L new rows   P past rows   E width   K key/value heads   D head dim   V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.language import LanguageModel
from engines.memory import Array
from engines.session import Session
from engines.spec import Part, Quantization, StreamLimits
from engines.target import load_target
from pvc_ref import PVC, PVCConfig
from pvc_ref.llm import Decoder, KeyValue

from ..graphs.eight_bit_rows import joined_states
from ..graphs.sessions import open_graphs
from .baselines import default_export
from .compare import LIMIT, Timed, Variant

SIZES: dict[str, PVCConfig] = {
    "tiny": PVCConfig.preset("tiny"),
    "0.5b": replace(PVCConfig.preset("tiny"), llm=PVCConfig.preset("pvc-internvl2-1b").llm),
}
"""0.5b: Qwen2-0.5B as in InternVL2-1B: 24 layers of width 896, 151655 tokens, the head not tied: 630 M weights."""

GRAPHS = ("embed", "llm", "head")
NUM_FRAME_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageScene:
    """A model with random weights, the rows before a step (as embeddings and as caches), and both steps' new rows.

    before  (1, P, E)
    past    one (key, value) per layer, each (1, P, K, D): the reference's caches after `before`
    token   (1, 1, E), the new row in decode
    frame   (1, NUM_FRAME_ROWS, E), the new rows in ingest
    """

    model: PVC
    before: Tensor
    past: Sequence[KeyValue]
    token: Tensor
    frame: Tensor

    @property
    def num_past(self) -> int:
        return self.before.shape[1]

    @property
    def context(self) -> int:
        """Capacity of our cache in rows: a bundle's default, or more if the past needs it.

        A cache that is updated in place is processed in full, so a smaller one would make our graphs look faster.
        """
        limits = StreamLimits()
        return max(limits.context, -(-(self.num_past + NUM_FRAME_ROWS) // limits.bucket) * limits.bucket)

    @property
    def decode_bytes(self) -> dict[str, int]:
        """Bytes that a decoded token reads, each once: weights of layers, norm and head; past keys and values."""
        llm = self.model.llm
        weights = (weight for part in (llm.layers, llm.norm, llm.lm_head) for weight in part.parameters())
        cache = (tensor for pair in self.past for tensor in pair)
        return {"weights": sum(weight.nbytes for weight in weights), "cache": sum(tensor.nbytes for tensor in cache)}

    @staticmethod
    def render(config: PVCConfig, *, num_past: int) -> LanguageScene:
        """Random tokens and a random frame, from a seed; `num_past` at least 1."""
        model, generator = PVC.random(config, seed=0), torch.Generator().manual_seed(0)
        ids = torch.randint(config.llm.vocab_size, (num_past + 1,), generator=generator)
        frame = torch.randn(1, NUM_FRAME_ROWS, config.llm.hidden_size, generator=generator)
        return LanguageScene.of(model, ids, frame)

    @staticmethod
    def of(model: PVC, ids: Tensor, frame: Tensor) -> LanguageScene:
        """A scene from tokens (P + 1,), the last one new in decode, and a frame's rows (1, NUM_FRAME_ROWS, E)."""
        embeds = model.llm.embed_tokens(ids)[None]
        before, token = embeds[:, :-1], embeds[:, -1:]
        past: list[KeyValue] | None = None
        for piece in before.split(StreamLimits().chunk, dim=1):  # a long past would not fit in one pass
            _, past = append_rows(model.llm, piece, past)
        assert past is not None
        return LanguageScene(model=model, before=before, past=past, token=token, frame=frame)


def append_rows(llm: Decoder, embeds: Tensor, past: Sequence[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
    """New rows (1, L, E) -> hidden (1, L, E), and the caches with the new rows appended, as in PVC.generate."""
    start = 0 if past is None else past[0][0].shape[1]
    positions = torch.arange(start, start + embeds.shape[1])[None]
    hidden, new = llm(embeds, positions, past)
    return hidden, new if past is None else joined(past, new)


def joined(past: Sequence[KeyValue], new: Sequence[KeyValue]) -> list[KeyValue]:
    """The caches (1, P + L, K, D) after a step."""
    return [
        (torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1))
        for (old_key, old_value), (key, value) in zip(past, new, strict=True)
    ]


def eager_variant(scene: LanguageScene) -> Variant:
    """The reference, with the new rows appended to its cache, and the last row's logits in either step."""

    def step(embeds: Tensor) -> Array:
        hidden, _ = append_rows(scene.model.llm, embeds, scene.past)
        return scene.model.llm.logits(hidden[0, -1]).numpy()

    return {"decode": Timed(run=lambda: step(scene.token)), "ingest": Timed(run=lambda: step(scene.frame))}


class PlainDecoder(nn.Module):
    """The LLM in a plain export: logits of every new row; the whole cache is an input and, longer, an output."""

    def __init__(self, llm: Decoder) -> None:
        super().__init__()
        self.llm = llm

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """(1, L, E), (1, L), caches (1, P, K, D) -> logits (1, L, V), caches (1, P + L, K, D)."""
        hidden, new = self.llm(inputs_embeds, position_ids, joined_states(past))
        return self.llm.logits(hidden), *(tensor for pair in joined(joined_states(past), new) for tensor in pair)


def default_variant(scene: LanguageScene, path: Path, *, threads: int) -> Variant:
    """PlainDecoder exported by torch's dynamo exporter and run by ONNX Runtime with its defaults, numpy in and out.

    The number of rows is dynamic in all inputs; otherwise the file would serve only one step and one past length.
    """
    past = [tensor for pair in scene.past for tensor in pair]

    def arguments(embeds: Tensor) -> tuple[Tensor, ...]:
        return embeds, torch.arange(scene.num_past, scene.num_past + embeds.shape[1])[None], *past

    rows = {1: torch.export.Dim.AUTO}
    shapes = (rows, rows, (rows,) * len(past))
    on_tensors = default_export(
        PlainDecoder(scene.model.llm), arguments(scene.frame), path, threads=threads, dynamic_shapes=shapes
    )

    def step(embeds: Tensor) -> Timed:
        return Timed(run=on_tensors(*arguments(embeds)), output=lambda outputs: outputs[0][0, -1])

    return {"decode": step(scene.token), "ingest": step(scene.frame)}


def our_language_sessions(
    scene: LanguageScene, folder: Path, *, threads: int, quantization: Mapping[Part, Quantization] | None = None
) -> dict[str, Session]:
    """The language graphs of target `cpu`, exported and opened as in a bundle, for `scene.context` rows."""
    folder.mkdir(exist_ok=True)
    limits = StreamLimits(context=scene.context)
    return open_graphs(
        scene.model, GRAPHS, load_target("cpu"), limits, folder, threads=threads, quantization=quantization
    )


def our_language_model(scene: LanguageScene, sessions: Mapping[str, Session]) -> LanguageModel:
    """The runtime's language model, after `scene.before`."""
    language = LanguageModel(sessions)
    language.append(scene.before[0].numpy())
    return language


def our_variant(scene: LanguageScene, language: LanguageModel, *, limit: float = LIMIT) -> Variant:
    """A step of `language`. It first drops the previous step's rows, which is timed too and costs almost nothing.

    Ingest returns the hidden row without logits; `output` computes them for the comparison.
    """

    def append(embeds: Array) -> Array:
        language.cache.truncate(scene.num_past)
        return language.append(embeds)

    token, frame = scene.token[0].numpy(), scene.frame[0].numpy()
    return {
        "decode": Timed(run=lambda: language.logits(append(token)), limit=limit),
        "ingest": Timed(run=lambda: append(frame), output=language.logits, limit=limit),
    }
