"""Evidence from the names of states: pairs by pattern, outputs that look like states, and crossed pairs.

Exporters give the two ends of a state the same name except for a word for before or after: past and present,
cached_key_0 and new_cached_key_0, h and hn. Both sides of a check follow a wrong pair alike, so only the names can
reveal it.
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
"""Words that mean before and after for anything: alone, they do not make an input and an output a state."""
WORD = re.compile(r"[a-z]+|[A-Z][a-z]*|\d+")


def expand(pairs: Iterable[StatePair], inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[StatePair, ...]:
    """Replace patterns by the pairs they match: `*` stands for the same text on both sides. Inputs and outputs that
    are named in a plain pair are left out. Raises SpecError for a pattern that matches nothing."""
    plain = [pair for pair in pairs if not pair.is_pattern]
    for pattern in (pair for pair in pairs if pair.is_pattern):
        names = {port.name for port in outputs}
        fitting = [pair for port in inputs if (pair := pattern.fitted(port.name)) is not None and pair.output in names]
        if not fitting:
            raise SpecError(
                f"{pattern.option()} matches no input and output of the graph",
                expected="the same text for '*' in an input and in an output. Inputs: "
                f"{', '.join(port.name for port in inputs)}. Outputs: {', '.join(port.name for port in outputs)}",
                cause="a prefix is spelled differently, or the two names differ elsewhere too",
                fix="correct the pattern, or name the pairs one by one",
            )
        named = {pair.input for pair in plain}, {pair.output for pair in plain}
        plain += [pair for pair in fitting if pair.input not in named[0] and pair.output not in named[1]]
    return tuple(plain)


def crossed(pairs: Sequence[StatePair], inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterator[Doubt]:
    """Doubts about pairs whose output, by its name, belongs to another input."""
    ports = {("in", port.name): port for port in inputs} | {("out", port.name): port for port in outputs}
    for pair in pairs:
        out = ports["out", pair.output]
        other = next((port for port in inputs if continues(out, port)), None)
        if other is not None and not pair.crossed and not continues(out, ports["in", pair.input]):
            yield Doubt(
                about=f"state pair {pair.input}={pair.output}",
                why=f"it looks crossed: by its name, '{pair.output}' is the next '{other.name}'",
                state=f"{other.name}={pair.output}",
                otherwise=f"{pair.option()}@crossed if it is intended",
            )


def undeclared(
    pairs: Sequence[StatePair], inputs: Sequence[Port], outputs: Sequence[Port], no_states: Iterable[str]
) -> dict[str, Doubt]:
    """Inputs that look like an undeclared state, each with its doubt."""
    fed, known = {pair.input for pair in pairs}, {*no_states, *(pair.output for pair in pairs)}
    return {
        into.name: Doubt(
            why=f"it looks like a state, the next '{into.name}', but no pair declares it, so no stream followed it",
            about=f"output '{out.name}'",
            state=f"{into.name}={out.name}",
            otherwise=f"--no-state {out.name} if it is not a state",
        )
        for out in outputs
        for into in inputs
        if out.name not in known and into.name not in fed and continues(out, into)
    }


def continues(out: Port, into: Port) -> bool:
    """Whether an output looks like the next step's input: by its name, and with the same dtype and rank."""
    if out.dtype != into.dtype or out.shape is None or into.shape is None or len(out.shape) != len(into.shape):
        return False
    if any(a != b for a, b in zip(out.shape, into.shape, strict=True) if isinstance(a, int) and isinstance(b, int)):
        return False
    before, after = _words(into.name), _words(out.name)
    stem, rest = [word for word in before if word not in BEFORE], [word for word in after if word not in AFTER | BEFORE]
    marks = (set(before) & BEFORE) | (set(after) & AFTER)
    bare = stem[:-1] if stem[-1:] == ["0"] else stem
    if bare and rest == [*bare[:-1], f"{bare[-1]}n"]:
        return True  # 'hn' continues 'h' and 'h0'
    return stem == rest and bool(marks if stem else set(after) & AFTER - NO_STATE and set(before) & BEFORE - NO_STATE)


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORD.findall(name.replace("key_values", ""))]
