"""Replays a golden recording on any sessions: engines on a device, ONNX Runtime elsewhere. No torch.

values    each sampled output is within its limits of the reference, in the order in which a stream runs
tokens    after the prompt and each token of the answer, the likeliest token is the reference's, or nearly ties with it
repeated  a second replay of the whole stream gives the same bits
two rows  a graph that takes two streams in one pass, as an LLM that decodes in place does, returns for one stream what
          it returns for two copies of it: TensorRT has separate kernels for exactly one row
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import NonFiniteError
from ..language import LanguageModel
from ..memory import Array, Tensor
from ..metrics import Metrics, metrics_of
from ..session import Session, Wrapped, written_rows
from ..spec import GRAPH_NAMES, SCALE, VISION_GRAPHS, GraphSpec
from ..vision import VisionEncoder
from .recording import Golden, Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One sampled output of one run, compared with the reference."""

    graph: str
    tensor: str
    run: int
    metrics: Metrics
    limits: Mapping[str, float]

    def share(self) -> float:
        """The worst metric as a share of its limit; above 1 fails. Infinite if the values cannot be compared."""
        if self.metrics.flaw:
            return float("inf")
        return max(float(getattr(self.metrics, name)) / limit for name, limit in self.limits.items())

    @property
    def passed(self) -> bool:
        return self.share() <= 1  # NaN fails

    @property
    def where(self) -> str:
        return f"frame {self.run}" if self.graph in VISION_GRAPHS else f"pass {self.run}"

    def text(self) -> str:
        """Graph, place, tensor, and the metric furthest over its limit."""
        place = f"graph '{self.graph}', {self.where}, tensor '{self.tensor}'"
        if self.metrics.flaw:
            return f"{place}: {self.metrics.flaw.rstrip(',')}"
        worst = max(self.limits, key=lambda name: float(getattr(self.metrics, name)) / self.limits[name])
        value, limit = float(getattr(self.metrics, worst)), self.limits[worst]
        return f"{place}: {worst.replace('_', ' ')} {value:.1e} (limit {limit:.1e})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A requirement without a tolerance. passed is None if it was not run."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenReport:
    """Result of a replay. `compared` is in the order of the stream."""

    compared: tuple[Compared, ...]
    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        held = all(one.passed for one in self.compared) and all(rule.passed is not False for rule in self.rules)
        return bool(self.compared) and held

    @property
    def first_failed(self) -> Compared | None:
        return next((one for one in self.compared if not one.passed), None)

    @property
    def failed_graph(self) -> str | None:
        """The graph that failed first; None if nothing failed, or only a rule."""
        return None if self.first_failed is None else self.first_failed.graph

    def worst(self) -> Iterator[Compared]:
        """For each graph, the output that uses most of its limits."""
        for graph in GRAPH_NAMES:
            if of_graph := [one for one in self.compared if one.graph == graph]:
                yield max(of_graph, key=Compared.share)

    def lines(self) -> Iterator[str]:
        """The result as lines of text: the worst output of each graph, then the rules."""
        for one in self.worst():
            word = "ok  " if one.passed else "FAIL"
            yield f"{word} {one.graph:<10} {one.tensor} at {one.where}: {one.share():.0%} of its limit"
        for rule in self.rules:
            yield f"{ {True: 'ok  ', False: 'FAIL', None: '--  '}[rule.passed] } {rule.name:<10} {rule.detail}"

    def summary(self) -> str:
        """One line: what passed, or what failed first."""
        if self.passed:
            return f"pass: {len(self.compared)} outputs of the golden recording are within the model's limits"
        if (first := self.first_failed) is not None:
            return first.text()
        return next((f"{rule.name}: {rule.detail}" for rule in self.rules if rule.passed is False), "nothing was run")

    def to_json(self) -> dict[str, Any]:
        worst = [{"graph": one.graph, "tensor": one.tensor, "where": one.where, "share": one.share()}
                 for one in self.worst()]  # fmt: skip
        return {
            "passed": self.passed,
            "summary": self.summary(),
            "num_compared": len(self.compared),
            "worst": worst,
            "rules": [asdict(rule) for rule in self.rules],
        }


