"""Resources for many cameras, computed from a simulation of one process. Nothing here is measured directly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .load import Load
from .simulation import Rules, ServiceTimes, simulate

MOST_DROPPED = 0.001
"""Share of frames that a process may drop before it counts as full."""
MOST_CAMERAS = 1024
KIB = 1 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of one stream, in bytes.

    state     its caches in memory
    snapshot  its snapshot file
    picture   one frame on the network: a JPEG at the camera's resolution
    open      seconds to resume from a snapshot
    """

    state: int
    snapshot: int
    picture: int
    open: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Resources of a fleet. Each process computes on one core or one GPU; rates are totals, in bytes per second.

    handover  seconds to move all streams of one process to another, one after another: save, then open
    """

    cameras: int
    per_process: int
    processes: int
    state_bytes: int
    picture_rate: float
    snapshot_rate: float
    handover: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def most_cameras(times: ServiceTimes, load: Load, rules: Rules | None = None) -> int:
    """The largest number of cameras one process can serve: at most MOST_DROPPED of the frames are dropped, and 99 %
    reach their stream before the camera's next frame arrives. 0 if it is too slow for one camera."""
    low, high = 0, 1
    while high <= MOST_CAMERAS and _is_served(times, replace(load, cameras=high), rules):
        low, high = high, 2 * high
    high = min(high, MOST_CAMERAS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if _is_served(times, replace(load, cameras=middle), rules):
            low = middle
        else:
            high = middle
    return low


def fleet(cameras: int, times: ServiceTimes, load: Load, sizes: Sizes, *, per_process: int) -> Fleet:
    """The fleet for this many cameras, if one process serves per_process (at least 1) of them."""
    saves = load.fps / load.save_every if load.save_every else 0.0
    save = sum(times.save) / len(times.save)
    return Fleet(
        cameras=cameras,
        per_process=per_process,
        processes=-(-cameras // per_process),
        state_bytes=cameras * sizes.state,
        picture_rate=cameras * load.fps * sizes.picture,
        snapshot_rate=cameras * saves * sizes.snapshot,
        handover=min(cameras, per_process) * (save + sizes.open),
    )


def _is_served(times: ServiceTimes, load: Load, rules: Rules | None) -> bool:
    outcome = simulate(times, load, rules)
    figures = outcome.figures()
    return outcome.dropped_share <= MOST_DROPPED and figures["frame_p99_ms"] <= 1e3 / load.fps
