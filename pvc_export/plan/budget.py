"""`--memory`: chooses window and context so that a process with all its streams stays within a size.

The window is chosen first: a frame's tokens are made once, from the ring's contents at that time, and no later context
can improve them. The rings get at most a quarter of the memory left by weights, runtime and activations, because the
answers depend on the LLM's context. The window has at least 2 frames and at most as many as the model was trained on.
The context gets the rest, in whole buckets, up to the model's maximum and the useful length. A stream re-anchors at the
trained number of frames, so the useful length is those frames, the text before them, a question and its answer; a model
that cannot re-anchor can use any length. If memory is left, the window grows up to the trained number of frames.
Streams are assumed to re-anchor if the model can, whatever clock the graphs are made for, as live sessions do. Each
then has a second ring and a second LLM cache, in which its next anchor is prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from engines.clock import DEFAULT_RETAIN
from engines.errors import ModelError
from engines.spec import StreamLimits
from pvc_ref import PVC, PVCConfig

from ..bundles.export import ExportRequest, can_reanchor, require_exportable
from ..terminal.console import size_text
from ..terminal.limits import AskedLimits
from .bundle import plan_bundle
from .devices import Device, share_of_device
from .fit import Setting, Taken, for_request, largest_that, limits_that_fit, narrower_than

RING_SHARE = 4
"""Rings take at most 1/RING_SHARE of the memory left for states."""
LEAST_WINDOW = 2
FRAME_TEXT, OTHER_TEXT = 16, 512
"""LLM rows of text: a frame's label (12 with the byte tokenizer); the conversation's start, a question, its answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The chosen limits, and the memory they take.

    memory        allowed bytes
    num_retained  default number of frames that a re-anchor replays; 0 for a model that cannot re-anchor
    """

    memory: int
    limits: StreamLimits
    num_retained: int
    taken: Taken

    def __str__(self) -> str:
        """The choice, on one line."""
        anew = f", {self.num_retained} frames replayed" if self.num_retained else ""
        counted = ", with re-anchoring, as live streams do" if self.num_retained else ""
        return (
            f"memory {size_text(self.memory)}: window {self.limits.window}, context {self.limits.context}{anew}; "
            f"{self.taken}{counted}; {size_text(self.memory - self.taken.total)} spare"
        )

    def to_json(self) -> dict[str, Any]:
        """The choice for JSON; sizes in bytes."""
        return {
            "asked": self.memory,
            "window": self.limits.window,
            "context": self.limits.context,
            "retained": self.num_retained,
            "takes": self.taken.total,
            **asdict(self.taken),
        }


def choose_limits(model: PVC, request: ExportRequest, asked: AskedLimits) -> Chosen:
    """Choose limits with which the bundle's process stays within the requested memory: a CPU machine's, a Jetson's, or
    a card's. `model` may be on `meta`.

    Raises ModelError for a request that cannot be exported, and if nothing fits.
    """
    config, bucket = model.config, request.limits.bucket
    device = share_of_device(request.target, asked.memory_bytes)
    most_frames = max(LEAST_WINDOW, config.trained_frames)
    window, context = asked.window or LEAST_WINDOW, asked.context or _least_context(config, bucket)
    request = replace(request, limits=replace(request.limits, window=window, context=context))
    require_exportable(config, request)
    bundle = plan_bundle(model, request, tokenizer_bytes=0)
    found = least = Setting(model=model, request=request, bundle=bundle, reanchors=can_reanchor(config))
    if not least.fits(device):
        raise _nothing_fits(least, device, asked)
    is_enough = True
    if asked.context is None:
        useful = _useful_context(config, bucket)
        if asked.window is None:
            found = found.with_limits(window=_window(least, device, most=most_frames))
        found = found.with_limits(context=found.largest(device, "context", most=useful))
        is_enough = found.request.limits.context == useful
    if asked.window is None and is_enough:
        found = found.with_limits(window=found.largest(device, "window", most=most_frames))
    return _chosen(found, device)


def _chosen(setting: Setting, device: Device) -> Chosen:
    limits, config = setting.request.limits, setting.model.config
    num_retained = 0
    if setting.reanchors:
        room = (limits.context - OTHER_TEXT) // _rows_a_frame(config) - 1  # the new frame is not replayed
        num_retained = max(1, min(DEFAULT_RETAIN, limits.window, config.trained_frames - 1, room))
    return Chosen(memory=device.usable, limits=limits, num_retained=num_retained, taken=setting.taken(device))


def _rows_a_frame(config: PVCConfig) -> int:
    return config.compressor.num_tokens + FRAME_TEXT


def _least_context(config: PVCConfig, bucket: int) -> int:
    """Rows for one replayed frame, one new frame, and a question."""
    return _in_buckets(2 * _rows_a_frame(config) + OTHER_TEXT, config, bucket)


def _useful_context(config: PVCConfig, bucket: int) -> int:
    if not can_reanchor(config):
        return _in_buckets(config.llm.max_positions, config, bucket)
    return _in_buckets(config.trained_frames * _rows_a_frame(config) + OTHER_TEXT, config, bucket)


def _in_buckets(rows: int, config: PVCConfig, bucket: int) -> int:
    """`rows` in whole buckets, up to the model's maximum."""
    return max(1, min(-(-rows // bucket), config.llm.max_positions // bucket)) * bucket


def _window(least: Setting, device: Device, *, most: int) -> int:
    """The largest window for which the rings of all streams leave three quarters to the LLM's caches."""
    limits, taken = least.request.limits, least.taken(device)
    for_states = device.usable - taken.weights - taken.runtime - taken.activations

    def leaves_enough(window: int) -> bool:
        rings = limits.streams * least.state(replace(limits, window=window)).ring
        return RING_SHARE * rings <= for_states and least.fits(device, window=window)

    return max(LEAST_WINDOW, largest_that(leaves_enough, most=most))


def _nothing_fits(least: Setting, device: Device, asked: AskedLimits) -> ModelError:
    limits, taken = least.request.limits, least.taken(device)
    return ModelError(
        f"--memory {asked.memory} is {device.usable} bytes, but at least {taken.total} ({size_text(taken.total)}) are "
        f"needed, for window {limits.window}, context {limits.context}, streams {limits.streams}",
        expected=f"enough memory for {taken}",
        fix=_remedy(least, device, asked),
    )


def _remedy(least: Setting, device: Device, asked: AskedLimits) -> str:
    """The fewest options that make it fit, or else the memory needed with all of them. Only limits that the user gave
    can be reduced: the others are already at their minimum."""
    smaller = {"streams": 1}
    if asked.context is not None:
        smaller["context"] = _least_context(least.model.config, least.request.limits.bucket)
    if asked.window is not None:
        smaller["window"] = LEAST_WINDOW
    ways = [("", least), *_possible(least, device)]
    for options, tried in ways:
        if found := [f"{options} {limit}".strip() for limit in limits_that_fit(tried, device, smaller)]:
            return f"give {', or '.join(found)}"
    options, smallest = ways[-1]
    limits = smallest.request.limits
    changed = {name: value for name, value in smaller.items() if value < getattr(limits, name)}
    words = " ".join([options, *(f"--{name} {value}" for name, value in changed.items())]).strip()
    takes = for_request(smallest, smallest.with_limits(**changed).request).takes(device)
    if takes <= device.usable:
        return f"give {words}"
    return (
        f"allow more memory; with {words} at least {takes} ({size_text(takes)}) are needed"
        if words
        else "allow more memory"
    )


def _possible(setting: Setting, device: Device) -> Iterator[tuple[str, Setting]]:
    for options, tried in narrower_than(setting, on_cpu=device.is_cpu):
        if setting.request.target.int4_blocks or not tried.request.quantization:
            yield options, tried