def replay(golden: Golden, sessions: Mapping[str, Session]) -> GoldenReport:
    """Play the recording twice and compare the outputs with it."""
    first = _Player(golden, sessions)
    ended = first.play()
    compared = tuple(_compare(golden, first))
    if ended:
        return GoldenReport(compared=compared, rules=(Rule(name="stream", passed=False, detail=ended),))
    second = _Player(golden, sessions)
    second.play()
    rules = (_tokens(golden, first.logits), _repeated(first, second), *_two_rows(second.last_inputs, sessions, golden))
    return GoldenReport(compared=compared, rules=rules)


@dataclass(slots=True)
class _Player:
    """One run of the whole stream, and the sampled outputs.

    found        (graph, tensor, run) -> the sampled rows, in the graph's own dtype
    logits       (V,) after the prompt and after each token
    last_inputs  graph -> inputs of its last run, on the host
    """

    golden: Golden
    sessions: Mapping[str, Session]
    found: dict[tuple[str, str, int], Array] = field(default_factory=dict)
    logits: list[Array] = field(default_factory=list)
    last_inputs: dict[str, dict[str, Array]] = field(default_factory=dict)
    num_runs: dict[str, int] = field(default_factory=dict)

    def play(self) -> str:
        """Play the stream. Returns why it ended early, or ''."""
        golden, shown = self.golden, {name: Wrapped(session, self._run) for name, session in self.sessions.items()}
        vision = VisionEncoder(shown, time_divisor=golden.time_divisor)
        language, embeds = LanguageModel(shown), list[Array]()
        try:
            for frame in golden.frames:
                encoded = vision.encode(frame)
                embeds.append(encoded.frame_embeds)
                vision.commit(encoded)
            first_said = len(golden.passes) - len(golden.tokens) - 1
            for index, one in enumerate(golden.passes):
                rows = language.embed(one.ids)
                if one.frame is not None:
                    rows = np.concatenate([rows, embeds[one.frame]])
                hidden = language.append(rows)
                if index >= first_said:
                    self.logits.append(language.logits(hidden))
        except NonFiniteError as error:
            return error.what
        return ""

    def _run(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spec, memory = session.spec, session.memory
        run = self.num_runs.get(spec.name, 0)
        self.num_runs[spec.name] = run + 1
        is_last = run == self._last_run(spec.name)
        if is_last:
            self.last_inputs[spec.name] = {name: np.array(memory.to_host(value)) for name, value in inputs.items()}
        outputs = session.run(inputs)
        for one in self.golden.samples:
            if one.graph == spec.name and run in one.runs:
                self.found[spec.name, one.tensor, run] = one.of(_new_values(session, one.tensor, inputs, outputs))
        return outputs

    def _last_run(self, graph: str) -> int:
        return max((max(one.runs) for one in self.golden.samples if one.graph == graph), default=-1)


def _new_values(session: Session, name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Array:
    """New values of one output, on the host: for a cache updated in place, the rows this run wrote; for codes, the
    values they stand for."""
    in_place = {state.output: state for state in session.spec.states if state.output in session.spec.aliases}

    def value(name: str) -> Array:
        if name in in_place:
            return written_rows(session, in_place[name], inputs, outputs)
        return np.array(session.memory.to_host(outputs[name]))

    scale = f"{name}{SCALE}"
    return value(name).astype(np.float32) * value(scale) if scale in outputs else value(name)


def _compare(golden: Golden, player: _Player) -> Iterator[Compared]:
    """Compare every sample that was reached, in stream order; after an early end the remaining samples are left out."""
    wanted = [(one, index, run) for one in golden.samples for index, run in enumerate(one.runs)]

    def order(entry: tuple[Samples, int, int]) -> tuple[bool, int, int]:
        one, _, run = entry
        return one.graph not in VISION_GRAPHS, run, GRAPH_NAMES.index(one.graph)

    for one, index, run in sorted(wanted, key=order):
        key = one.graph, one.tensor, run
        if key in player.found:
            metrics = metrics_of(player.found[key], one.values[index])
            yield Compared(graph=one.graph, tensor=one.tensor, run=run, metrics=metrics, limits=one.limits)


def _tokens(golden: Golden, logits: Sequence[Array]) -> Rule:
    """Near ties are measured on the reference's stored logits."""
    kept = next(one for one in golden.samples if one.name == "head/logits")
    wrong = list[str]()
    for step, (own, want, tie) in enumerate(zip(logits, golden.likeliest, golden.ties, strict=True)):
        got = int(own.argmax())
        if got == want:
            continue
        columns = list(range(kept.values.shape[-1]) if kept.columns is None else kept.columns)
        row = kept.values[kept.runs.index(step), 0]
        margin = row[columns.index(want)] - row[columns.index(got)] if got in columns else np.inf
        if margin > tie:
            wrong.append(f"after {step} answer tokens the likeliest token is {got}, in the reference {want}")
    detail = (
        wrong[0]
        if wrong
        else f"the reference's token is the likeliest, or nearly ties, at all {len(golden.likeliest)} steps"
    )
    return Rule(name="tokens", passed=not wrong, detail=detail)


def _repeated(first: _Player, second: _Player) -> Rule:
    differing = [key for key, value in first.found.items() if not _same(value, second.found.get(key))]
    if differing:
        graph, tensor, run = differing[0]
        detail = f"graph '{graph}' returned different values of '{tensor}' when run {run} was repeated"
        return Rule(name="repeated", passed=False, detail=detail)
    return Rule(name="repeated", passed=True, detail="a second replay is bit-identical")


def _same(one: Array, other: Array | None) -> bool:
    return other is not None and one.tobytes() == other.tobytes()


def _two_rows(
    inputs: Mapping[str, Mapping[str, Array]], sessions: Mapping[str, Session], golden: Golden
) -> Iterator[Rule]:
    """Check each graph that takes two streams in a pass, on its last inputs, which are those of a decoded token."""
    limits = {(one.graph, one.tensor): one.limits for one in golden.samples}
    taken = [name for name in inputs if _takes_two(sessions[name].spec)]
    if not taken:
        yield Rule(name="two rows", passed=None, detail="no graph of this bundle takes two streams in one pass")
    for graph in taken:
        session = sessions[graph]
        alone = _outputs(session, inputs[graph], 1)
        together = _outputs(session, inputs[graph], 2)
        found = [
            Compared(graph=graph, tensor=name, run=0, metrics=metrics_of(together[name][row : row + 1], want),
                     limits=limits[graph, name])
            for name, want in alone.items()
            for row in range(2)
            if (graph, name) in limits
        ]  # fmt: skip
        wrong = next((one for one in found if not one.passed), None)
        detail = f"'{graph}': one stream alone and twice in one pass agree, {len(found)} tensors"
        yield Rule(name="two rows", passed=wrong is None, detail=detail if wrong is None else wrong.text())


def _takes_two(spec: GraphSpec) -> bool:
    return any(ranges["batch"].max >= 2 for ranges in spec.profiles if "batch" in ranges)


def _outputs(session: Session, inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    """A graph's outputs for `count` equal streams, without the caches it updates in place."""
    fed = {name: np.repeat(value, count, axis=0) for name, value in inputs.items()}
    outputs = session.run(fed)
    own = {name: value for name, value in outputs.items() if name not in session.spec.aliases}
    return {name: np.array(session.memory.to_host(value)) for name, value in own.items()}
