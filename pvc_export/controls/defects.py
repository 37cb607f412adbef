"""Every defect that a check must catch, with a description and the level at which it must show.

One line per defect. It edits a graph, patches the runtime for the duration of a check, or exports the model with a
fault; everything else is unchanged. `prove.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engines.spec import Precision
from pvc_ref import PVC

from . import bundle_edits as bundle
from . import engine_edits as engine
from . import graph_edits as graph
from . import model_faults as model
from . import runtime_patches as runtime


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """A fault in a copy of a bundle, in the runtime, or in the exported model.

    level          the first level at which it must show, A to K (levels.py)
    where          graph, bundle, runtime, preprocessing, or export; an export makes a separate bundle, in float16
    precision      precision of the changed bundle; faults hidden by the noise of float16 are planted there
    named          graph that the report must name as the first wrong one; '' if no graph is at fault
    fault          fault of the code during the check, and also during an export
    change_bundle  change made to the copy of the bundle
    change_model   change made to the reference before an export
    """

    name: str
    level: str
    where: str
    what: str
    named: str = ""
    precision: Precision = "fp32"
    fault: runtime.Fault = nullcontext
    change_bundle: Callable[[Path], None] | None = None
    change_model: Callable[[PVC], None] | None = None


def _in_graph(name: str, level: str, on: str, edit: graph.Edit, what: str) -> Defect:
    change = partial(graph.edit_graph, name=on, edit=edit)
    return Defect(name=name, level=level, where="graph", what=what, named=on, change_bundle=change)


def _in_half(name: str, on: str, edit: graph.Edit, what: str) -> Defect:
    return replace(_in_graph(name, "A", on, edit, f"{what}, in float16"), precision="fp16")


def _in_bundle(name: str, level: str, change: Callable[[Path], None], what: str) -> Defect:
    return Defect(name=name, level=level, where="bundle", what=what, change_bundle=change)


def _in_runtime(name: str, level: str, fault: runtime.Fault, what: str, *, where: str = "runtime") -> Defect:
    return Defect(name=name, level=level, where=where, what=what, fault=fault)


def _in_export(
    name: str, level: str, change_model: Callable[[PVC], None], what: str, fault: runtime.Fault = nullcontext
) -> Defect:
    return replace(_in_runtime(name, level, fault, what, where="export"), named="trunk", change_model=change_model)


DEFECTS: tuple[Defect, ...] = (
    _in_graph("weight", "A", "temporal", graph.perturb_one_weight, "one weight is off by a standard deviation"),
    _in_graph("int8", "A", "llm", graph.quantize_a_matrix, "one matrix is stored in int8"),
    _in_graph("layer-scale", "A", "trunk", graph.drop_layer_scale, "the first LayerScale is missing"),
    _in_graph("wqkv", "A", "llm", graph.split_wqkv_plainly, "InternLM2's fused wqkv is split as if ungrouped"),
    _in_graph("exchanged", "A", "trunk", graph.exchange_matrices, "two layers have each other's matrix"),
    _in_graph("biases", "A", "trunk", graph.exchange_biases, "two layers have each other's bias"),
    _in_graph("transposed", "A", "trunk", graph.transpose_a_matrix, "a square matrix is read transposed"),
    _in_graph("joined-order", "A", "llm", graph.exchange_gate_and_up, "gate and up of a joined matmul are exchanged"),
    _in_graph("other-alpha", "A", "temporal", graph.take_the_next_alpha, "a layer has the next one's alpha"),
    _in_graph("rolled-table", "A", "embed", graph.roll_the_table, "the embedding table is rolled by one row"),
    _in_graph("embed-row", "A", "embed", graph.change_the_last_row, "a token in no prompt is embedded wrongly"),
    _in_graph("head-row", "A", "head", graph.change_the_last_row, "a token in no answer is scored wrongly"),
    _in_half("epsilon-half", "trunk", graph.widen_one_epsilon, "a LayerNorm's epsilon is 10 % too large"),
    _in_half("scale-half", "trunk", graph.scale_attention_a_little, "attention scores are 0.1 % too large"),
    _in_half("mean-half", "trunk", graph.shift_the_mean, "one pixel mean is off by 1/255"),
    _in_half("gelu-half", "trunk", graph.approximate_gelu, "GELU by tanh instead of erf"),
    _in_bundle("stale-engine", "A", engine.forget_to_build_anew, "engines were built from earlier graphs"),
    _in_bundle("exchanged-engines", "A", engine.exchange_engines, "two engines of the bundle are exchanged"),
    _in_bundle("foreign-engine", "A", engine.take_engines_of_another_bundle, "the engines belong to another bundle"),
    _in_graph("positions-end", "C", "llm", graph.end_positions_early, "positions stop before the end of the context"),
    _in_graph("positions-midway", "C", "llm", graph.shift_positions_midway, "positions 290 to 350 are one too large"),
    _in_graph("bgr-graph", "B", "trunk", graph.swap_colours, "the graph reads RGB as BGR"),
    _in_graph("epsilon", "B", "trunk", graph.widen_epsilon, "LayerNorm's epsilon is 1e-3"),
    _in_graph("rms-epsilon", "B", "llm", graph.widen_rms_epsilon, "RMSNorm's epsilon is 1e-2"),
    _in_graph("gelu", "B", "trunk", graph.approximate_gelu, "GELU by tanh instead of erf"),
    _in_graph("shuffle", "B", "compressor", graph.transpose_shuffle, "the pixel shuffle is transposed"),
    _in_graph("qkv", "B", "trunk", graph.swap_query_and_key, "the fused qkv is split as key, query, value"),
    _in_graph("scale", "B", "trunk", graph.scale_attention, "scores are scaled by 1 / D"),
    _in_graph("residual", "B", "trunk", graph.forget_a_residual, "a residual is not added"),
    _in_graph("causal", "B", "llm", graph.see_the_next_row, "the LLM's causal mask is off by one"),
    _in_graph("stale-row", "B", "temporal", graph.return_the_old_row, "the new key row is an old one"),
    _in_graph("mask-graph", "D", "temporal", graph.roll_slot_mask, "the slot mask is off by one inside the graph"),
    _in_graph("swapped-kv", "D", "temporal", graph.swap_keys_and_values, "keys and values of the past are exchanged"),
    _in_graph("no-time", "D", "temporal", graph.forget_the_time, "every frame is frame 0"),
    _in_graph("stopped-clock", "E", "temporal", graph.stop_the_clock, "time stands still after frame 20"),
    _in_graph("narrow-clock", "E", "compressor", graph.round_the_clock, "the time embedding is computed in float16"),
    _in_graph("time-anew", "E", "temporal", graph.begin_time_anew, "time restarts after 64 frames"),
    _in_graph("repeated-time", "E", "compressor", graph.repeat_a_frame_time, "frame 13 has the time of frame 12"),
    _in_graph("batch-leak", "H", "llm", graph.first_stream_for_all, "every stream of a batch is stream 0"),
    _in_runtime("mask", "D", runtime.mask_one_slot_off, "the slot mask is off by one"),
    _in_runtime("slot-order", "D", runtime.rows_one_slot_off, "rows are written one slot too far"),
    _in_runtime("stale-state", "D", runtime.every_second_row_kept, "every second frame is not stored"),
    _in_runtime("clock", "D", runtime.clock_one_ahead, "the clock is one frame ahead"),
    _in_runtime("positions", "D", runtime.positions_one_ahead, "positions are one ahead after the first pass"),
    _in_runtime("llm-row", "D", runtime.last_row_written_over, "the newest row of the LLM's cache is overwritten"),
    _in_runtime("hidden-row", "C", runtime.newest_row_hidden_late, "after 511 rows the newest one is not seen"),
    _in_runtime("window", "F", runtime.window_one_frame_too_long, "the window is one frame too long"),
    _in_runtime("no-wrap", "F", runtime.ring_never_wraps, "the ring does not wrap around when it is full"),
    _in_runtime("reset", "G", runtime.reset_forgets_nothing, "a reset clears nothing"),
    _in_runtime("roll-back", "G", runtime.questions_are_kept, "questions are not rolled back"),
    _in_runtime("shared-ring", "G", runtime.streams_share_a_ring, "streams share one ring"),
    _in_runtime("changed-input", "G", runtime.session_writes_into_its_input, "a run changes the ring it reads"),
    _in_runtime("noise", "I", runtime.noise_of_its_own, "equal inputs never give equal bits"),
    _in_runtime("argmin", "J", runtime.least_likely_token, "the least likely token is chosen"),
    _in_runtime("bgr", "K", runtime.colours_swapped, "frames reach the model as BGR", where="preprocessing"),
    _in_runtime("resize", "K", runtime.resized_by_opencv, "frames are resized by OpenCV", where="preprocessing"),
    _in_runtime("prompt", "K", runtime.frames_counted_from_zero, "frames are counted from 0", where="preprocessing"),
    _in_runtime(
        "tokenizer", "K", runtime.tokens_of_another_vocabulary, "tokens of another release", where="preprocessing"
    ),
    _in_runtime("text", "K", runtime.text_in_lower_case, "the text of an answer does not match its tokens"),
    _in_runtime("answer-end", "K", runtime.answer_without_its_end, "the end of an answer is lost before the next turn"),
    _in_runtime("tile-order", "K", runtime.tiles_column_by_column, "six tiles are cut column by column"),
    _in_runtime("thumbnail", "K", runtime.thumbnail_first, "the thumbnail comes first"),
    _in_runtime("lazy-order", "G", runtime.waiting_frames_out_of_order, "waiting frames are ingested in reverse order"),
    _in_runtime("lazy-drop", "G", runtime.a_waiting_frame_dropped, "one of several waiting frames is dropped"),
    _in_runtime("anchor-newest", "G", runtime.newest_frame_lost, "a re-anchor loses the newest frame"),
    _in_runtime("anchor-order", "G", runtime.replay_without_time, "a re-anchor replays its frames in reverse"),
    _in_runtime("anchor-count", "K", runtime.first_frames_counted_on, "a re-anchor does not number frames from 1"),
    _in_bundle("token-ids", "K", bundle.two_tokens_exchanged, "two tokens have each other's id"),
    _in_bundle("normalizer", "K", bundle.lower_case, "the tokenizer converts all text to lower case"),
    _in_bundle("decoder", "K", bundle.another_decoder, "the tokenizer decodes spaces as in its vocabulary"),
    _in_bundle("added-token", "K", bundle.an_added_token_missing, "the start of an image is not a token"),
    _in_bundle("system-text", "K", bundle.other_system_text, "the manifest has another system text"),
    _in_bundle("next-turn", "K", bundle.next_turn_without_its_end, "the manifest's next turn does not end the answer"),
    _in_bundle("frame-prefix", "K", bundle.frames_without_a_number, "the manifest's frames have no number"),
    _in_bundle("repeats", "K", bundle.one_repeat, "the manifest repeats an image once"),
    _in_bundle("max-tiles", "K", bundle.more_tiles, "the manifest cuts images into one tile too many"),
    _in_bundle("layout", "K", bundle.tiles_in_another_layout, "the manifest has image layout 'tiles_in_time'"),
    _in_bundle("trained-frames", "A", bundle.fewer_trained_frames, "the manifest has half of the trained frames"),
    _in_bundle("time-mode", "A", bundle.fixed_time, "the manifest has time mode 'fixed'"),
    _in_export(
        "norm-island", "B", model.with_outliers, "norm statistics in float16, with outliers", model.norms_without_island
    ),
    _in_export("overflow", "B", model.with_an_overflow, "one layer overflows float16"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionDefect:
    """A model that overflows float16. `check` must name the layer and operation, and its island must repair it."""

    name: str
    what: str
    change_model: Callable[[PVC], None]
    layer: str
    operation: str
    island: str


PRECISION_DEFECTS = (
    PrecisionDefect(
        name="loud-values", what="values of one attention overflow float16", change_model=model.with_loud_values,
        layer="trunk.layers.1.attn.qkv", operation="linear", island="trunk.layers.1.attn",
    ),
    PrecisionDefect(
        name="loud-adaln", what="the compressor's AdaLN scales overflow float16", change_model=model.with_a_loud_adaln,
        layer="compressor.adaln.w4", operation="linear", island="compressor",
    ),
    PrecisionDefect(
        name="loud-swiglu", what="an MLP of the LLM overflows float16", change_model=model.with_a_loud_swiglu,
        layer="llm.layers.1.mlp.up_proj", operation="linear", island="llm.layers.1.mlp",
    ),
)  # fmt: skip
NAMES = tuple(defect.name for defect in DEFECTS)
