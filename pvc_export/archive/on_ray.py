"""Rows from the machines of a Ray cluster, through Ray Data. All read the videos and the bundle under the same paths.

Note: a row counts once the process that was started has written it. If that process is killed, the next run repeats
the rows that Ray computed but did not deliver; a row that Ray delivers twice is written once (table.py).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from engines.errors import BackendUnavailable, PVCError
from engines.manifest import Manifest

from .answering import Answerer
from .job import Job, Video
from .table import Row

MOST_BLOCKS = 10_000
"""Maximum number of blocks in which the work is distributed: one video each, up to this number."""


def import_ray() -> Any:
    """Import ray. Raises BackendUnavailable if that fails."""
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise BackendUnavailable(
            f"--ray needs the package ray with Ray Data, which cannot be imported here: {error}",
            fix="pip install 'ray[data]>=2.60', or pip install -e '.[ray]'; or run without --ray",
        ) from error


def rows_of_ray(job: Job, digest: str, videos: Sequence[Video], *, address: str, num_workers: int) -> Iterator[Row]:
    """Rows of all videos, in order of completion.

    address  address of a running cluster as for ray.init; auto: this machine's cluster; local: a cluster that is
             started here and ends with the run
    Raises BackendUnavailable without Ray, without a cluster at the address, and if a worker cannot open the bundle.
    """
    ray = import_ray()
    try:
        # Ray's own output and the workers' prints would corrupt --json.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except Exception as error:
        raise BackendUnavailable(
            f"there is no Ray cluster at {address}: {error}",
            expected="auto, local, or an address such as ray://HEAD:10001",
            fix="start a cluster: ray start --head; or let this run start one: --ray local",
        ) from error
    try:
        yield from _rows(ray, job, digest, videos, num_workers=num_workers)
    finally:
        ray.shutdown()


def _rows(ray: Any, job: Job, digest: str, videos: Sequence[Video], *, num_workers: int) -> Iterator[Row]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    on_gpu = Manifest.load(job.bundle).target != "cpu" and job.runtime != "cpu" and "GPU" in ray.cluster_resources()
    blocks = min(len(videos), MOST_BLOCKS)
    dataset = ray.data.from_items(
        [{"video": json.dumps(asdict(video))} for video in videos], override_num_blocks=blocks
    )
    rows = dataset.map_batches(
        BatchAnswerer, fn_constructor_args=(job, digest), batch_size=1, batch_format="numpy", num_cpus=1,
        num_gpus=1 if on_gpu else 0, concurrency=min(num_workers, len(videos)),
    )  # fmt: skip
    try:
        for row in rows.iter_rows():
            yield json.loads(row["row"])
    except ray.exceptions.RayError as error:
        raise _cause_of(error) from error


def _cause_of(error: BaseException) -> PVCError:
    """The worker's error if it is one of ours, else BackendUnavailable."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PVCError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return BackendUnavailable(
        f"Ray gave up: {str(error).strip().splitlines()[-1]}",
        cause="a machine of the cluster lacks something that this command needs",
        fix="look at its log: ray logs; the table keeps its rows, and the same command continues there",
    )  # fmt: skip


class BatchAnswerer:
    """An Answerer with Ray Data's interface: columns in, columns out."""

    def __init__(self, job: Job, digest: str) -> None:
        self._answerer = Answerer(job, digest)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        videos = [Video(**json.loads(str(video))) for video in batch["video"]]
        return {"row": [json.dumps(self._answerer.row(video)) for video in videos]}
