"""Is this the released model? Its own code's recording, held against the reference with the same weights.

The recording (pvc_ref/checkpoint/record_original.py) has fixed inputs, and what every module of the original returned
for them. The reference takes the same inputs in float32. What rounding alone does there, in the recording's dtype, is
measured with the reference's twin (rounding.py), and the original may be off by the same factor of that as a bundle.

Unusual: nothing is fed from the recording but the inputs, so what follows the first difference differs as well.
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

from .causes import CLOSE
from .limits import NoiseTable, worst_metric
from .metrics import Difference, compare_arrays
from .places import WHOLE_TEXT, Rung
from .recording import Progress
from .rounding import Reference

PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What reading a file as a recording raises that is none."""
INPUTS = ("frames", "before", "after")
EMBEDDINGS, VISION_LAYER = "vision_model.embeddings", "vision_model.encoder.layers"
LLM_LAYER, LLM_NORM = "language_model.model.layers", "language_model.model.norm"
COARSEST = 0.25
"""No limit of the relative L2 is larger: two models with nothing in common are apart by 1 or more."""
NOTHING = (0,)
"""The shape of a value that one side does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What a released model computed.

    frames  (T, S, S, 3) uint8 RGB;  before, after  int64 (L,), the text around them
    values  name of a module of the original -> float32 (groups, rows, width)
    made_by  the model's class and the versions that it ran with
    """

    precision: Precision
    made_by: str
    frames: Array
    before: Array
    after: Array
    values: dict[str, Array]

    @staticmethod
    def load(path: Path) -> Recording:
        """Raises ModelError for a file that is no recording, or of another version."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            inputs = {name: arrays.pop(name) for name in INPUTS}
            version, precision = facts["version"], PRECISIONS[facts["dtype"]]
        except UNREADABLE as error:
            raise _no_recording(path, f"is no recording of a model ({error})") from error
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
        cause="another file, or a download that was interrupted",
        fix="record it again: python record_original.py FOLDER RECORDING.npz",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Every value of a recording against the reference's, judged, in the order in which they are computed."""

    precision: Precision
    made_by: str
    stages: tuple[Difference, ...]
    cause: str = ""

    @property
    def first(self) -> Difference | None:
        """The first that differs."""
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
                f"equal: {len(self.stages)} values of {what}, at most {worst.share():.0%} of a limit ({worst.tensor})"
            )
        return f"different: not the model of {what}; the first value that differs is {self.first.tensor}"

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
    """Hold a recording against a float32 model. Raises ModelError if the model cannot take the recording's inputs.

    Where something differs, facts of config.json that the weights do not show are tried the other way, for the cause.
    """
    compared = _compared(model, recording)
    if compared.first is None:
        return compared
    return replace(compared, cause=_cause(model, recording, compared.first))


def _cause(model: PVC, recording: Recording, first: Difference) -> str:
    """Of the first value that differs. What the same weights reproduce with another fact of config.json is certain."""
    if first.shapes is not None:
        return "config.json belongs to another model: the number of layers or a width is not the original's"
    other = try_candidates(_other_readings(model, first.tensor), recording)
    if other.reproduce:
        return f"config.json: the same weights reproduce the recording with {' or '.join(other.reproduce)}"
    if recording.precision != "fp32" and not first.share() > CLOSE:  # NaN is not
        return f"rounding, if nothing else: a recording in {recording.precision} is coarse; make one in float32"
    stem, _, index = first.tensor.rpartition(".")
    if stem == VISION_LAYER and int(index) >= model.config.vision.num_trunk_layers:
        return OF_TEMPORAL_LAYERS
    if index == "0":
        return OF_FIRST_LAYERS[stem]
    if stem in OF_FIRST_LAYERS:
        return f"weights of this layer alone, as the layer before it is equal: names or values of its tensors, {OURS}"
    return OF_OTHERS[first.tensor]


