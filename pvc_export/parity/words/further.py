"""Checks besides the twenty prompts: whole conversations, the largest image, answers as text."""

from __future__ import annotations

from collections.abc import Sequence

from engines.bundle import Bundle

from ...graphs.machine import is_small
from ...graphs.models import LoadedModel
from ..answers import Conversation
from ..evidence import Evidence
from .conversations import text_rule
from .stories import SHORT_STORIES, STORIES, tell_stories
from .tiles import ask_about_tiles, compare_tiles


def ask_further(bundle: Bundle, loaded: LoadedModel, said: Sequence[Conversation]) -> Evidence:
    """Run the stories and the largest image, and compare all answers, including `said`, as text.

    A large model gets one short story, and only the pixels of the largest image are compared. Raises NonFiniteError if
    the bundle returns NaN.
    """
    evidence = Evidence(rules=(compare_tiles(bundle, loaded),))
    if is_small(loaded.model):
        evidence += ask_about_tiles(bundle, loaded) + tell_stories(bundle, loaded, STORIES)
    else:
        left_out = {"the largest image": "a large model is not asked about it; only its tiles were compared"}
        evidence += Evidence(not_executed=left_out) + tell_stories(bundle, loaded, SHORT_STORIES)
    return evidence + Evidence(rules=(text_rule([*said, *evidence.conversations]),))
