"""Roles of tensors with unknown names, found from shapes, layers, and names where they are decisive.

Only PVC's additions to InternVL2 are searched for, and only among tensors that have no known name. The unit of the
search is a stem: .weight and .bias of one module, in the same layers, so that a suffix has one role in all of them.
Roles of equal shape are distinguished by words such as gamma, beta, te or out_proj, and by the numbers of a
Linear-SiLU-Linear (.0, .2). A mapping is accepted only if no other is possible.
Source: gamma(z) = W4 SiLU(W3 z), beta(z) = W6 SiLU(W5 z), TE = W2 SiLU(W1 t~) of PVC (arXiv 2412.09613).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OpenNamesError
from .config_keys import CONFIG_FILE, find
from .mapping import TOWER, span, suggest
from .stems import Shape, Stem, leaf_of, stems_of, with_joined
from .tensor_names import SPATIAL_PARTS, TEMPORAL_PARTS, CheckpointTensor
from .words import PAIRS, allowed_roles, pairs_of

Matching = dict["Stem", "Stem"]
"""Stem -> its role."""
MAX_CANDIDATES = 1000
"""Number of possible mappings that are listed. W3 to W6, TE's W2 and the projection alone have 720."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """Result of a detection.

    mapping         names in the files -> roles, both with {layer}; None where the role is open
    groups          possible mappings of the temporal layers and of the compressor, at most MAX_CANDIDATES each; any of
                    one group can be combined with any of the other
    num_candidates  number of possible whole mappings: 1 if every role is found, 0 if the tensors do not fit the roles
    table           lines of text with the open tensors (left) and roles (right)
    """

    mapping: dict[str, str | None]
    groups: tuple[tuple[dict[str, str], ...], ...] = ()
    num_candidates: int = 1
    table: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[dict[str, str], ...]:
        """Whole mappings, at most MAX_CANDIDATES."""
        if self.num_candidates == 0:
            return ()
        parts = islice(product(*self.groups), MAX_CANDIDATES)
        return tuple({name: role for part in each for name, role in part.items()} for each in parts)


def added(tensors: Collection[CheckpointTensor]) -> list[CheckpointTensor]:
    """Return the tensors that may have other names in a released checkpoint: PVC's additions and its compressor."""
    has_adaln = any(tensor.name.startswith("mlp1.adaln.") for tensor in tensors)
    parts = tuple(f".{part}" for part in TEMPORAL_PARTS)
    return [
        tensor
        for tensor in tensors
        if (tensor.name.startswith("mlp1.") and has_adaln)
        or (tensor.name.startswith(TOWER) and leaf_of(tensor.name)[0].endswith(parts))
    ]


