"""The six graphs as torch modules: thin wrappers that call the reference.

A wrapper adds the calling convention of the runtime: flat tensors instead of lists of pairs, a ring with a slot mask
instead of an ordered past, one frame instead of a clip, and only the last hidden row. Attention may have another
spelling for a target (spellings.py), and matmuls with the same input are joined (joined.py); the check compares every
form with the reference.
Dimension key: as in engines/spec.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.spec import GraphSpec, ModelShape, Spelling
from pvc_ref import PVC, PVCConfig
from pvc_ref.layers import visible_to_bias
from pvc_ref.llm import Decoder
from pvc_ref.temporal import TemporalEncoder

from .clock_table import NAME, table_of, with_table
from .eight_bit_rows import joined_states, split_states
from .eight_bits import EightBitLinear
from .joined import joined
from .precision import spelled
from .spellings import CACHE_UPDATES, QUANTIZED, SPELLINGS, CachesInPlace
from .unfused import unfused

PREFIX = {
    "trunk": "trunk", "temporal": "temporal", "compressor": "compressor", "embed": "llm.embed_tokens", "llm": "llm",
    "head": "llm",
}  # fmt: skip
"""Name in the model of each graph's module. In the graphs of PARTS, names begin with that part."""
PARTS = {"temporal": "encoder", "llm": "decoder", "head": "decoder"}


def model_shape(config: PVCConfig) -> ModelShape:
    """Return the model sizes that the runtime needs."""
    return ModelShape(
        image_size=config.vision.image_size,
        num_positions=config.vision.num_positions,
        vision_width=config.vision.hidden_size,
        num_trunk_layers=config.vision.num_trunk_layers,
        num_temporal_layers=config.vision.num_temporal_layers,
        vision_heads=config.vision.num_heads,
        vision_head_dim=config.vision.head_dim,
        num_frame_tokens=config.compressor.num_tokens,
        # A Q-Former layer has two attentions: among its queries and to the patches. The other kinds have none.
        num_compressor_attentions=2 * config.compressor.num_q_former_layers
        if config.compressor.kind == "q_former"
        else 0,
        llm_width=config.llm.hidden_size,
        num_llm_layers=config.llm.num_layers,
        num_kv_heads=config.llm.num_kv_heads,
        llm_head_dim=config.llm.attention_head_dim,
        vocab_size=config.llm.vocab_size,
        max_positions=config.llm.max_positions,
    )


def graph_module(model: PVC, spec: GraphSpec, spelling: Spelling = "concat") -> nn.Module:
    """Return the torch module whose forward takes spec.inputs and returns spec.outputs, in order.

    `spelling` must be the one with which `spec` was made, because it determines the layout of the rings.
    """
    assert all((state.layout == "BNHWD") == (spelling == "split") for state in spec.states if state.order == "ring")
    classes = {**SPELLINGS[spelling], **(QUANTIZED if spec.quantization is not None else {})}
    assert spelling == "concat" or not spec.unfused, (
        "unfused attention is for TensorRT: ONNX Runtime's CPU fuses nothing"
    )
    match spec.name:
        case "trunk":
            module: nn.Module = unfused(spelled(model.trunk, classes), spec.unfused)
        case "temporal":
            module = TemporalGraph(
                joined(with_table(unfused(spelled(model.temporal, classes), spec.unfused), spec.num_times))
            )
        case "compressor":
            module = joined(with_table(unfused(spelled(model.compressor, classes), spec.unfused), spec.num_times))
        case "embed":
            module = model.llm.embed_tokens
        case "llm":
            update = CACHE_UPDATES["aliased" if spec.aliases else "rows", spelling]
            decoder = joined(unfused(spelled(model.llm, update), spec.unfused))
            in_place = OperatorLLMGraph if spelling == "split" else InPlaceLLMGraph
            module = in_place(decoder) if spec.aliases else LLMGraph(decoder)
        case "head":
            is_coded = spec.quantization is not None or isinstance(model.llm.lm_head, EightBitLinear)
            module = CodedHeadGraph(model.llm) if is_coded else HeadGraph(model.llm)
        case _:
            raise AssertionError(f"no graph is called '{spec.name}'")
    return module.eval()


def layer_name(graph: str, scope: str) -> str:
    """Convert a module's name in a graph to its name in the model."""
    part = PARTS.get(graph)
    inner = scope.removeprefix(part).removeprefix(".") if part else scope
    return f"{PREFIX[graph]}.{inner}" if inner else PREFIX[graph]


def inner_name(graph: str, name: str) -> str:
    """Convert a parameter's name in the model to its name in a graph."""
    inner, part = name.removeprefix(f"{PREFIX[graph]}."), PARTS.get(graph)
    return f"{part}.{inner}" if part else inner


