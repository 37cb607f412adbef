"""Check that a checkpoint is the released model: compare a recording made by the model's own code with the reference.

The recording (pvc_ref/checkpoint/record_original.py) has fixed inputs and the outputs of every module of the original.
The reference takes the same inputs in float32. Rounding noise in the recording's dtype is measured with the reference's
twin (rounding.py), and the original may be off by the same multiple of it as a bundle.

Note: only the inputs are fed from the recording, so everything after the first difference differs too.
Dimension key:  T frames   S frame size   N positions   M tokens per frame   C width   E LLM width   L tokens of a text
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import ModelError
from engines.memory import Array
from engines.spec import Precision
from pvc_ref import PVC, PVCConfig
from pvc_ref.checkpoint.record_original import FEATURES, LOGITS, VERSION, evenly_spaced
from pvc_ref.config import ShuffleOrder, TimeMode
from pvc_ref.temporal import TemporalLayer, window_bias

from ..terminal.numbers import share
from .causes import CLOSE
from .limits import NoiseTable, worst_metric
from .metrics import Difference, compare_arrays
from .places import WHOLE_TEXT, Rung
from .recording import Progress
from .rounding import Reference

PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""Errors raised by reading a file that is not a recording."""
INPUTS = ("frames", "before", "after")
EMBEDDINGS, VISION_LAYER = "vision_model.embeddings", "vision_model.encoder.layers"
LLM_LAYER, LLM_NORM = "language_model.model.layers", "language_model.model.norm"
COARSEST = 0.25
"""The largest limit of the relative L2: two unrelated models differ by 1 or more."""
NOTHING = (0,)
"""The shape that stands for a value missing on one side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A released model's inputs and module outputs.

    frames  (T, S, S, 3) uint8 RGB;  before, after  int64 (L,), the text around them
    values  name of a module of the original -> float32 (groups, rows, width)
    made_by  the model's class and the package versions it ran with
    """

    precision: Precision
    made_by: str
    frames: Array
    before: Array
    after: Array
    values: dict[str, Array]

    @staticmethod
    def load(path: Path) -> Recording:
        """Load a recording. Raises ModelError if the file is not one, or is of another version."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            inputs = {name: arrays.pop(name) for name in INPUTS}
            version, precision = facts["version"], PRECISIONS[facts["dtype"]]
        except UNREADABLE as error:
            raise _no_recording(path, f"is not a recording of a model ({error})") from error
        if version != VERSION:
            raise _no_recording(path, f"is a recording of version {version}, expected {VERSION},")
        if absent := [name for name in (FEATURES, LOGITS) if name not in arrays]:
            raise _no_recording(path, f"lacks {' and '.join(absent)}")
        packages = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers") if name in facts)
        return Recording(
            precision=precision, made_by=f"{facts.get('model', 'a model')} in {packages}", values=arrays, **inputs
        )


def _no_recording(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} {what}",
        expected="a file made by record_original.py of this version",
        cause="the wrong file, or an interrupted download",
        fix="record it again: python record_original.py FOLDER RECORDING.npz",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Every value of a recording compared with the reference's and judged, in the order of computation."""

    precision: Precision
    made_by: str
    stages: tuple[Difference, ...]
    cause: str = ""

    @property
    def first(self) -> Difference | None:
        """The first value that differs."""
        return next((stage for stage in self.stages if not stage.passed), None)

    @property
    def passed(self) -> bool:
        return self.first is None

    def lines(self) -> Iterator[str]:
        """A table, the verdict, and the likely cause."""
        width = max(len(stage.tensor) for stage in self.stages)
        yield f"{'stage':<{width}}  {'rel L2':>8}  {'limit':>8}  {'max abs':>8}  verdict"
        for stage in self.stages:
            numbers = "" if stage.flaw else f"{stage.rel_l2:8.1e}  {stage.limits['rel_l2']:8.1e}  {stage.max_abs:8.1e}"
            yield f"{stage.tensor:<{width}}  {numbers:<28}  {_verdict(stage)}"
        yield self.summary()
        if self.cause:
            yield f"likely: {self.cause}"

    def summary(self) -> str:
        what = f"{self.made_by}, recorded in {self.precision}"
        if self.first is None:
            worst = max(self.stages, key=Difference.share)
            return (
                f"equal: {len(self.stages)} values of {what}, "
                f"worst at {share(worst.share())} of its limit ({worst.tensor})"
            )
        return f"different from {what}; the first value that differs is {self.first.tensor}"

    def to_json(self) -> dict[str, Any]:
        stages = [
            {"stage": one.tensor, "rel_l2": one.rel_l2, "max_abs": one.max_abs, "share": one.share()}
            | {"limits": one.limits, "passed": one.passed, "flaw": one.flaw}
            for one in self.stages
        ]
        first = None if self.first is None else self.first.tensor
        facts = {"passed": self.passed, "first": first, "cause": self.cause, "precision": self.precision}
        return facts | {"made_by": self.made_by, "stages": stages}