OURS = "in this folder, are not those that were recorded"
OF_TEMPORAL_LAYERS = (
    "what the layers that attend over time compute: which layers they are (num_temporal_layers), time_mode, or which "
    "tensor is which of alpha, adaln.w3 to w6, time_embedding and temporal_attn"
)
OF_FIRST_LAYERS = {
    VISION_LAYER: "something that all layers share: layer_norm_eps, num_attention_heads, the order in qkv; or weights",
    LLM_LAYER: "something that all layers share: rope_theta, rms_norm_eps, num_attention_heads, num_key_value_heads; "
    "or the token embeddings, or weights",
}
OF_OTHERS = {
    EMBEDDINGS: f"weights of vision_model.embeddings, {OURS}; or frames were normalised otherwise",
    FEATURES: f"weights of mlp1, {OURS}; or the order in which patches are shuffled",
    LLM_NORM: f"the weight of the last norm, {OURS}; or rms_norm_eps",
    LOGITS: f"the weight of the head, {OURS}; or tie_word_embeddings",
}


def _other_readings(model: PVC, first: str) -> dict[str, Callable[[], PVC]]:
    """The same weights with facts of config.json changed that no weight shows, and that could differ first there."""
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
    """A model of another configuration that shares every weight."""
    other = PVC.empty(config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Which of several readings of a checkpoint is the original: the names of those that reproduce its recording."""

    reproduce: tuple[str, ...]
    compared: dict[str, Comparison]

    @property
    def is_unique(self) -> bool:
        return len(self.reproduce) == 1


def try_candidates(candidates: Mapping[str, Callable[[], PVC]], recording: Recording) -> Candidates:
    """Make each model, one at a time, and hold the recording against it. What a callable raises is not caught."""
    compared = {name: _compared(make(), recording) for name, make in candidates.items()}
    return Candidates(reproduce=tuple(name for name, one in compared.items() if one.passed), compared=compared)


def decide(
    groups: Sequence[Sequence[Mapping[str, str]]],
    load: Callable[[Mapping[str, str]], PVC],
    recording: Recording,
    progress: Progress = lambda _: None,
) -> list[dict[str, str]]:
    """Which mappings of a checkpoint's tensors reproduce the recording the furthest: one, if it tells them apart.

    groups  of the mappings that are possible, parts of which any goes with any of the others, in the order in which a
            frame passes them (Detection.groups)
    Part after part: what a later one holds changes nothing in the layers before it.
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
    rung = Rung("bundle", recording.precision)  # whose limits hold: it too is a whole pass by somebody else's code
    stages = []
    for name in dict.fromkeys((*own, *recording.values)):
        nothing = np.zeros(NOTHING)
        got, want = recording.values.get(name, nothing), own.get(name, nothing)
        one = compare_arrays(got, want, rung=rung, graph="original", tensor=name, where=WHOLE_TEXT)
        stages.append(_capped(noise.judged(one)))
    return Comparison(precision=recording.precision, made_by=recording.made_by, stages=tuple(stages))


def _capped(stage: Difference) -> Difference:
    if not stage.limits:  # one that no number describes
        return stage
    return replace(stage, limits=stage.limits | {"rel_l2": min(stage.limits["rel_l2"], COARSEST)})


def _check_inputs(model: PVC, recording: Recording) -> None:
    size, vocab_size = model.config.vision.image_size, model.config.llm.vocab_size
    highest = max(int(ids.max(initial=0)) for ids in (recording.before, recording.after))
    if recording.frames.shape[1:] != (size, size, 3) or recording.frames.dtype != np.uint8 or highest >= vocab_size:
        raise ModelError(
            f"the recording has frames {recording.frames.shape} {recording.frames.dtype} and token ids to {highest}",
            expected=f"frames (T, {size}, {size}, 3) uint8 and ids below {vocab_size}, which the model takes",
            cause="the recording is of another model than the folder",
        )


@torch.no_grad()
def stage_values(model: PVC, recording: Recording) -> dict[str, Array]:
    """What `model` computes of the recording's inputs, under the original's names and of the same rows.

    (T, rows, C) on the vision side, (1, rows, E) in the LLM, in the dtype that the model computes in.
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
    """PVC.encode_clip of one clip (T, S, S, 3), (T, M, E), that also keeps what each temporal layer returns."""
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