def graph_parameters(model: PVC, spec: GraphSpec) -> dict[str, Tensor]:
    """Return the weights that a graph must contain, by their names in the model.

    A joined weight of the graph contains several of them (joined.py). A clock table is 'MODULE.time_embedding.table'
    and replaces the weights from which it was computed.
    """
    of_the_llm = {"embed": ("llm.embed_tokens.",), "llm": ("llm.layers.", "llm.norm."), "head": ("llm.lm_head.",)}
    prefixes = of_the_llm.get(spec.name, (f"{spec.name}.",))
    parameters = model.named_parameters(remove_duplicate=False)  # a tied head is in both graphs
    found: dict[str, Tensor] = {key: value for key, value in parameters if key.startswith(prefixes)}
    if spec.num_times is None:
        return found
    clocks = dict.fromkeys(key.rpartition(".")[0].rpartition(".")[0] for key in found if f".{NAME}." in key)
    tables = {f"{name}.table": table_of(model.get_submodule(name), spec.num_times) for name in clocks}  # type: ignore[arg-type]
    return {key: value for key, value in found.items() if f".{NAME}." not in key} | tables


class TemporalGraph(nn.Module):
    """Runs one frame through the temporal layers, with its past in a ring."""

    def __init__(self, encoder: TemporalEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, trunk_features: Tensor, frame_time: Tensor, slot_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, N, C), (B,), bool (B, W), rings (B, W, N, H, D) -> features (B, N - 1, C), new rows (B, N, H, D)."""
        itself = torch.ones_like(slot_mask[:, :1])
        bias = visible_to_bias(torch.cat([slot_mask, itself], dim=1), trunk_features.dtype)[:, None]
        features, new = self.encoder(trunk_features[:, None], frame_time[:, None], joined_states(past), bias)
        return features[:, 0], *(rows[:, 0] for rows in split_states(new))


class _DecoderGraph(nn.Module):
    """Base of graphs that run a part of the LLM."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder


class LLMGraph(_DecoderGraph):
    """Runs L new rows through the decoder layers, for prefill, frame ingest and decode."""

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, L, E), (B, L), (B, P + L), caches (B, P, K, D) -> hidden (B, 1, E), new rows (B, L, K, D)."""
        hidden, new = self.decoder(inputs_embeds, position_ids, joined_states(past), attention_mask)
        return hidden[:, -1:], *split_states(new)


class InPlaceLLMGraph(_DecoderGraph):
    """LLMGraph that writes the new rows into its caches itself (opset 24).

    Only the decoder's attention has another spelling (InPlaceAttention). Norms, rotation and MLPs are the reference's
    modules: the compiler makes as many kernels from them as from opset 23's RMSNormalization and RotaryEmbedding.
    """

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, write_index: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, L, E), (B, L), (B,), caches (B, K, S, D) -> hidden (B, 1, E), the same caches with the new rows."""
        dtype = inputs_embeds.dtype
        slots = torch.arange(past[0].shape[2])[None, None]
        rows = write_index[:, None, None] + torch.arange(inputs_embeds.shape[1])[None, :, None]
        bias = visible_to_bias(slots <= rows, dtype)[:, None]  # (B, 1, L, S): slots after a row are not filled yet
        rope = self.rope(position_ids, dtype)
        x, caches = inputs_embeds, []
        for layer, (key, value) in zip(self.decoder.layers, joined_states(past), strict=True):
            past_rows = CachesInPlace(key=key, value=value, write_index=write_index)
            x, updated = layer(x, rope, past_rows, bias)
            caches.append((updated.key, updated.value))
        return self.decoder.norm(x)[:, -1:], *split_states(caches)

    def rope(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines in the form its attention takes."""
        return self.decoder.angles(position_ids, dtype)


class OperatorLLMGraph(InPlaceLLMGraph):
    """InPlaceLLMGraph with operators instead of norms and rotation (OperatorAttention)."""

    def rope(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, L, D / 2): both halves of a head rotate by the same angles."""
        cos, sin = (angles[:, :, 0].chunk(2, dim=-1)[0] for angles in super().rope(position_ids, dtype))
        return cos, sin


class HeadGraph(_DecoderGraph):
    """Computes the logits of one hidden row. It is not run when a frame is ingested."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, 1, E) -> float32 (B, V)."""
        return self.decoder.logits(hidden[:, 0])


class CodedHeadGraph(_DecoderGraph):
    """HeadGraph with a matmul over (B, 1, E): codes can replace the matrix of a MatMul, but not of a Gemm."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, 1, E) -> float32 (B, V)."""
        return self.decoder.logits(hidden)[:, 0]
