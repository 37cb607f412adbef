"""Roles that a module's name allows, where the name is unambiguous.

A word counts only for roles of the same shape, and only if all names together allow a mapping (see detect.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from .mapping import LAYER

Roles = frozenset[str]

PAIRS = {
    ("time_embedding.w1", "time_embedding.w2"),
    ("adaln.w3", "adaln.w4"),
    ("adaln.w5", "adaln.w6"),
    ("1", "3"),  # the compressor's MLP, in mlp1
}
"""First and second Linear of every Linear-activation-Linear."""

TIME = re.compile(r"(?:^|_)(?:te|temb\w*|(?:t|time|timestep|temporal)_?emb[a-z]*|time_mlp)(?:_|$)")
ADAPTIVE = re.compile(r"ada[a-z]*|[a-z]*norm|film|modulation")
OUTPUT = re.compile(r"(?:temporal_|t_|attn_)?(?:proj|out|o|wo|out_proj|o_proj|c_proj|proj_out|to_out)")
TRIOS = (
    *(("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("to_q", "to_k", "to_v")),
    *(("query", "key", "value"), ("q_linear", "k_linear", "v_linear"), ("linear_q", "linear_k", "linear_v")),
)


def allowed_roles(names: Collection[str]) -> dict[str, Roles | None]:
    """Map each name to the roles it allows, by their tails such as adaln.w3; None if the name allows any."""
    return {name: _named_in_the_paper(name, names) or _by_words(name) for name in names}


def _named_in_the_paper(name: str, names: Collection[str]) -> Roles | None:
    """Read W3 to W6 as the paper's numbers, if exactly these four numbers are in one place."""
    match = re.fullmatch(r"(.*[._]w)([3-6])", name, re.IGNORECASE)
    if match and [n for n in "123456789" if match[1] + n in names] == list("3456"):
        return frozenset({f"adaln.w{match[2]}"})
    return None


def _by_words(name: str) -> Roles | None:
    name = name.rpartition(LAYER)[2]  # the part before the layer number is common to all
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    stems = {word.rstrip("0123456789").removesuffix("s") for word in words}
    is_gamma, is_beta = bool(stems & {"gamma", "scale"}), bool(stems & {"beta", "shift"})
    if is_gamma != is_beta:
        return frozenset({"adaln.w3", "adaln.w4"} if is_gamma else {"adaln.w5", "adaln.w6"})
    if TIME.search("_".join(words)):
        return frozenset({"time_embedding.w1", "time_embedding.w2"})
    if is_gamma or any(ADAPTIVE.fullmatch(word) for word in stems):
        return frozenset({"adaln.w3", "adaln.w4", "adaln.w5", "adaln.w6"})
    last = re.sub(r"\.\d+$", "", name).rpartition(".")[2].lower()
    return frozenset({"temporal_attn.proj"}) if OUTPUT.fullmatch(last) else None


def pairs_of(allowed: Mapping[str, Roles | None]) -> list[tuple[str, str]]:
    """Names that can only be the first and second Linear of one Linear-activation-Linear.

    They are the only two names in one place and differ in a number: by two, as in a Sequential with an activation
    between them, or by any difference if their words allow the same two roles.
    """
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in allowed:
        if match := re.fullmatch(r"(.*?)(\d+)", name):
            places[match[1]].append((int(match[2]), name))
    found = []
    for place, numbered in places.items():
        if len(numbered) == 2:
            (low, first), (high, second) = sorted(numbered)
            told = allowed[first] == allowed[second] and len(allowed[first] or ()) == 2
            if told or (place.endswith(".") and high - low == 2):
                found.append((first, second))
    return found


def trios_of(names: Collection[str]) -> list[tuple[str, str, str]]:
    """Find q, k and v of one attention: three names in one place."""
    places = dict.fromkeys(name.rpartition(".")[0] for name in names)
    trios = [(f"{place}.{q}", f"{place}.{k}", f"{place}.{v}") for place in places for q, k, v in TRIOS]
    return [trio for trio in trios if set(trio) <= set(names)]
