"""Report of a parity check: text for people, JSON for machines, and the receipt stored in the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engines.manifest import Manifest
from engines.spec import GRAPH_NAMES, Precision, Rounding

from ..terminal.numbers import share
from .causes import Cause, cause_of
from .culprit.record import Culprit, Repair
from .drift.report import DriftReport
from .evidence import Evidence
from .fault import Fault, FaultKind
from .levels import TITLES, Verdict, level_of, together, verdicts_of, verdicts_of_rules
from .limits import NoiseTable, Row, beyond_limits, join_rows, kl_limit, worst_rows
from .places import Rung

PARITY_NAME = "parity.json"
MOST_OF_A_KIND = 6
"""Faults of one kind that a text lists individually."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport(Evidence):
    """Everything that was compared, and the verdict.

    drift    drift of a long stream, if measured;  repair  the change that made the check pass, if one was tried
    culprit  the first wrong operation of a failed check; None if every operation is right or none was searched
    looked   whether the culprit was searched for
    """

    precision: Precision
    rounding: Rounding
    computed_in: str
    num_frames: int
    window: int
    rows: tuple[Row, ...]
    drift: DriftReport | None = None
    looked: bool = False
    culprit: Culprit | None = None
    repair: Repair | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing that was executed is wrong."""
        return not self.faults()

    def faults(self) -> list[Fault]:
        """Everything that is wrong, causes before consequences, and rows in the order of the graphs."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        for graph, names in self.wrong_weights.items():
            what = (
                f"{len(names)} differ from the reference: {_some([f'{name} ({why})' for name, why in names.items()])}"
            )
            yield Fault(kind="weights", part=graph, about=f"weights of '{graph}'", what=what)
        for row in sorted(self.rows, key=lambda row: GRAPH_NAMES.index(row.graph)):
            if not row.passed:
                yield Fault(kind="row", part=row.name, about=row.name, what=row.text())
        if self.missing:
            yield Fault(kind="missing", part="", about="outputs never compared", what=_some(self.missing))
        if self.stopped:
            yield Fault(kind="stopped", part="", about="the stream ended early", what=self.stopped)
        for wrong in self.wrong_tokens:
            yield Fault(kind="token", part="", about="greedy answer", what=wrong)
        limit = kl_limit(self.rounding)
        for c in self.conversations:
            if fault := c.fault(limit):
                yield Fault(kind="conversation", part=c.kind, about=f"{c.kind} prompt {c.question!r}", what=fault)
        for rung in self.answers:
            for fault in rung.faults():
                yield Fault(kind="answer", part=str(rung.rung), about=str(rung.rung), what=fault)
        for rule in self.rules:
            if rule.passed is False:
                about = f"{TITLES[rule.level]}: {rule.name}"
                yield Fault(kind="rule", part=rule.name, about=about, what=rule.detail)
        for curve in self.drift.curves if self.drift else ():
            if curve.verdict != "ok":
                yield Fault(kind="drift", part=curve.tensor, about=f"drift of {curve.tensor}", what=curve.verdict)

    @property
    def first_failed_graph(self) -> str | None:
        """The first wrong graph, in the order in which a frame and then its text pass through them."""
        failed = {row.graph for row in self.rows if not row.passed} | set(self.wrong_weights)
        failed |= {rule.graph for rule in self.rules if rule.passed is False}
        return next((name for name in GRAPH_NAMES if name in failed), None)

    @property
    def first_failed_level(self) -> str | None:
        """The level at which the first failed graph failed first; later failures follow from it."""
        graph = self.first_failed_graph
        wrong = beyond_limits(one for one in self.differences if one.graph == graph)
        return level_of(wrong[0].where, self.window, self.num_frames) if wrong else None

    def left_out(self) -> dict[str, str]:
        """Rungs and rules that could not run, and why."""
        rules = {f"level {rule.level}, {rule.name}": rule.detail for rule in self.rules if rule.passed is None}
        return self.not_executed | rules

    @property
    def is_computed_wider(self) -> bool:
        """Whether narrower graphs were computed in float32, so that no device's arithmetic was exercised."""
        return self.precision != "fp32" and self.computed_in == "float32"

    # -- levels --------------------------------------------------------------------------------------------------

    def levels(self) -> dict[str, Verdict]:
        """The verdict of every level, A to K."""
        why_not = "not reached: the stream ended early" if self.stopped else "not part of this check"
        return together(self._verdicts(), dict.fromkeys(TITLES, why_not) | {"H": "the bundle serves one stream"})

    def _verdicts(self) -> Iterator[Verdict]:
        """One verdict per level and kind of evidence."""
        yield from verdicts_of(self.differences, self.window, self.num_frames).values()
        weights = sum(map(len, self.wrong_weights.values()))
        unseen = f", {len(self.missing)} outputs never compared" if self.missing else ", every output compared"
        graph = f"{self.num_weights} weights bit-equal" + (f", {weights} not" if weights else unseen)
        yield Verdict(level="A", passed=not (self.missing or weights), detail=graph)
        if self.conversations:
            steps = sum(conversation.num_steps for conversation in self.conversations)
            yield self._verdict("J", ("token", "conversation"), f"{steps} steps scored")
        if self.answers:
            count = sum(rung.num_questions for rung in self.answers)
            yield self._verdict("K", ("answer",), f"{count} answers on {len(self.answers)} rungs")
        yield from verdicts_of_rules(self.rules)
        if self.drift is not None:
            yield self._verdict("E", ("drift",), f"{self.drift.num_frames} frames in a row do not drift")

    def _verdict(self, level: str, kinds: tuple[FaultKind, ...], detail: str) -> Verdict:
        wrong = [fault.text for fault in self.faults() if fault.kind in kinds]
        return Verdict(level=level, passed=not wrong, detail=wrong[0] if wrong else detail)

    # -- for people ----------------------------------------------------------------------------------------------

    def kinds(self) -> dict[Rung, list[Row]]:
        """Rung -> one joined row per kind of tensor, in the order of the ladder."""
        found: dict[Rung, dict[str, list[Row]]] = {}
        for row in self.rows:
            found.setdefault(row.rung, {}).setdefault(row.kind, []).append(row)
        rungs = sorted(found, key=lambda rung: rung.step)
        return {rung: [join_rows(rows) for rows in found[rung].values()] for rung in rungs}

    def heading(self, rung: Rung) -> str:
        """Name of a rung, with the dtype its graphs were computed in if that is not its own."""
        wider = rung.kind in ("onnx", "bundle") and rung.dtype != "fp32"
        return f"{rung} (computed in {self.computed_in})" if wider else str(rung)

    def table(self) -> list[str]:
        """Lines for people: the worst row of each kind of tensor per rung, then the levels."""
        lines = []
        for rung, rows in self.kinds().items():
            lines.append(f"{self.heading(rung)}, against {rung.neighbour}")
            lines.append(f"  {'':<35} {'max abs':>8} {'rel L2':>8} {'1-cosine':>8} {'of limit':>9}")
            for row in rows:
                worst, count = row.worst, row.num_tensors
                name = row.kind + (f" (worst of {count})" if count > 1 else "")
                numbers = worst.flaw or (
                    f"{worst.max_abs:>8.1e} {worst.rel_l2:>8.1e} {worst.cosine_gap:>8.1e} {share(row.share()):>9}"
                )
                lines.append(f"  {'ok  ' if row.passed else 'FAIL'} {name:<30} {numbers}")
        lines += self._conversation_lines()
        if self.answers:
            lines += ["held-out questions with known answers, each rung fed the tokens of the reference (torch fp32)"]
            lines += [rung.line() for rung in self.answers]
        lines += ["levels", *(verdict.line() for verdict in self.levels().values())]
        return lines + [f"{name}: not executed: {reason}" for name, reason in self.not_executed.items()]

    def _conversation_lines(self) -> list[str]:
        """One line per kind of prompt: equal greedy answers, and the teacher-forced scores."""
        if not self.conversations:
            return []
        limit = kl_limit(self.rounding)
        lines = [
            f"conversations (computed in {self.computed_in}), against torch fp32; KL / mean square limit {limit:.1e}",
            f"  {'':<21} {'equal':>7} {'KL max':>8} {'KL mean':>8} {'of limit':>9} {'top-1':>7} {'top-5':>7}",
        ]
        for kind in dict.fromkeys(c.kind for c in self.conversations):
            group = [c for c in self.conversations if c.kind == kind]
            steps = sum(c.num_steps for c in group)
            bad = any(c.fault(limit) for c in group)
            equal, top1, top5 = sum(c.equal for c in group), *(sum(c.num_same(k) for c in group) for k in (1, 5))
            lines.append(
                f"  {'FAIL' if bad else 'ok  '} {kind:<16} {f'{equal}/{len(group)}':>7} "
                f"{max(c.max_kl for c in group):>8.1e} {sum(c.mean_kl for c in group) / len(group):>8.1e} "
                f"{share(max(c.scaled_kl for c in group) / limit):>9} {f'{top1}/{steps}':>7} {f'{top5}/{steps}':>7}"
            )
        return lines

    def computed(self) -> str:
        """The dtype of the bundle, and the dtype it was computed in."""
        return f"{self.precision}, computed in {self.computed_in}"

    def summary(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}: {self.outcome()}"

    def outcome(self) -> str:
        """The amounts compared and the results, on one line."""
        said = self.conversations
        answers = f", {sum(c.equal for c in said)}/{len(said)} answers equal" if said else ""
        if self.answers:
            own = next(rung for rung in self.answers if rung.rung.kind == "bundle")
            answers += (
                f", {own.accuracy:.1%} of {own.num_questions} questions right ({own.agreement:.2%} as the reference)"
            )
        return (
            f"{self.num_weights} weights bit-equal, {len(self.rows)} rows over {self.num_frames} frames, worst at "
            f"{share(self.worst_row.share())} of its limit, {self.num_equal_tokens}/{self.num_tokens} tokens equal"
            f"{answers}"
        )

    @property
    def worst_row(self) -> Row:
        return max(self.rows, key=Row.share)

    def cause(self) -> Cause:
        """The most likely cause of a failed check."""
        return cause_of(self, {fault.kind for fault in self.faults()})

    def failure_text(self) -> str:
        """The faults, where they begin and what to do, in lines; empty for a pass."""
        faults = self.faults()
        if not faults:
            return ""
        lines = [f"the bundle differs from the reference ({self.computed()}):"]
        for kind in dict.fromkeys(fault.kind for fault in faults):
            members = [fault.text for fault in faults if fault.kind == kind]
            lines += [f"  {text}" for text in members[:MOST_OF_A_KIND]]
            if len(members) > MOST_OF_A_KIND:
                lines.append(f"  and {len(members) - MOST_OF_A_KIND} more of this kind")
        if self.first_failed_graph:
            level = self.first_failed_level
            lines.append(f"First failing graph: '{self.first_failed_graph}'" + (f", at level {level}" if level else ""))
        cause = self.cause()
        lines.append(cause.text)
        if cause.kind == "model" and self.culprit is not None:
            lines.append(self.culprit.text())
        return "\n".join(lines + ([self.repair.text()] if self.repair else []))

    # -- for machines --------------------------------------------------------------------------------------------

    def receipt(self) -> dict[str, Any]:
        """The manifest's entry about how this bundle was checked."""
        worst = self.worst_row
        return {
            "passed": self.passed,
            "precision": self.precision,
            "computed_in": self.computed_in,
            "num_frames": self.num_frames,
            "num_rows": len(self.rows),
            "num_weights_bit_equal": self.num_weights,
            "worst_row": worst.name,
            "worst_share_of_limit": round(worst.share(), 4),
            "equal_tokens": f"{self.num_equal_tokens}/{self.num_tokens}",
            "equal_answers": f"{sum(c.equal for c in self.conversations)}/{len(self.conversations)}",
            "max_kl": max((c.max_kl for c in self.conversations), default=None),
            "max_scaled_kl": max((c.scaled_kl for c in self.conversations), default=None),
            "held_out": {
                str(rung.rung): {"accuracy": round(rung.accuracy, 4), "agreement": round(rung.agreement, 4)}
                for rung in self.answers
            },
            "stages": [str(rung) for rung in self.kinds()],
            "levels": {level: verdict.passed for level, verdict in self.levels().items()},
            "not_executed": self.not_executed,
        }

    def to_json(self) -> dict[str, Any]:
        """The receipt, every fault, every row, and every single difference ('frames', for curves)."""
        limit = kl_limit(self.rounding)
        searched = {"culprit": self.culprit and self.culprit.to_json(), "repair": self.repair and self.repair.to_json()}
        return {
            **self.receipt(),
            "faults": [fault.to_json() for fault in self.faults()],
            "wrong_weights": self.wrong_weights,
            "missing": self.missing,
            "wrong_tokens": self.wrong_tokens,
            "rows": [row.to_json() for row in self.rows],
            "conversations": [asdict(c) | {"equal": c.equal, "kl_limit": limit} for c in self.conversations],
            "answers": [rung.to_json() for rung in self.answers],
            "levels": [asdict(verdict) | {"title": TITLES[level]} for level, verdict in self.levels().items()],
            "rules": [rule.to_json() for rule in self.rules],
            "frames": [one.to_json() | {"sqnr_db": one.sqnr_db} for one in self.differences],
            **({} if self.passed else {"cause": asdict(self.cause())} | searched),
        }


def judge(evidence: Evidence, manifest: Manifest, *, num_frames: int, computed_in: str = "float32") -> ParityReport:
    """Check the evidence against its limits. num_frames: frames of the stream before its clock jumped."""
    noise = NoiseTable(evidence.differences, manifest.rounding)
    found = evidence.parts()
    found["differences"] = tuple(map(noise.judged, evidence.differences))
    found["heat"] = tuple(replace(heat, at=noise.judged(heat.at)) for heat in evidence.heat)
    return ParityReport(
        **found,
        precision=manifest.precision,
        rounding=manifest.rounding,
        computed_in=computed_in,
        num_frames=num_frames,
        window=manifest.limits.window,
        rows=worst_rows(found["differences"]),
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
