"""What so many cameras need: arithmetic over a simulation of one process. Nothing here was measured by itself."""

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
    """Bytes of one stream.

    state     its caches in memory
    snapshot  as a file
    picture   a frame as it comes over the network: a JPEG of the camera's size
    open      seconds to go on from a snapshot
    """

    state: int
    snapshot: int
    picture: int
    open: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """processes: each computes on one core or one GPU. Rates in bytes a second, of all processes together.

    handover  seconds until all streams of one process go on in another one, one after another: saved there, opened here
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
    """How many cameras of this load a process takes: at most MOST_DROPPED of the frames are dropped, and 99 of 100 are
    in their stream before the camera's next one comes. 0 if it is too slow for one."""
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
    """For so many cameras of this load, where a process takes per_process of them: at least one."""
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
