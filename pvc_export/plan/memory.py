"""Memory of a stream's state and of a pass's activations. Computed, not measured on a device.

Dimension key: as in engines/spec.py; R rows of one pass
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.clock import DEFAULT_RETAIN, Clock
from engines.spec import ITEM_BYTES, GraphSpec, StreamLimits
from pvc_ref import PVCConfig

from .graph_files import is_narrow


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """State of one stream, in bytes.

    ring    keys and values of the last W frames; if the clock re-anchors, twice that and features of the last R + 1
    cache   keys and values of all LLM rows of a context; if the clock re-anchors, twice that
    """

    ring: int
    cache: int

    @property
    def total(self) -> int:
        return self.ring + self.cache


def state_bytes(config: PVCConfig, specs: dict[str, GraphSpec], limits: StreamLimits, clock: Clock) -> StateBytes:
    """State that the runtime allocates when a stream begins (engines/episodes.py)."""
    temporal = specs["temporal"]
    ring, cache = temporal.state_bytes(limits), specs["llm"].state_bytes(limits)
    if clock == "reanchor":
        features = temporal.input("trunk_features")
        retained = min(DEFAULT_RETAIN, limits.window, config.trained_frames - 1)
        row = config.vision.num_positions * config.vision.hidden_size * ITEM_BYTES[features.dtype]
        ring, cache = 2 * ring + (retained + 1) * row, 2 * cache  # the next episode is prepared in advance
    return StateBytes(ring=ring, cache=cache)


def activation_bytes(config: PVCConfig, spec: GraphSpec, limits: StreamLimits) -> int:
    """Estimated peak activations of one pass of a graph for all streams: the residual stream, its norm, and the widest
    step of a layer. Attention scores are included in float32 only, where no compiler fuses attention."""
    item = 2 if is_narrow(spec) else 4
    width = {
        "trunk": _vision_values(config, adaptive=False),
        "temporal": _vision_values(config, adaptive=True),
        "compressor": _compressor_values(config),
        "embed": limits.chunk * config.llm.hidden_size,
        "llm": _llm_values(config, limits),
        "head": 4 * config.llm.vocab_size,
    }[spec.name]
    scores = 0 if is_narrow(spec) else _score_values(config, spec, limits)
    return limits.streams * (width * item + scores * 4)


def _vision_values(config: PVCConfig, *, adaptive: bool) -> int:
    """The largest of: q, k, v and the result; an MLP's hidden values before and after its activation; AdaLN's four
    matmul outputs and input."""
    vision = config.vision
    widest = max(4 * vision.hidden_size, 2 * vision.mlp_size, 6 * vision.hidden_size if adaptive else 0)
    return vision.num_positions * (2 * vision.hidden_size + widest)


def _compressor_values(config: PVCConfig) -> int:
    """AdaLN of the shuffled patches; used for every kind of compressor, since none is wider."""
    return 8 * config.vision.num_patches * config.vision.hidden_size


def _llm_values(config: PVCConfig, limits: StreamLimits) -> int:
    """An MLP's gate, up and their product, or attention's heads; and the mask of all rows, once per head of a group."""
    llm = config.llm
    heads = (2 * llm.num_heads + 2 * llm.num_kv_heads) * llm.attention_head_dim
    mask = limits.context * llm.num_heads // llm.num_kv_heads
    laid_out = (
        2 * limits.context * llm.num_kv_heads * llm.attention_head_dim
    )  # a copy of one layer's cache (docs/performance.md)
    return limits.chunk * (2 * llm.hidden_size + max(3 * llm.mlp_size, heads + mask)) + laid_out


def _score_values(config: PVCConfig, spec: GraphSpec, limits: StreamLimits) -> int:
    """Attention scores and their softmax."""
    vision, llm = config.vision, config.llm
    match spec.name:
        case "trunk" | "temporal":
            return 2 * vision.num_heads * vision.num_positions**2
        case "llm":
            return 2 * llm.num_heads * limits.chunk * limits.context
    return 0
