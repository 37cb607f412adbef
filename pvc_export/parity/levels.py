"""The levels of parity, A to M: what a check shows, and at which level something shows.

    A  graph         files, weights bit for bit, every output seen
    B  one step      a stream's first frame and first pass: nothing has been remembered yet
    C  shapes        other numbers of rows, the edges of buckets, the far end of the context
    D  stream        frames behind the first, against the reference's own streaming form and the whole clip
    E  drift         far frames, where the clock has run ahead; drift/measure.py streams there without a gap
    F  window wrap   frames W - 1 to 2 W + 1, where the ring is overwritten for the first and the second time
    G  state rules   reset, interleave, fork, save: bit for bit (state/rules.py)
    H  batch         rows of a batch against each alone
    I  determinism   the same bits again: now, in a new session, in a new process
    J  decode        teacher-forced KL with margins, and each token the likeliest
    K  pixels, text  the runtime's resize and prompt, greedy answers, held-out questions
    L  controls      defects that must be caught: pvc-export prove
    M  properties    random stories of several streams: the test suite
Unusual: a fault shows at every level behind its own, so what names it is the first one that fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .metrics import Difference, beyond_limits

TITLES: dict[str, str] = {
    "A": "graph", "B": "one step", "C": "shapes", "D": "stream", "E": "drift", "F": "window wrap", "G": "state rules",
    "H": "batch", "I": "determinism", "J": "decode", "K": "pixels to text", "L": "negative controls",
    "M": "property tests",
}  # fmt: skip
IN_A_CHECK = "ABCDEFGHIJK"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How one level came out. passed is None where nothing of it was executed; detail says what, or why not."""

    level: str
    passed: bool | None
    detail: str

    def line(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "--  "}[self.passed]
        return f"  {word} {self.level}  {TITLES[self.level]:<15} {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Something that holds or does not, without a tolerance. passed is None where it was not executed."""

    level: str
    name: str
    passed: bool | None
    detail: str


def level_of(difference: Difference, window: int, num_consecutive: int) -> str:
    """Where a difference shows. num_consecutive: frames of the clip, before the clock was let run ahead."""
    kind, _, number = difference.where.partition(" ")
    if kind == "frame":
        frame = int(number)
        if frame == 0:
            return "B"
        if frame >= num_consecutive:
            return "E"
        return "D" if frame < window - 1 else "F"
    if kind in ("pass", "token"):
        return "B" if number == "0" else "D"
    if kind == "stream":
        return "H"
    return "K" if difference.where == "the whole text" else "C"


def verdicts_of(found: Iterable[Difference], window: int, num_consecutive: int) -> dict[str, Verdict]:
    """The levels at which tensors were compared. What failed first is in the detail."""
    compared: dict[str, list[Difference]] = {}
    for difference in found:
        compared.setdefault(level_of(difference, window, num_consecutive), []).append(difference)
    verdicts = {}
    for level, members in compared.items():
        wrong = beyond_limits(members)
        detail = f"{len(members)} tensor{'s' if len(members) > 1 else ''} compared"
        if wrong:
            first = wrong[0]
            detail = (
                f"{len(wrong)} of {len(members)} tensors beyond their limits, first {first.graph}/{first.tensor} at "
                f"{first.where} ({first.stage})"
            )
        verdicts[level] = Verdict(level=level, passed=not wrong, detail=detail)
    return verdicts
