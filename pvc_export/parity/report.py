"""The report of a parity check: for people, for machines, and the receipt that a bundle carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engines.spec import GRAPH_NAMES, Precision

from .levels import TITLES, Rule, Verdict, level_of, verdicts_of
from .metrics import Conversation, Difference, Row, beyond_limits, kl_limit, limit_key
from .words.results import RungAnswers

if TYPE_CHECKING:
    from .heat import HeatMap  # the page is made from this report


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """What was compared, and how it came out.

    not_executed  rungs of the ladder that could not run, and why; they are never a pass
    rules         what holds bit for bit or not at all: state, batch, determinism, pixels
    heat          the worst frames, token by token, for pictures
    stopped       the runtime's words where a graph returned NaN: the stream ended there, and so did the check
    """

    precision: Precision
    computed_in: str
    num_frames: int
    rows: tuple[Row, ...]
    found: tuple[Difference, ...]
    missing: tuple[str, ...]
    num_weights: int
    wrong_weights: dict[str, list[str]]
    num_tokens: int
    num_equal_tokens: int
    wrong_tokens: tuple[str, ...]
    not_executed: dict[str, str]
    window: int
    conversations: tuple[Conversation, ...] = ()
    answers: tuple[RungAnswers, ...] = ()
    rules: tuple[Rule, ...] = ()
    heat: tuple[HeatMap, ...] = ()
    stopped: str | None = None

    @property
    def passed(self) -> bool:
        tensors = self.missing or self.wrong_weights
        words = self.stopped or self.wrong_tokens or self.wrong_conversations() or self.wrong_answers()
        return not tensors and not words and not self.broken_rules() and all(row.passed for row in self.rows)

    def broken_rules(self) -> list[str]:
        return [f"{TITLES[rule.level]}: {rule.name}: {rule.detail}" for rule in self.rules if rule.passed is False]

    def levels(self) -> dict[str, Verdict]:
        """How every level came out, A to M."""
        verdicts = verdicts_of(self.found, self.window, self.num_frames)
        weights = sum(map(len, self.wrong_weights.values()))
        unseen = f", {len(self.missing)} outputs never seen" if self.missing else ", every output seen"
        graph = f"{self.num_weights} weights bit-equal" + (f", {weights} not" if weights else unseen)
        verdicts["A"] = Verdict(level="A", passed=not (self.missing or weights), detail=graph)
        if self.conversations:
            wrong = [*self.wrong_tokens, *self.wrong_conversations()]
            steps = sum(conversation.num_steps for conversation in self.conversations)
            verdicts["J"] = Verdict(level="J", passed=not wrong, detail=wrong[0] if wrong else f"{steps} steps scored")
        spoken = self.wrong_answers()
        if self.answers:
            count = sum(rung.num_questions for rung in self.answers)
            detail = spoken[0] if spoken else f"{count} answers on {len(self.answers)} rungs"
            verdicts["K"] = _both(verdicts.get("K"), Verdict(level="K", passed=not spoken, detail=detail))
        for level in dict.fromkeys(rule.level for rule in self.rules):
            verdict = _of_rules([rule for rule in self.rules if rule.level == level])
            verdicts[level] = _both(verdicts.get(level), verdict)
        otherwise = "not reached: the stream had ended" if self.stopped else "not part of this check"
        elsewhere = {"L": "pvc-export prove", "M": "the test suite's", "H": "the bundle serves one stream"}
        return {
            level: verdicts.get(level) or Verdict(level=level, passed=None, detail=elsewhere.get(level, otherwise))
            for level in TITLES
        }

    def wrong_conversations(self) -> list[str]:
        """Every prompt that was answered otherwise than by rounding."""
        limit = kl_limit(self.precision)
        return [f"{c.kind} prompt {c.question!r}: {fault}" for c in self.conversations if (fault := c.fault(limit))]

    def wrong_answers(self) -> list[str]:
        """Held-out questions that a rung answers otherwise than by rounding, or too many that it answers otherwise."""
        return [fault for rung in self.answers for fault in rung.faults()]

    @property
    def first_failed_graph(self) -> str | None:
        """The first graph that is not as it should be, in the order in which a frame and then its text pass through."""
        failed = {row.graph for row in self.rows if not row.passed} | set(self.wrong_weights)
        return next((name for name in GRAPH_NAMES if name in failed), None)

    @property
    def first_failed_level(self) -> str | None:
        """Where the first graph that failed did so first: what fails behind it, graph or level, is a consequence."""
        graph = self.first_failed_graph
        wrong = beyond_limits(found for found in self.found if found.graph == graph)
        return level_of(wrong[0], self.window, self.num_frames) if wrong else None

    def stages(self) -> dict[str, list[Row]]:
        """The rows of every stage, in the order of the ladder."""
        stages: dict[str, list[Row]] = {}
        for row in self.rows:
            stages.setdefault(row.stage, []).append(row)
        return stages

    def table(self) -> list[str]:
        """Lines for people: each stage, in it the worst row of each kind of tensor, and the levels."""
        lines = []
        for stage, rows in self.stages().items():
            lines.append(self.heading(stage))
            kinds: dict[str, list[Row]] = {}
            for row in rows:
                kinds.setdefault(limit_key(row.graph, row.tensor), []).append(row)
            for kind, members in kinds.items():
                row = max(members, key=Row.share)
                worst, count = row.worst, f" (worst of {len(members)})" if len(members) > 1 else ""
                lines.append(
                    f"  {'ok  ' if row.passed else 'FAIL'} {kind + count:<30} max abs {worst.max_abs:.1e}  relative L2 "
                    f"{worst.rel_l2:.1e}  worst token {worst.worst_token:.1e}  1 - cosine {worst.cosine_gap:.1e}  "
                    f"norm {worst.norm_gap:.1e}  {worst.sqnr_db:.0f} dB   {row.share():.0%} of its limit"
                )
        lines += self._conversation_lines()
        if self.answers:
            lines += ["held-out questions with known answers, each rung fed the reference's (torch fp32)"]
            lines += [rung.line() for rung in self.answers]
        lines += ["levels", *(verdict.line() for verdict in self.levels().values())]
        return lines + [f"{rung}: not executed: {reason}" for rung, reason in self.not_executed.items()]

    def _conversation_lines(self) -> list[str]:
        """A line for every kind of prompt: greedy answers, and both sides fed the reference's."""
        if not self.conversations:
            return []
        limit = kl_limit(self.precision)
        lines = [
            f"conversations (computed in {self.computed_in}), against torch fp32; limit of KL / mean square {limit:.1e}"
        ]
        for kind in dict.fromkeys(c.kind for c in self.conversations):
            group = [c for c in self.conversations if c.kind == kind]
            steps = sum(c.num_steps for c in group)
            bad = any(c.fault(limit) for c in group)
            lines.append(
                f"  {'FAIL' if bad else 'ok  '} {kind:<8} {sum(c.equal for c in group)}/{len(group)} answers equal   "
                f"KL max {max(c.max_kl for c in group):.1e} mean {sum(c.mean_kl for c in group) / len(group):.1e}   "
                f"{max(c.scaled_kl for c in group) / limit:.0%} of its limit   "
                f"top-1 {sum(c.num_same(1) for c in group)}/{steps}   top-5 {sum(c.num_same(5) for c in group)}/{steps}"
            )
        return lines

    def heading(self, stage: str) -> str:
        what, dtype = stage.split()
        against = {
            "torch": "torch fp64" if dtype == "fp32" else "torch fp32",
            "onnx": f"torch {dtype}",
            "engine": f"onnx {dtype}",
            "gpu": "torch fp32, as the target runs it",
            "bundle": "torch fp32, a whole stream on the CPU",
        }[what]
        label = f" (computed in {self.computed_in})" if what in ("onnx", "bundle") and dtype != "fp32" else ""
        return f"{stage}{label}, against {against}"

    def summary(self) -> str:
        worst = max(self.rows, key=Row.share)
        said = self.conversations
        answers = f", {sum(c.equal for c in said)}/{len(said)} answers equal" if said else ""
        if self.answers:
            own = next(rung for rung in self.answers if rung.rung.startswith("bundle"))
            answers += (
                f", {own.accuracy:.1%} of {own.num_questions} questions right ({own.agreement:.2%} as the reference)"
            )
        return (
            f"{'pass' if self.passed else 'FAIL'}: {self.num_weights} weights bit-equal, {len(self.rows)} rows over "
            f"{self.num_frames} frames at most at {worst.share():.0%} of their limits, "
            f"{self.num_equal_tokens}/{self.num_tokens} tokens equal{answers}"
        )

    def failure_text(self) -> str:
        lines = [f"the bundle differs from the reference ({self.precision}, computed in {self.computed_in}):"]
        failed = sorted((row for row in self.rows if not row.passed), key=Row.share, reverse=True)
        lines += [f"  {row.stage}: {row.graph}/{row.tensor}: {row.text()}" for row in failed[:6]]
        words = (*self.wrong_tokens[:4], *self.wrong_conversations()[:4], *self.wrong_answers()[:4])
        words += (*self.broken_rules()[:4],)
        words += (f"the stream ended there: {self.stopped}",) if self.stopped else ()
        lines += [f"  {wrong}" for wrong in words]
        lines += [f"  never seen, so never compared: {', '.join(self.missing)}"] if self.missing else []
        lines += [
            f"  {graph}: not the reference's weights: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for graph, names in self.wrong_weights.items()
        ]
        if self.first_failed_graph:
            lines.append(
                f"The first graph on the way that is not as it should be is '{self.first_failed_graph}'. Likely a "
                "wrong weight, mask or slot, or a dtype too narrow there. Compare in float32: pvc-export onnx --fp32"
            )
        return "\n".join(lines)

    def receipt(self) -> dict[str, Any]:
        """The lines of the manifest that say how this bundle was checked."""
        worst = max(self.rows, key=Row.share)
        return {
            "passed": self.passed,
            "precision": self.precision,
            "computed_in": self.computed_in,
            "num_frames": self.num_frames,
            "num_rows": len(self.rows),
            "num_weights_bit_equal": self.num_weights,
            "worst_row": f"{worst.stage}: {worst.graph}/{worst.tensor}",
            "worst_share_of_limit": round(worst.share(), 4),
            "equal_tokens": f"{self.num_equal_tokens}/{self.num_tokens}",
            "equal_answers": f"{sum(c.equal for c in self.conversations)}/{len(self.conversations)}",
            "max_kl": max((c.max_kl for c in self.conversations), default=None),
            "max_scaled_kl": max((c.scaled_kl for c in self.conversations), default=None),
            "held_out": {
                rung.rung: {"accuracy": round(rung.accuracy, 4), "agreement": round(rung.agreement, 4)}
                for rung in self.answers
            },
            "stages": list(self.stages()),
            "levels": {level: verdict.passed for level, verdict in self.levels().items()},
            "not_executed": self.not_executed,
        }

    def to_json(self) -> dict[str, Any]:
        """The receipt, every row, and every single difference ('frames'), for curves."""
        limit = kl_limit(self.precision)
        return {
            **self.receipt(),
            "wrong_weights": self.wrong_weights,
            "missing": self.missing,
            "wrong_tokens": self.wrong_tokens,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
            "conversations": [asdict(c) | {"equal": c.equal, "kl_limit": limit} for c in self.conversations],
            "answers": [rung.to_json() for rung in self.answers],
            "levels": [asdict(verdict) | {"title": TITLES[level]} for level, verdict in self.levels().items()],
            "rules": [asdict(rule) for rule in self.rules],
            "frames": [asdict(found) | {"sqnr_db": found.sqnr_db} for found in self.found],
        }


def _of_rules(rules: Sequence[Rule]) -> Verdict:
    """What holds is counted, what does not is told, and so is why nothing was executed."""
    level, broken = rules[0].level, [rule for rule in rules if rule.passed is False]
    held = [rule for rule in rules if rule.passed]
    if broken:
        return Verdict(level=level, passed=False, detail=f"{broken[0].name}: {broken[0].detail}")
    if not held:
        return Verdict(level=level, passed=None, detail=rules[0].detail.removeprefix("not executed: "))
    detail = f"{len(held)} of {len(rules)} rules, bit for bit"
    if len(rules) == 1:
        detail = f"{held[0].name}: {held[0].detail}"
    return Verdict(level=level, passed=True, detail=detail)


def _both(first: Verdict | None, second: Verdict) -> Verdict:
    """One verdict of two of a level: what failed, else what was executed."""
    if first is None or first.passed is None:
        return second
    if second.passed is None or first.passed is False:
        return first
    if second.passed is False:
        return second
    return Verdict(level=first.level, passed=True, detail=f"{first.detail}; {second.detail}")
