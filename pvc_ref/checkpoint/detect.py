"""What is a tensor whose name is not known? Found from its shape, its layers, and names where they are decisive.

Only what PVC adds to InternVL2 is looked for, and only among tensors that no known name claims. Unit of the search is a
stem: .weight and .bias of one module, in the same layers, so that a suffix has one role in all of them. Roles of equal
shape are told apart by words such as gamma, beta, te or out_proj, and by the numbers of a Linear-SiLU-Linear (.0, .2).
A mapping is taken only if no other is possible.
Source: gamma(z) = W4 SiLU(W3 z), beta(z) = W6 SiLU(W5 z), TE = W2 SiLU(W1 t~) of PVC (arXiv 2412.09613).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product, zip_longest

from .mapping import LAYER, TOWER, aligned, span
from .tensor_names import TEMPORAL_PARTS, CheckpointTensor
from .words import PAIRS, allowed_roles, pairs_of, trios_of

Shape = tuple[int, ...]
Leaves = tuple[tuple[str, Shape], ...]
Kind = tuple[tuple[int, ...], Leaves]
IN_LAYER = re.compile(r"(vision_model\..*?\.)(\d+)(\..*)")
Matching = dict["Stem", "Stem"]
"""The role of each stem."""
MAX_CANDIDATES = 1000
"""Of the mappings that are possible, so many are listed. W3 to W6, TE's W2 and the projection alone have 720."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stem:
    """Tensors of one module, in one layer after another or in none.

    name     with {layer} where the number of a layer stands
    shapes   by leaf: .weight and .bias, _weight and _bias, or nothing
    numbers  of layers in the names
    layers   that they mean; both empty outside of layers
    parts    the names of q, k and v, if they are joined here; else empty
    """

    name: str
    shapes: Leaves
    numbers: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What a stem and its role have in common. A vector alone may be called .weight or not."""
        lone = len(self.shapes) == 1 and len(self.shapes[0][1]) == 1
        return self.layers, tuple(("" if lone else f".{leaf[1:]}", shape) for leaf, shape in self.shapes)

    @property
    def tail(self) -> str:
        """Of a role without its place: adaln.w3."""
        return self.name.removeprefix(f"{TOWER}{LAYER}.").removeprefix("mlp1.")

    def printed(self) -> str:
        name = self.name.replace(LAYER, span(self.numbers)) if self.numbers else self.name
        return f"{name}  {', '.join(f'{leaf[1:]} {shape}'.strip() for leaf, shape in self.shapes)}"

    def names(self, role: Stem) -> dict[str, str]:
        """Each tensor's name and its role's, both with {layer}."""
        leaves = [(ours, theirs) for (ours, _), (theirs, _) in zip(self.shapes, role.shapes, strict=True)]
        if not self.parts:
            return {self.name + ours: role.name + theirs for ours, theirs in leaves}
        into = [role.name.removesuffix("qkv") + letter for letter in "qkv"]
        pairs = list(zip(self.parts, into, strict=True))
        return {part + ours: to + theirs for part, to in pairs for ours, theirs in leaves}


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """What was found.

    mapping         names in the files -> roles, both with {layer}; None for those that are open
    groups          of the temporal layers and of the compressor, all mappings that are possible, at most
                    MAX_CANDIDATES each; any of one goes with any of the other
    num_candidates  how many whole mappings are possible: 1 if all is found, 0 if the tensors do not fit the roles
    table           what is open, as lines of text: tensors on the left, roles on the right
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
    """Those that may have other names in a released checkpoint: what PVC adds, and the compressor that it changes."""
    has_adaln = any(tensor.name.startswith("mlp1.adaln.") for tensor in tensors)
    parts = tuple(rf".{part}" for part in TEMPORAL_PARTS)
    return [
        tensor
        for tensor in tensors
        if (tensor.name.startswith("mlp1.") and has_adaln)
        or (tensor.name.startswith(TOWER) and _leaf(tensor.name)[0].endswith(parts))
    ]


