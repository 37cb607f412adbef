"""Kept questions: after any number of turns, the LLM has seen what one pass over the whole conversation sees.

The reference writes only a first turn, so the later ones are written out here: an answer ends with its end token,
whether the model gave it or the answer was cut off, and then the user speaks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.ingest import Ingest
from engines.memory import Tensor
from engines.session import Session, Wrapped
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.words.conversations import reference_logits
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from .doubles import with_sessions

Frames = list[np.ndarray]
END, USER, ASSISTANT = "<|im_end|>", "<|im_start|>user\n", "<|im_start|>assistant\n"
NUM_TOKENS, FORCED = 5, (5, 201, 33)


@pytest.fixture(scope="module", params=["bundle_rows", "bundle_fp32"], ids=["rows", "in place"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both updates of the LLM's cache."""
    return open_bundle(request.getfixturevalue(request.param), runtime="cpu")


class Whole:
    """The whole conversation as the reference would see it: token ids, and which of them belong to frames."""

    def __init__(self, tiny: LoadedModel, frames: Frames, window: int) -> None:
        self.tiny, self.frames, self.window = tiny, frames, window
        self.ids: list[int] = []
        self.is_frame: list[bool] = []
        self.num_frames = 0

    def next_frame(self) -> str:
        self.num_frames += 1
        return f"Frame{self.num_frames}: <img>{IMAGE_CONTEXT * self.tiny.config.compressor.num_tokens}</img>\n"

    def user_says(self, text: str) -> None:
        ids = self.tiny.tokenizer.encode(text, add_special_tokens=False).ids
        self.ids += ids
        self.is_frame += [token == self.tiny.token_id(IMAGE_CONTEXT) for token in ids]

    def model_says(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.is_frame += [False] * len(ids)  # a random model may give <IMG_CONTEXT> itself

    @torch.no_grad()
    def embeds(self) -> torch.Tensor:
        """(1, L, E)."""
        model, size = self.tiny.model, self.tiny.config.vision.image_size
        embeds = model.llm.embed_tokens(torch.tensor(self.ids))
        pixels = np.stack([resize_frame(frame[..., ::-1], size=size) for frame in self.frames[: self.num_frames]])
        clip = model.encode_clip(torch.from_numpy(pixels)[None], window=self.window)[0]
        embeds[torch.tensor(self.is_frame)] = clip.flatten(0, 1)
        return embeds[None]


class Ending(Wrapped):
    """The bundle's head, which between `at` and `rest` ends after this many tokens, or never."""

    def __init__(self, session: Session, end: int) -> None:
        super().__init__(session, self._say)
        self._end, self._left = end, 0

    def at(self, num_tokens: int | None) -> None:
        self._left = -1 if num_tokens is None else num_tokens + 1

    def rest(self) -> None:
        self._left = 0

    def _say(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(inputs)
        if self._left:
            self._left -= 1
            logits = np.array(outputs["logits"])
            logits[0, self._end] = np.finfo(np.float32).max if self._left == 0 else np.finfo(np.float32).min
            outputs["logits"] = logits
        return outputs


@pytest.mark.parametrize("num_tokens", [None, 0, 3], ids=["cut off", "said nothing", "ended"])
@pytest.mark.parametrize(("ingest", "between"), [("eager", 0), ("eager", 1), ("lazy", 1)])
def test_every_turn_is_one_pass_over_the_whole_conversation(
    bundle: Bundle, tiny: LoadedModel, frames: Frames, num_tokens: int | None, ingest: Ingest, between: int
) -> None:
    """Three turns after each other, with or without frames in between: every row counts, and the logits of every step
    are the reference's. A fork of the stream has the same earlier turns."""
    head = Ending(bundle.sessions["head"], tiny.token_id(END))
    stream = PVCStream(with_sessions(bundle, head=head), ingest=ingest)
    whole = Whole(tiny, frames, bundle.manifest.limits.window)
    text = f"<s><|im_start|>system\nYou watch a video.{END}{USER}"
    for turn, question in enumerate(("What moves?", "", "And now?")):
        for _ in range(between if turn else 1):
            stream.push(frames[whole.num_frames])
            text += whole.next_frame()
        whole.user_says(f"{text}{question}{END}{ASSISTANT}")
        want = reference_logits(tiny, whole.embeds(), FORCED)
        for each in (stream, stream.fork()):
            assert np.abs(each.score(question, FORCED) - want).max() < 2e-5 * np.abs(want).max()  # measured: 2e-6
        head.at(num_tokens)
        answer = stream.ask(question, max_new_tokens=NUM_TOKENS, keep=True)
        head.rest()
        assert answer.finished == (num_tokens is not None)
        assert len(answer.token_ids) == (NUM_TOKENS if num_tokens is None else num_tokens)
        whole.model_says(answer.token_ids)
        assert stream.context_rows == stream.language.cache.length == len(whole.ids)
        text = f"{END}{USER}"
