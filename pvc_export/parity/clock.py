"""Clock check: one frame at every trained time, and at some later ones, each as the first frame of a stream.

A clip covers few times, one after the other. Here only the time varies, so a time that is clamped, wrapped, rounded or
looked up in the wrong row shows by itself.
Dimension key:  B times   N positions   C vision width
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from engines.bundle import Bundle
from engines.manifest import Manifest
from engines.memory import Array, host_dtype
from engines.session import Session
from engines.spec import GraphSpec
from pvc_ref import PVC

from ..graphs.machine import is_small
from .evidence import Evidence
from .float16_on_cpu import Float16Products
from .metrics import Difference, compare_arrays
from .places import Place, Rung
from .recording import Recording, to_numpy
from .rounding import Reference

BEYOND = (97, 128, 250, 512, 1000, 2047, 2049, 4099)
"""Times past a clip of 96 frames, around the largest integers that float16 and bfloat16 represent exactly."""
NUM_OF_LARGE = 8
"""Number of times checked for a large model."""
AT_ONCE = 8


@torch.no_grad()
def probe_clock(bundle: Bundle, reference: Reference, own: Recording) -> Evidence:
    """Compare temporal and compressor at every time. own: the reference's outputs for the clip; its first frame is
    used."""
    precision, found = bundle.manifest.precision, list[Difference]()
    times = clock_times(bundle.manifest, is_large=not is_small(reference.model))
    narrow = reference.dtype if precision != "fp32" else torch.float32
    features, patches = (
        torch.from_numpy(own[0][name]).to(narrow).float() for name in ("trunk/trunk_features", "temporal/features")
    )
    names = [state.output for state in bundle.manifest.graphs["temporal"].row_states]
    for start in range(0, len(times), AT_ONCE):
        some = times[start : start + AT_ONCE]
        want = _at_times(reference.model, torch.float32, features, patches, some, names)
        twin = _at_times(reference.twin, reference.dtype, features, patches, some, names)
        for row, time in enumerate(some):
            where = Place("time", round(time), f"time {time:g}")
            for name, got in _of_the_bundle(bundle.sessions, features.numpy(), patches.numpy(), time):
                graph, _, tensor = name.partition("/")
                one = slice(row, row + 1)
                found.append(
                    compare_arrays(got, want[name][one], rung=Rung("bundle", precision), graph=graph, tensor=tensor,
                                   where=where)
                )  # fmt: skip
                found.append(reference.noise(want[name][one], twin[name][one], graph=graph, tensor=tensor, where=where))
    return Evidence(differences=tuple(found))


def clock_times(manifest: Manifest, *, is_large: bool = False) -> list[float]:
    """Every time from 0 to the last trained one, then BEYOND as far as the clock goes; a few of them for a large model.
    With a fixed clock, times are fractions of the clip's length."""
    last, num_times = manifest.trained_frames, manifest.limits.num_times
    if manifest.time_mode == "fixed":
        times = [index / last for index in range(last)]
    else:
        later = [last + time for time in BEYOND] if num_times is None else range(last, num_times)
        times = [float(time) for time in (*range(last), *later)]
    if is_large:
        times = [times[int(index)] for index in np.linspace(0, len(times) - 1, NUM_OF_LARGE)]
    return times


def _at_times(
    model: PVC,
    dtype: torch.dtype,
    features: torch.Tensor,
    patches: torch.Tensor,
    some: Sequence[float],
    names: list[str],
) -> dict[str, Array]:
    """Run a model's temporal layers on trunk features (1, N, C) and its compressor on patches (1, N - 1, C), at each
    time."""
    times = torch.tensor(some, dtype=torch.float32)
    x = features.to(dtype).expand(len(some), -1, -1)[:, None]
    with Float16Products():
        out, new = model.temporal(x, times[:, None], None, x.new_zeros(1, 1, 1))
        embeds = model.compressor(patches.to(dtype).expand(len(some), -1, -1), times)
    rows = (row[:, 0] for pair in new for row in pair)
    tensors = {"temporal/features": out[:, 0], "compressor/frame_embeds": embeds}
    tensors |= {f"temporal/{name}": row for name, row in zip(names, rows, strict=True)}
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def _of_the_bundle(
    sessions: Mapping[str, Session], features: Array, patches: Array, time: float
) -> Iterator[tuple[str, Array]]:
    for graph, value in (("temporal", features), ("compressor", patches)):
        session = sessions[graph]
        outputs = session.run(_feeds(session.spec, value, time))
        yield from ((f"{graph}/{name}", np.array(session.memory.to_host(got))) for name, got in outputs.items())


def _feeds(spec: GraphSpec, value: Array, time: float) -> dict[str, Array]:
    """Inputs for a stream's first frame: an empty past."""
    feeds = {t.name: np.zeros(t.resolve({"batch": 1}), host_dtype(t.dtype)) for t in spec.inputs}
    own = next(tensor.name for tensor in spec.inputs if tensor.name in ("trunk_features", "features"))
    given = {own: value.astype(feeds[own].dtype), "frame_time": np.array([time], np.float32)}
    return feeds | {name: array for name, array in given.items() if name in feeds}
