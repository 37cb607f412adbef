"""The complete PVC model, frames to tokens to text: the oracle that every exported graph is compared with.

One set of weights has two forms. `encode_clip` sees all frames at once under a banded causal mask; `encode_frame`
sees one frame and an explicit state. Tests require the two to agree within 1e-12 in float64. The exception is time mode
`relative`, which cannot be computed with a cache.
Source: PVC (arXiv 2412.09613): images as static videos, progressive encoding, adaptive compression.
Dimension key:  B streams   T frames   S frame size   N positions   C vision width   M tokens per frame   E LLM width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .compressor import build_compressor
from .config import PVCConfig
from .errors import InputError
from .init import randomize
from .layers import upcast
from .llm import Decoder
from .temporal import KeyValue, TemporalEncoder, window_bias
from .vision import Trunk


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionState:
    """A stream's memory of its past frames: keys and values of every temporal layer, oldest first.

    past        one (key, value) per layer, each (B, frames kept, N, H, D); frames kept is at most window - 1
    num_frames  frames seen so far, kept or not
    """

    past: tuple[KeyValue, ...]
    num_frames: int

    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for pair in self.past for x in pair)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFeatures:
    """Intermediate results of one frame before the compressor, for parity."""

    times: Tensor  # (B,)
    trunk_features: Tensor  # (B, N, C)
    features: Tensor  # (B, N - 1, C)
    new: tuple[KeyValue, ...]  # one (key, value) per temporal layer, each (B, N, H, D)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameOutputs(FrameFeatures):
    """All vision-side results of one frame."""

    frame_embeds: Tensor  # (B, M, E)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Draw the next token instead of taking the likeliest. top_p keeps the smallest set with that total probability."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise InputError(f"{self} is out of range", expected="temperature > 0, 0 < top_p <= 1, top_k >= 1")


class PVC(nn.Module):
    """The reference model. Create it with `PVC(config)`, `PVC.random(config, seed=...)` or `pvc_ref.load(folder)`."""

    random_seed: int | None = None
    """Seed of random, untrained weights. Saved, so that their answers are not mistaken for a trained model's."""
    trained_on: str | None = None
    """Name of the world this model was trained on, such as 'shapes'; saved with the weights."""
    renamed: Mapping[str, str] = {}
    """For a loaded model: tensor names in its files that differ from ours -> our names. Not saved."""
    stored: Callable[[str], Tensor] | None = None
    """Reads one weight from the model's files by name, for a model whose large weights stayed there (on `meta`)."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.vision)
        self.temporal = TemporalEncoder(config.vision)
        self.compressor = build_compressor(config)
        self.llm = Decoder(config.llm)

    @staticmethod
    def random(config: PVCConfig, *, seed: int = 0) -> PVC:
        """Float32 weights drawn from `seed`, every part active, each value exact in float16. See init.py."""
        model = randomize(PVC(config), seed=seed).eval()
        model.random_seed = seed
        return model

    @staticmethod
    def empty(config: PVCConfig) -> PVC:
        """The model on `meta`: names and shapes without values, so it takes no memory."""
        with torch.device("meta"):
            return PVC(config).eval()

    def weight(self, name: str) -> Tensor:
        """Return a parameter's values, from its file if they are not in memory."""
        parameter = self.get_parameter(name).detach()
        if not parameter.is_meta:
            return parameter
        assert self.stored is not None, f"{name} is on meta and the model has no files to read it from"
        return self.stored(name)

    def first_name(self, name: str) -> str:
        """Return the name under which a parameter is stored; a tied parameter is stored under its first name."""
        weight = self.get_parameter(name)
        return next(first for first, other in self.named_parameters() if other is weight)

    # -- vision ------------------------------------------------------------------------------------------------

    def frame_times(self, start: int, num_frames: int, *, total_frames: int | None, device: torch.device) -> Tensor:
        """Times (num_frames,) of frames start, start + 1, ... in the config's time mode, in at least float32."""
        mode = self.config.time_mode
        if total_frames is not None and not start + num_frames <= total_frames:
            raise InputError(
                f"frame {start + num_frames - 1} is outside the clip: total_frames = {total_frames}",
                expected="total_frames = the number of frames in the whole clip",
            )
        dtype = torch.promote_types(self.llm.lm_head.weight.dtype, torch.float32)
        times = torch.arange(start, start + num_frames, dtype=dtype, device=device)
        if mode == "absolute":
            return times
        if mode == "fixed" and total_frames is None:
            raise InputError(
                "time_mode 'fixed' divides by the clip's length, but total_frames was not given",
                fix="pass total_frames=",
            )
        return times / (start + num_frames if total_frames is None or mode == "relative" else total_frames)

    def encode_clip(self, frames: Tensor, *, window: int | None = None, total_frames: int | None = None) -> Tensor:
        """All frames of a clip at once: (B, T, S, S, 3) uint8 RGB -> (B, T, M, E).

        Frame t attends to frames max(0, t - window + 1)..t; window=None means frames 0..t. total_frames is required
        (and used) in time mode `fixed` only.
        """
        _check_window(window)
        batch, num_frames = frames.shape[:2]
        times = self.frame_times(0, num_frames, total_frames=total_frames, device=frames.device)
        times = times.expand(batch, -1)
        x = self.trunk(frames.flatten(0, 1)).unflatten(0, (batch, num_frames))
        features, _ = self.temporal(x, times, None, window_bias(num_frames, window, like=x))
        return self.compressor(features.flatten(0, 1), times.flatten()).unflatten(0, (batch, num_frames))

    def encode_frame(
        self,
        frame: Tensor,
        state: VisionState | None = None,
        *,
        window: int | None = None,
        total_frames: int | None = None,
    ) -> tuple[Tensor, VisionState]:
        """The next frame of each stream: (B, S, S, 3) uint8 RGB -> (B, M, E) and the state after it.

        `state` is None before the first frame and is never changed in place. Raises InputError in time mode
        `relative`, where every new frame changes the time, and therefore the keys, of all earlier frames.
        """
        outputs, state = self.frame_outputs(frame, state, window=window, total_frames=total_frames)
        return outputs.frame_embeds, state

    def frame_outputs(
        self,
        frame: Tensor,
        state: VisionState | None = None,
        *,
        window: int | None = None,
        total_frames: int | None = None,
    ) -> tuple[FrameOutputs, VisionState]:
        """Run `encode_frame` and return every intermediate result."""
        found, state = self.frame_features(frame, state, window=window, total_frames=total_frames)
        frame_embeds = self.compressor(found.features, found.times)
        outputs = FrameOutputs(
            times=found.times,
            trunk_features=found.trunk_features,
            features=found.features,
            new=found.new,
            frame_embeds=frame_embeds,
        )
        return outputs, state

    def frame_features(
        self,
        frame: Tensor,
        state: VisionState | None = None,
        *,
        window: int | None = None,
        total_frames: int | None = None,
    ) -> tuple[FrameFeatures, VisionState]:
        """Run `frame_outputs` without the compressor, which has no state."""
        if self.config.time_mode == "relative":
            raise InputError(
                "time_mode 'relative' cannot be streamed with a cache: every new frame changes the time t / T of all "
                "past frames",
                expected="time_mode 'absolute' or 'fixed'",
                fix="use encode_clip on the whole clip, or a model trained with 'absolute' or 'fixed' time",
            )
        _check_window(window)
        frame_index = 0 if state is None else state.num_frames
        past = None if state is None or not state.past or state.past[0][0].shape[1] == 0 else state.past
        times = self.frame_times(frame_index, 1, total_frames=total_frames, device=frame.device).expand(len(frame), -1)
        trunk_features = self.trunk(frame)
        x = trunk_features[:, None]
        bias = x.new_zeros(1, 1, 1 + (0 if past is None else past[0][0].shape[1]))
        features, new = self.temporal(x, times, past, bias)
        kept = new if past is None else _append(past, new)
        if window is not None:  # the next frame sees itself and window - 1 past frames
            first = max(0, kept[0][0].shape[1] - (window - 1)) if kept else 0
            kept = [(key[:, first:], value[:, first:]) for key, value in kept]
        found = FrameFeatures(
            times=times[:, 0],
            trunk_features=trunk_features,
            features=features[:, 0],
            new=tuple((key[:, 0], value[:, 0]) for key, value in new),
        )
        return found, VisionState(past=tuple(kept), num_frames=frame_index + 1)

    def encode_images(
        self, images: Sequence[Tensor], *, num_repeats: int | None = None, window: int | None = None
    ) -> list[Tensor]:
        """Images as static videos: each (tiles, S, S, 3) uint8 RGB -> (tiles * repeats * M, E).

        Tokens are ordered (tile, repeat, token), and images keep their order. In layout `tile_streams` every tile is
        repeated as a separate stream; in `tiles_in_time` the tiles of an image follow one another in one stream.
        `window` is as in encode_clip.
        """
        repeats = self.config.num_image_repeats if num_repeats is None else num_repeats
        if repeats < 1:
            raise InputError(
                f"num_repeats is {repeats}", expected="at least 1: an image is encoded as a video of num_repeats frames"
            )
        encoded = []
        for tiles in images:
            frames = tiles[:, None].expand(-1, repeats, -1, -1, -1)  # (tiles, repeats, S, S, 3)
            if self.config.image_layout == "tiles_in_time":
                frames = frames.flatten(0, 1)[None]
            clip = self.encode_clip(frames, window=window, total_frames=frames.shape[1])
            encoded.append(clip.flatten(0, 2))
        return encoded

    # -- language ----------------------------------------------------------------------------------------------

    def embed_prompt(self, input_ids: Tensor, visual_embeds: Tensor | None, *, context_id: int) -> Tensor:
        """ids (L,) -> embeddings (1, L, E), each `context_id` replaced by the next row of visual_embeds (rows, E)."""
        embeds: Tensor = self.llm.embed_tokens(input_ids)
        slots = input_ids == context_id
        num_rows = 0 if visual_embeds is None else len(visual_embeds)
        if int(slots.sum()) != num_rows:
            raise InputError(
                f"the prompt has {int(slots.sum())} image tokens but {num_rows} visual embeddings were given",
                expected="one visual embedding per image token",
                fix="build the prompt for the same number of frames and repeats",
            )
        if visual_embeds is not None:
            embeds = embeds.masked_scatter(slots[:, None], visual_embeds.to(embeds.dtype))
        return embeds[None]

    @torch.no_grad()
    def generate(
        self,
        inputs_embeds: Tensor,
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        """Continue one prompt (1, L, E) with a KV cache. Greedy without `sampling`. The stop token is not returned.

        Raises InputError if prompt and answer together would exceed the LLM's max_positions.
        """
        limit = self.config.llm.max_positions
        if inputs_embeds.shape[1] + max_new_tokens > limit:
            raise InputError(
                f"{inputs_embeds.shape[1]} prompt tokens and {max_new_tokens} new tokens do not fit in the context",
                expected=f"at most max_positions = {limit} in total",
                fix="ask about fewer frames, or lower max_new_tokens",
            )
        generator = torch.Generator().manual_seed(sampling.seed) if sampling else None
        ids: list[int] = []
        past: list[KeyValue] | None = None
        while len(ids) < max_new_tokens:
            start = 0 if past is None else past[0][0].shape[1]
            positions = torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            hidden, new = self.llm(inputs_embeds, positions, past)
            past = new if past is None else _append(past, new)
            logits = self.llm.logits(hidden[0, -1])
            token = int(logits.argmax()) if sampling is None else sample(logits, sampling, generator)
            if token in stop_ids:
                break
            ids.append(token)
            inputs_embeds = self.llm.embed_tokens(torch.tensor([[token]], device=inputs_embeds.device))
        return ids


def stored_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the weights that may stay in their files: linear layers and embeddings, nearly all of a model's size.
    A tied weight is listed under its first name."""
    products = {id(m.weight) for m in model.modules() if type(m) in (nn.Linear, nn.Embedding)}
    return frozenset(name for name, weight in model.named_parameters() if id(weight) in products)


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Draw one token from logits (V,) after temperature, top-k and top-p, in that order."""
    logits = upcast(logits) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    ordered, order = logits.softmax(-1).sort(descending=True)
    if sampling.top_p < 1:  # at 1, rounding in the sum must not cut the tail
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0.0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise InputError(f"window is {window}", expected="at least 1 (the current frame), or None for no window")


def _append(past: Sequence[KeyValue], new: Sequence[KeyValue]) -> list[KeyValue]:
    """Append the new rows to every layer's cache."""
    return [
        (torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1))
        for (old_key, old_value), (key, value) in zip(past, new, strict=True)
    ]
