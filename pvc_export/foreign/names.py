"""What the names of states say: pairs by a pattern, an output that looks like a state, and pairs that are crossed.

Exporters name a state's two ends alike, but for a word that says before or after: past and present, cached_key_0 and
new_cached_key_0, h and hn. A wrong pair is followed on both sides of a check, so that only the names can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from engines.errors import SpecError

from .request import StatePair
from .states import Doubt, Port

BEFORE = {"past", "prev", "previous", "last", "old", "cached", "cache", "initial", "init", "in", "input"}
AFTER = {"present", "new", "next", "updated", "out", "output", "n"}
NO_STATE = {"in", "input", "out", "output", "n"}
"""Words that say before and after of anything: alone, they make no state of an input and an output."""
WORD = re.compile(r"[a-z]+|[A-Z][a-z]*|\d+")


def expand(pairs: Iterable[StatePair], inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[StatePair, ...]:
    """Pairs without patterns: `*` stands for the same text on both sides, and every input and output that a pattern
    fits is a pair, but for those that a pair names itself. Raises SpecError for a pattern that fits none."""
    plain = [pair for pair in pairs if not pair.is_pattern]
    for pattern in (pair for pair in pairs if pair.is_pattern):
        names = {port.name for port in outputs}
        fitting = [pair for port in inputs if (pair := pattern.fitted(port.name)) is not None and pair.output in names]
        if not fitting:
            raise SpecError(
                f"{pattern.option()} fits no input and output of the graph",
                expected=f"the same text for '*' in an input, of {', '.join(port.name for port in inputs)}, and in an "
                f"output, of {', '.join(port.name for port in outputs)}",
                cause="a prefix is spelled otherwise, or the two ends differ in more than the pattern says",
                fix="correct it, or name the pairs one by one",
            )
        named = {pair.input for pair in plain}, {pair.output for pair in plain}
        plain += [pair for pair in fitting if pair.input not in named[0] and pair.output not in named[1]]
    return tuple(plain)


def crossed(pairs: Sequence[StatePair], inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterator[Doubt]:
    """Of pairs whose output goes, by its name, with another input."""
    ports = {("in", port.name): port for port in inputs} | {("out", port.name): port for port in outputs}
    for pair in pairs:
        out = ports["out", pair.output]
        other = next((port for port in inputs if continues(out, port)), None)
        if other is not None and not pair.crossed and not continues(out, ports["in", pair.input]):
            yield Doubt(
                about=f"state pair {pair.input}={pair.output}",
                why=f"it looks crossed, since by its name '{pair.output}' is the next '{other.name}'",
                state=f"{other.name}={pair.output}",
                otherwise=f"{pair.option()}@crossed if it is meant so",
            )


def undeclared(
    pairs: Sequence[StatePair], inputs: Sequence[Port], outputs: Sequence[Port], no_states: Iterable[str]
) -> dict[str, Doubt]:
    """Inputs that look like a state of which no pair tells, and what says so."""
    fed, known = {pair.input for pair in pairs}, {*no_states, *(pair.output for pair in pairs)}
    return {
        into.name: Doubt(
            why=f"it looks like a state, the next '{into.name}', and no pair says so: no stream followed it",
            about=f"output '{out.name}'",
            state=f"{into.name}={out.name}",
            otherwise=f"--no-state {out.name} if it is none",
        )
        for out in outputs
        for into in inputs
        if out.name not in known and into.name not in fed and continues(out, into)
    }


def continues(out: Port, into: Port) -> bool:
    """Whether an output looks like the next step's input: its name says so, and it has the same dtype and rank."""
    if out.dtype != into.dtype or out.shape is None or into.shape is None or len(out.shape) != len(into.shape):
        return False
    if any(a != b for a, b in zip(out.shape, into.shape, strict=True) if isinstance(a, int) and isinstance(b, int)):
        return False
    before, after = _words(into.name), _words(out.name)
    stem, rest = [word for word in before if word not in BEFORE], [word for word in after if word not in AFTER | BEFORE]
    marks = (set(before) & BEFORE) | (set(after) & AFTER)
    bare = stem[:-1] if stem[-1:] == ["0"] else stem
    if bare and rest == [*bare[:-1], f"{bare[-1]}n"]:
        return True  # 'hn' of 'h', and of 'h0'
    return stem == rest and bool(marks if stem else set(after) & AFTER - NO_STATE and set(before) & BEFORE - NO_STATE)


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORD.findall(name.replace("key_values", ""))]