def _verdict(stage: Difference) -> str:
    if stage.passed:
        return "ok"
    if stage.shapes is not None and NOTHING in stage.shapes:
        return f"DIFFERS: only {'the model' if stage.shapes[0] == NOTHING else 'the recording'} has it"
    if stage.flaw:
        return f"DIFFERS: {stage.flaw.rstrip(',')}"
    if stage.rel_l2 > stage.limits["rel_l2"]:
        return "DIFFERS"
    metric = worst_metric(stage)
    return f"DIFFERS: {metric.replace('_', ' ')} {getattr(stage, metric):.1e}, limit {stage.limits[metric]:.1e}"


def compare(model: PVC, recording: Recording) -> Comparison:
    """Compare a recording with a float32 model. Raises ModelError if the model cannot take the recording's inputs.

    If something differs, other values of the facts in config.json that weights do not show are tried, to find the
    cause.
    """
    compared = _compared(model, recording)
    if compared.first is None:
        return compared
    return replace(compared, cause=_cause(model, recording, compared.first))


def _cause(model: PVC, recording: Recording, first: Difference) -> str:
    """The likely cause of the first value that differs. If the same weights reproduce the recording with another value
    in config.json, the cause is certain."""
    if first.shapes is not None:
        return "config.json is from another model: the number of layers or a width differs from the original"
    other = try_candidates(_other_readings(model, first.tensor), recording)
    if other.reproduce:
        return f"config.json: the same weights reproduce the recording with {' or '.join(other.reproduce)}"
    if recording.precision != "fp32" and not first.share() > CLOSE:  # NaN is not
        return f"perhaps only rounding, since a recording in {recording.precision} is coarse; make one in float32"
    stem, _, index = first.tensor.rpartition(".")
    if stem == VISION_LAYER and int(index) >= model.config.vision.num_trunk_layers:
        return OF_TEMPORAL_LAYERS
    if index == "0":
        return OF_FIRST_LAYERS[stem]
    if stem in OF_FIRST_LAYERS:
        return f"weights of this layer, since the layer before it is equal: the names or values of its tensors {OURS}"
    return OF_OTHERS[first.tensor]


OURS = "in this folder differ from the recorded model's"
OF_TEMPORAL_LAYERS = (
    "the layers that attend over time: which layers they are (num_temporal_layers), time_mode, or which "
    "tensor is which of alpha, adaln.w3 to w6, time_embedding and temporal_attn"
)
OF_FIRST_LAYERS = {
    VISION_LAYER: "something that all layers share: layer_norm_eps, num_attention_heads, the order in qkv; or weights",
    LLM_LAYER: "something that all layers share: rope_theta, rms_norm_eps, num_attention_heads, num_key_value_heads; "
    "or the token embeddings, or weights",
}
OF_OTHERS = {
    EMBEDDINGS: f"the weights of vision_model.embeddings {OURS}, or frames were normalised differently",
    FEATURES: f"the weights of mlp1 {OURS}, or patches are shuffled in another order",
    LLM_NORM: f"the values of the last norm's weight {OURS}, or rms_norm_eps does",
    LOGITS: f"the values of the head's weight {OURS}, or tie_word_embeddings does",
}