def detect(tensors: Collection[CheckpointTensor], shapes: Mapping[str, Shape]) -> Detection:
    """The roles of tensors that have no name of ours.

    tensors  all that the model asks for, under our names
    shapes   all that the files hold, by their names, but for those that are known to be harmless
    """
    layers = sorted({int(tensor.name.split(".")[3]) for tensor in added(tensors) if tensor.name.startswith(TOWER)})
    roles = _open_roles(tensors, shapes, layers)
    ours = {tensor.name for tensor in tensors}
    stems = _grouped({name: shape for name, shape in shapes.items() if name not in ours}, layers)
    stems = _with_joined(stems, {role.kind for role in roles})
    theirs_by_kind, ours_by_kind = (Counter(stem.kind for stem in group) for group in (stems, roles))
    fitting = {kind for kind, count in theirs_by_kind.items() if ours_by_kind[kind] == count}
    groups = []
    for in_layers in (True, False):
        kinds = {kind for kind in fitting if bool(kind[0]) == in_layers}
        groups.append(_matchings([s for s in stems if s.kind in kinds], [r for r in roles if r.kind in kinds]))
    return _detection(stems, roles, groups)


# -- stems -----------------------------------------------------------------------------------------------------


def _open_roles(tensors: Collection[CheckpointTensor], shapes: Collection[str], layers: Sequence[int]) -> list[Stem]:
    """Of what may have another name, the modules of which the files hold nothing under our names."""
    may = {tensor.name: tensor.shape for tensor in added(tensors)}
    begun = {_leaf(name)[0] for name in may if name in shapes}
    return _grouped({name: shape for name, shape in may.items() if _leaf(name)[0] not in begun}, layers)


def _grouped(shapes: Mapping[str, Shape], layers: Sequence[int]) -> list[Stem]:
    found: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        match = IN_LAYER.fullmatch(name)
        stem, leaf = _leaf(f"{match[1]}{LAYER}{match[3]}" if match else name)
        found[stem][int(match[2]) if match else -1][leaf] = shape
    stems = []
    for name, by_number in found.items():
        alike: dict[Leaves, list[int]] = defaultdict(list)
        for number, by_leaf in sorted(by_number.items()):
            alike[tuple(sorted(by_leaf.items(), reverse=True))].append(number)  # .weight before .bias
        for leaves, numbers in alike.items():
            meant = aligned(name, numbers, layers)
            if LAYER not in name:
                stems.append(Stem(name=name, shapes=leaves))
            elif meant or name.startswith(TOWER + LAYER):
                in_layers = tuple(meant.values() if meant else numbers)
                stems.append(Stem(name=name, shapes=leaves, numbers=tuple(numbers), layers=in_layers))
            else:  # the numbers are not of layers
                stems += [Stem(name=name.replace(LAYER, str(number)), shapes=leaves) for number in numbers]
    return stems


def _leaf(name: str) -> tuple[str, str]:
    """A module, and .weight, .bias or nothing; in_proj_weight has _weight."""
    module = re.sub(r"[._](?:weight|bias)$", "", name)
    return module, name[len(module) :]


def _with_joined(stems: list[Stem], wanted: Collection[Kind]) -> list[Stem]:
    """With q, k and v as one, where their names say what they are and a joined one is wanted."""
    by_name = {stem.name: stem for stem in stems}
    for trio in trios_of(by_name):
        parts = [by_name[name] for name in trio]
        shapes = tuple((leaf, (3 * shape[0], *shape[1:])) for leaf, shape in parts[0].shapes if shape)
        name = trio[0].rpartition(".")[0] + ".q+k+v"
        joined = replace(parts[0], name=name, shapes=shapes, parts=trio)
        if len({part.kind for part in parts}) == 1 and joined.kind in wanted:
            stems = [*(stem for stem in stems if stem not in parts), joined]
    return stems


# -- matching --------------------------------------------------------------------------------------------------


def _matchings(stems: Sequence[Stem], roles: Sequence[Stem]) -> list[Matching]:
    """Every way to give each stem a role of its kind that the names leave; if they leave none, that shapes leave."""
    by_name = {stem.name: stem for stem in stems}
    allowed = {name: allowed_roles(name.partition(LAYER)[2] or name) for name in by_name}
    pairs = [(by_name[first], by_name[second]) for first, second in pairs_of(allowed)]
    options = {stem: [role for role in roles if role.kind == stem.kind] for stem in stems}
    told = {
        stem: [role for role in of_kind if role.tail in (allowed[stem.name] or {role.tail})]
        for stem, of_kind in options.items()
    }
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
    """Tensors beside roles of the same kind."""
    if not stems and not roles:
        return
    rows = [("tensors of the files", "open roles")]
    for kind in dict.fromkeys(stem.kind for stem in (*stems, *roles)):
        left, right = ([stem.printed() for stem in group if stem.kind == kind] for group in (stems, roles))
        rows += zip_longest(left, (text.removeprefix("vision_model.encoder.") for text in right), fillvalue="-")
    width = max(len(left) for left, _ in rows)
    yield from (f"  {left:<{width}}   {right}" for left, right in rows)
