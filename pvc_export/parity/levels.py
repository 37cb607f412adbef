"""Levels of parity: the comparisons of a check, in the order in which a fault can enter.

    A  graph         files, weights in place bit for bit, nodes as in a fresh export, every output compared
    B  one step      a stream's first frame and first pass: nothing has been remembered yet
    C  shapes        other numbers of rows, the edges of buckets, the far end of the context
    D  stream        frames after the first, against the reference's streaming form and the whole clip
    E  drift         far frames, where the clock has run ahead; drift/measure.py streams there without a break
    F  window wrap   frames W - 1 to 2 W + 1, where the ring is overwritten for the first and the second time
    G  state rules   reset, interleave, fork, save: bit for bit (state/rules.py)
    H  batch         each row of a batch against the same row alone
    I  determinism   the same bits again: in this session, in a new session, in a new process
    J  decode        teacher-forced KL with margins, and each token the likeliest
    K  pixels, text  the runtime's resize and prompt, greedy answers, held-out questions
A fault also fails every later level, so the first failing level identifies it. Two more levels are outside the check:
L, the planted defects that must be caught (`pvc-export prove`), and M, random stories of several streams (the test
suite).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..terminal.numbers import share
from .limits import beyond_limits
from .metrics import Difference
from .places import Place

TITLES: dict[str, str] = {
    "A": "graph", "B": "one step", "C": "shapes", "D": "stream", "E": "drift", "F": "window wrap", "G": "state rules",
    "H": "batch", "I": "determinism", "J": "decode", "K": "pixels to text",
}  # fmt: skip


def heading(level: str, between: str = " ") -> str:
    """'D stream'."""
    return f"{level}{between}{TITLES[level]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Result of one level. passed is None if none of it was executed; detail says what was compared, or why not."""

    level: str
    passed: bool | None
    detail: str

    def line(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "--  "}[self.passed]
        return f"  {word} {self.level}  {TITLES[self.level]:<15} {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A requirement without a tolerance.

    passed is None if it was not executed. detail says what was tried, what is wrong, or why it was not executed.
    graph is the graph it concerns, '' if none.
    """

    level: str
    name: str
    passed: bool | None
    detail: str
    graph: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON; the detail of a rule that did not run says so."""
        return asdict(self) | ({"detail": f"not executed: {self.detail}"} if self.passed is None else {})


def level_of(place: Place, window: int = 0, num_consecutive: int = 0) -> str:
    """The level of a difference at this place. num_consecutive: frames of the clip before its clock jumped ahead.

    A step belongs to a graph of any origin, which has neither window nor clock. It is run alone or in a stream.
    """
    match place.kind:
        case "frame" if place.index > 0:
            if place.index >= num_consecutive:
                return "E"
            return "D" if place.index < window - 1 else "F"
        case "frame" | "pass" | "row":
            return "B" if place.index == 0 else "D"
        case "token":
            return "D"  # the first token's logits have already read every frame and the prompt
        case "step":
            return "D" if place.run else "B"
        case "time":
            return "E"
        case "stream":
            return "H"
        case "text":
            return "K"
    return "C"


def verdicts_of(differences: Iterable[Difference], window: int = 0, num_consecutive: int = 0) -> dict[str, Verdict]:
    """Level -> verdict, for levels at which tensors were compared: the worst tensor, or the first that failed."""
    compared: dict[str, list[Difference]] = {}
    for difference in differences:
        compared.setdefault(level_of(difference.where, window, num_consecutive), []).append(difference)
    verdicts = {}
    for level, members in compared.items():
        wrong, worst = beyond_limits(members), max(members, key=Difference.share)
        what = f"{len(members)} tensor{'s' if len(members) > 1 else ''} compared"
        detail = f"{what}, {worst.name} at {share(worst.share())} of its limit"
        if wrong:
            beyond = f"{len(wrong)} of {len(members)} tensors over their limits"
            detail = f"{beyond}, first {wrong[0].name} at {wrong[0].where} ({wrong[0].rung})"
        verdicts[level] = Verdict(level=level, passed=not wrong, detail=detail)
    return verdicts


def verdicts_of_rules(rules: Iterable[Rule]) -> Iterator[Verdict]:
    """One verdict per level that has rules: a count of those that hold, or the first broken one, or why none ran."""
    by_level: dict[str, list[Rule]] = {}
    for rule in rules:
        by_level.setdefault(rule.level, []).append(rule)
    for level, members in by_level.items():
        held = [rule for rule in members if rule.passed]
        broken = next((rule for rule in members if rule.passed is False), None)
        if broken or len(held) == len(members) == 1:
            told = broken or held[0]
            yield Verdict(level=level, passed=not broken, detail=f"{told.name}: {told.detail}")
        elif held:
            yield Verdict(level=level, passed=True, detail=f"{len(held)} of {len(members)} rules, bit for bit")
        else:
            yield Verdict(level=level, passed=None, detail=members[0].detail)


def together(verdicts: Iterable[Verdict], why_not: Mapping[str, str]) -> dict[str, Verdict]:
    """One verdict per level of `why_not`: the first failure, else everything executed, else why nothing was."""
    found = {level: [Verdict(level=level, passed=None, detail=why)] for level, why in why_not.items()}
    for verdict in verdicts:
        found[verdict.level].append(verdict)
    return {level: _joined(members) for level, members in found.items()}


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    asked = [verdict for verdict in verdicts if verdict.passed is not None]
    if not asked or not all(verdict.passed for verdict in asked):
        return next((verdict for verdict in asked if not verdict.passed), verdicts[-1])
    return replace(asked[0], detail="; ".join(verdict.detail for verdict in asked))