def _other_readings(model: PVC, first: str) -> dict[str, Callable[[], PVC]]:
    """The same weights with other facts of config.json: those that weights do not show and that could make `first` the
    first difference."""
    config, changed = model.config, dict[str, PVCConfig]()
    if first == FEATURES and config.compressor.kind in ("pvc", "pixel_shuffle"):
        for order in get_args(ShuffleOrder):
            changed[f'ps_version = "{order}"'] = replace(config, compressor=replace(config.compressor, shuffle=order))
    if first == FEATURES or first.startswith(VISION_LAYER):
        has_time = config.vision.num_temporal_layers > 0 or config.compressor.kind == "pvc"
        for mode in get_args(TimeMode) if has_time else ():
            changed[f'pvc.time_mode = "{mode}"'] = replace(config, time_mode=mode)
    return {name: partial(_read_as, model, other) for name, other in changed.items() if other != config}


def _read_as(model: PVC, config: PVCConfig) -> PVC:
    """A model of another configuration that shares every weight with `model`."""
    other = PVC.empty(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Several readings of a checkpoint. `reproduce` names those that reproduce the original's recording."""

    reproduce: tuple[str, ...]
    compared: dict[str, Comparison]

    @property
    def is_unique(self) -> bool:
        return len(self.reproduce) == 1


def try_candidates(candidates: Mapping[str, Callable[[], PVC]], recording: Recording) -> Candidates:
    """Make each model, one at a time, and compare the recording with it. Errors of the callables are not caught."""
    compared = {name: _compared(make(), recording) for name, make in candidates.items()}
    return Candidates(reproduce=tuple(name for name, one in compared.items() if one.passed), compared=compared)


def decide(
    groups: Sequence[Sequence[Mapping[str, str]]],
    load: Callable[[Mapping[str, str]], PVC],
    recording: Recording,
    progress: Progress = lambda _: None,
) -> list[dict[str, str]]:
    """The mappings of a checkpoint's tensors that reproduce the recording furthest: one, if it distinguishes them.

    groups  per part of the model, the possible mappings, in the order in which a frame passes the parts
            (Detection.groups); any mapping of one part can be combined with any of another
    The parts are decided one after another, since a later part changes nothing in the layers before it.
    """
    chosen: list[Mapping[str, str]] = [group[0] for group in groups]
    left: list[list[Mapping[str, str]]] = []
    num_tried, num_all = 0, sum(map(len, groups))
    for index, group in enumerate(groups):
        reached = []
        for part in group:
            whole = [*chosen[:index], part, *chosen[index + 1 :]]
            stages = _compared(load(_joined(whole)), recording).stages
            reached.append(next((at for at, stage in enumerate(stages) if not stage.passed), len(stages)))
            num_tried += 1
            progress(num_tried / num_all)
        left.append([part for part, reach in zip(group, reached, strict=True) if reach == max(reached)])
        chosen[index] = left[index][0]
    return [_joined(parts) for parts in product(*left)]


def _joined(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {name: role for part in parts for name, role in part.items()}


def _compared(model: PVC, recording: Recording) -> Comparison:
    _check_inputs(model, recording)
    reference = Reference.of(model, recording.precision)
    own = stage_values(model, recording)
    noise_of = stage_values(reference.twin, recording)
    noise = NoiseTable(
        reference.noise(own[name], noise_of[name], graph="original", tensor=name, where=WHOLE_TEXT) for name in own
    )
    rung = Rung("bundle", recording.precision)  # its limits apply: this too is a whole pass by other code
    stages = []
    for name in dict.fromkeys((*own, *recording.values)):
        nothing = np.zeros(NOTHING)
        got, want = recording.values.get(name, nothing), own.get(name, nothing)
        one = compare_arrays(got, want, rung=rung, graph="original", tensor=name, where=WHOLE_TEXT)
        stages.append(_capped(noise.judged(one)))
    return Comparison(precision=recording.precision, made_by=recording.made_by, stages=tuple(stages))


def _capped(stage: Difference) -> Difference:
    if not stage.limits:  # its arrays could not be measured
        return stage
    return replace(stage, limits=stage.limits | {"rel_l2": min(stage.limits["rel_l2"], COARSEST)})


def _check_inputs(model: PVC, recording: Recording) -> None:
    size, vocab_size = model.config.vision.image_size, model.config.llm.vocab_size
    highest = max(int(ids.max(initial=0)) for ids in (recording.before, recording.after))
    if recording.frames.shape[1:] != (size, size, 3) or recording.frames.dtype != np.uint8 or highest >= vocab_size:
        raise ModelError(
            f"the recording has frames {recording.frames.shape} {recording.frames.dtype} and token ids up to {highest}",
            expected=f"frames (T, {size}, {size}, 3) uint8 and ids below {vocab_size}, as this model takes them",
            cause="the recording is of another model than the folder",
        )


@torch.no_grad()
def stage_values(model: PVC, recording: Recording) -> dict[str, Array]:
    """The model's outputs for the recording's inputs, under the original's names and for the same rows.

    (T, rows, C) on the vision side, (1, rows, E) in the LLM, in the model's dtype.
    """
    seen: dict[str, Tensor] = {}
    watched: dict[str, nn.Module] = {EMBEDDINGS: model.trunk.embeddings}
    watched |= {f"{VISION_LAYER}.{index}": layer for index, layer in enumerate(model.trunk.layers)}
    watched |= {f"{LLM_LAYER}.{index}": layer for index, layer in enumerate(model.llm.layers)}
    handles = [module.register_forward_hook(_keeping(seen, name)) for name, module in watched.items()]
    try:
        features = _encode(model, torch.from_numpy(recording.frames), seen)
        seen[FEATURES] = features
        before, after = (model.llm.embed_tokens(torch.from_numpy(ids)) for ids in (recording.before, recording.after))
        prompt = torch.cat([before, features.flatten(0, 1), after])[None]
        hidden, _ = model.llm(prompt, torch.arange(prompt.shape[1])[None])
    finally:
        for handle in handles:
            handle.remove()
    seen[LLM_NORM], seen[LOGITS] = hidden, model.llm.logits(hidden)
    return {name: _as_array(evenly_spaced(value)) for name, value in seen.items()}


def _encode(model: PVC, frames: Tensor, seen: dict[str, Tensor]) -> Tensor:
    """PVC.encode_clip of one clip (T, S, S, 3) to (T, M, E) that also keeps the output of each temporal layer."""
    num_frames = len(frames)
    times = model.frame_times(0, num_frames, total_frames=num_frames, device=frames.device)[None]
    x = model.trunk(frames)[None]
    bias = window_bias(num_frames, None, like=x)
    for index, layer in enumerate(model.temporal.layers, start=len(model.trunk.layers)):
        x, _ = cast(TemporalLayer, layer).step(x, times, None, bias)
        seen[f"{VISION_LAYER}.{index}"] = x[0]
    return cast(Tensor, model.compressor(x[0, :, 1:], times[0]))


def _keeping(seen: dict[str, Tensor], name: str) -> Callable[[Any, Any, Any], None]:
    def hook(_: Any, __: Any, output: Any) -> None:
        seen[name] = output if isinstance(output, Tensor) else output[0]

    return hook


def _as_array(value: Tensor) -> Array:
    return value.to(torch.promote_types(value.dtype, torch.float32)).numpy()