def lacks_count(data: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json has a "pvc" object without num_temporal_layers."""
    return isinstance(data.get("pvc"), Mapping) and data["pvc"].get("num_temporal_layers") is None


def with_count(data: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Add num_temporal_layers to `data`: the number of layers with tensors that InternVL2 lacks, if there are any.

    Raises CheckpointError if those are not the last layers.
    """
    num_layers = find(data, "vision_config.num_hidden_layers")
    more = set()
    for name in names:
        number, _, rest = name.removeprefix(TOWER).partition(".")
        if name.startswith(TOWER) and number.isdecimal() and leaf_of(rest)[0] not in SPATIAL_PARTS:
            more.add(int(number))
    if not more or not isinstance(num_layers, int):
        return dict(data)
    if sorted(more) != list(range(num_layers - len(more), num_layers)):
        raise CheckpointError(
            f"layers {span(sorted(more))} of the vision model's {num_layers} have tensors that InternVL2 does not have",
            expected="additional tensors in the last layers only, because only the last layers can be temporal",
            cause="an unsupported variant of the model",
            fix="choose another checkpoint",
        )
    return {**data, "pvc": {**data["pvc"], "num_temporal_layers": len(more)}}


def detect(tensors: Collection[CheckpointTensor], shapes: Mapping[str, Shape]) -> Detection:
    """Find the roles of tensors whose names are not ours.

    tensors  every tensor of the model, with our names
    shapes   every tensor in the files by name, except those known to be harmless
    Finds nothing if a module has its weight under our name but no bias, or the reverse: that is damage.
    """
    layers = sorted({int(tensor.name.split(".")[3]) for tensor in added(tensors) if tensor.name.startswith(TOWER)})
    roles, is_whole = _open_roles(tensors, shapes, layers)
    if not is_whole:
        return Detection(mapping={})
    ours = {tensor.name for tensor in tensors}
    stems = stems_of({name: shape for name, shape in shapes.items() if name not in ours}, layers)
    stems = with_joined(stems, {role.kind for role in roles})
    stems.sort(key=lambda stem: (not stem.layers, stem.name))
    theirs_by_kind, ours_by_kind = (Counter(stem.kind for stem in group) for group in (stems, roles))
    fitting = {kind for kind, count in theirs_by_kind.items() if ours_by_kind[kind] == count}
    groups = []
    for in_layers in (True, False):
        kinds = {kind for kind in fitting if bool(kind[0]) == in_layers}
        groups.append(_matchings([s for s in stems if s.kind in kinds], [r for r in roles if r.kind in kinds]))
    return _detection(stems, roles, groups)


def _open_roles(
    tensors: Collection[CheckpointTensor], shapes: Collection[str], layers: Sequence[int]
) -> tuple[list[Stem], bool]:
    """Return the renamable modules without any tensor under our names, and whether all other modules are complete."""
    may = {tensor.name: tensor.shape for tensor in added(tensors)}
    begun = {leaf_of(name)[0] for name in may if name in shapes}
    missing = {name: shape for name, shape in may.items() if leaf_of(name)[0] not in begun}
    return stems_of(missing, layers), may.keys() - missing.keys() <= set(shapes)


def require_found(folder: Path, detection: Detection) -> None:
    """Raise OpenNamesError, or CheckpointError if the tensors do not fit the roles, with a table of the open ones."""
    if detection.num_candidates == 1:
        return
    table = "\n".join(detection.table)
    if not detection.num_candidates:
        raise CheckpointError(
            f"{folder}: PVC's additions to InternVL2 have unknown names and do not match {CONFIG_FILE}:\n{table}",
            expected="one tensor per role, of the same shape and in the same layers",
            cause="an unsupported variant of the model, or a wrong value in the pvc object",
            fix=f"compare the shapes with {CONFIG_FILE}; if only the names differ: {suggest(folder)}, "
            "fill in each null, then pass --mapping mapping.json",
        )
    error = OpenNamesError(
        f"{folder}: PVC's additions to InternVL2 have unknown names, and {detection.num_candidates} mappings are "
        f"possible:\n{table}",
        expected="shapes and names that allow exactly one mapping",
        fix=f"{suggest(folder)}, fill in each null, then pass --mapping mapping.json",
    )
    error.candidates = detection.candidates
    raise error


# -- matching --------------------------------------------------------------------------------------------------


def _matchings(stems: Sequence[Stem], roles: Sequence[Stem]) -> list[Matching]:
    """List every assignment of stems to roles of their kind that the names allow, or if none, that the shapes allow."""
    by_name = {stem.name: stem for stem in stems}
    allowed = allowed_roles(by_name)
    pairs = [(by_name[first], by_name[second]) for first, second in pairs_of(allowed)]
    options = {stem: [role for role in roles if role.kind == stem.kind] for stem in stems}
    told = {}
    for stem, of_kind in options.items():
        left = allowed[stem.name]
        told[stem] = [role for role in of_kind if left is None or role.tail in left] or of_kind
    by_names = [
        matching
        for matching in _assignments(told, {})
        if all((matching[first].tail, matching[second].tail) in PAIRS for first, second in pairs)
    ]
    return by_names or list(_assignments(options, {}))


def _assignments(options: Mapping[Stem, Sequence[Stem]], taken: Matching) -> Iterator[Matching]:
    left = [stem for stem in options if stem not in taken]
    if not left:
        yield taken
        return
    free = {stem: [role for role in options[stem] if role not in taken.values()] for stem in left}
    stem = min(left, key=lambda stem: len(free[stem]))
    for role in free[stem]:
        yield from _assignments(options, {**taken, stem: role})


def _detection(stems: Sequence[Stem], roles: Sequence[Stem], groups: Sequence[Sequence[Matching]]) -> Detection:
    known: Matching = {}
    for group in groups:
        for stem in group[0]:
            if len(of := {matching[stem] for matching in group}) == 1:
                known[stem] = of.pop()
    open_stems = [stem for stem in stems if stem not in known]
    open_roles = [role for role in roles if role not in known.values()]
    mapping: dict[str, str | None] = {}
    for stem in stems:
        names = stem.names(known[stem]) if stem in known else dict.fromkeys(stem.names(stem))
        mapping.update(names)
    num_matched = len(groups[0][0]) + len(groups[1][0])
    fits = num_matched == len(stems) == len(roles)
    return Detection(
        mapping=mapping,
        groups=tuple(tuple(_flat(matching) for matching in group[:MAX_CANDIDATES]) for group in groups),
        num_candidates=len(groups[0]) * len(groups[1]) if fits else 0,
        table=tuple(_table(open_stems, open_roles)),
    )


def _flat(matching: Matching) -> dict[str, str]:
    return {name: of for stem, role in matching.items() for name, of in stem.names(role).items()}


def _table(stems: Sequence[Stem], roles: Sequence[Stem]) -> Iterator[str]:
    """Yield rows with tensors next to roles of the same kind."""
    if not stems and not roles:
        return
    rows = [("tensors of the files", "open roles")]
    for kind in dict.fromkeys(stem.kind for stem in (*stems, *roles)):
        left, right = ([stem.printed() for stem in group if stem.kind == kind] for group in (stems, roles))
        rows += zip_longest(left, (text.removeprefix("vision_model.encoder.") for text in right), fillvalue="-")
    width = max(len(left) for left, _ in rows)
    yield from (f"  {left:<{width}}   {right}" for left, right in rows)
