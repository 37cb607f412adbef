"""`pvc-export batch`: from a folder of videos to a table of answers; an interrupted run can be resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import PVCError
from engines.terminal import print_json, printable

from ..archive.job import Job, Video, find_videos
from ..archive.on_ray import rows_of_ray
from ..archive.table import Row, Table
from ..archive.workers import rows_here, rows_of_workers
from ..terminal import interrupt
from ..terminal.console import Console

DEFAULT_QUESTION = "What happens in this video?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """The place of the work: in this process, in several workers, or, with `ray`, on a cluster at that address."""

    workers: int = 1
    ray: str | None = None

    def rows(self, job: Job, digest: str, videos: Sequence[Video]) -> Iterator[Row]:
        if self.ray is not None:
            return rows_of_ray(job, digest, videos, address=self.ray, num_workers=self.workers)
        if self.workers > 1:
            return rows_of_workers(job, digest, videos, num_workers=self.workers)
        return rows_here(job, digest, videos)


def batch_command(job: Job, where: Where, *, output: Path, retry: bool, as_json: bool) -> None:
    """Answer the videos that the table lacks, and print a summary.

    retry  also repeat videos that have an error in the table
    Raises PVCError for a table of another job, and the errors of find_videos, Table and `where.rows`.
    """
    console, started = Console(quiet=as_json), time.monotonic()
    digest, videos = job.digest(), find_videos(job.folder)
    kept = f"the rows in {output} are kept, and the same command continues there"
    with Table(output) as table, interrupt.keeping(kept):
        _require_same_job(table, digest)
        by_name = {video.name: video for video in videos}
        num_changed = table.drop(lambda row: row["video"] in by_name and not by_name[row["video"]].is_of(row))
        num_retried = table.drop(lambda row: retry and row["error"] is not None)
        missing = [video for video in videos if video.name not in table.rows]
        num_before = len(table.rows)
        said = [f"{len(videos)} videos", f"{num_before} rows in {output}" if num_before else ""]
        said += [f"{num_changed} changed" if num_changed else "", f"{num_retried} retried" if num_retried else ""]
        console.print(printable("; ".join(filter(None, said))))
        num_failed = 0
        if missing:
            with console.stage(f"answer {len(missing)} videos") as (stage, report):
                for row in where.rows(job, digest, missing):
                    table.add(row)
                    if row["error"] is not None:
                        num_failed += 1
                        console.print(printable(f"{row['video']}: {row['error']['what']}"), style="yellow")
                    report((len(table.rows) - num_before) / len(missing))
                stage.note = f"{num_failed} could not be read" if num_failed else ""
        num_rows = len(table.rows)
    console.print(printable(f"{num_rows} rows in {output}"))
    if as_json:
        print_json({
            "output": str(output), "videos": len(videos), "rows": num_rows, "answered": num_rows - num_before,
            "failed": num_failed, "changed": num_changed, "retried": num_retried,
            "seconds": round(time.monotonic() - started, 3),
        })  # fmt: skip


def _require_same_job(table: Table, digest: str) -> None:
    others = [row for row in table.rows.values() if row["job"] != digest]
    if others:
        raise PVCError(
            f"{table.path} has {len(others)} rows of another job",
            expected="the same bundle, questions, --frames, --max-new-tokens and --clock for the whole table",
            cause="the command line differs from the one that started the table, or the bundle was exported again",
            fix=f"name another file with -o, or remove {table.path} to answer everything again",
        )
