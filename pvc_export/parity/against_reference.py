"""The reference's side of a recorded stream, and every difference between the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from engines.bundle import Bundle
from engines.memory import Array
from pvc_ref.prompt import IMAGE_CONTEXT

from ..graphs.models import LoadedModel
from ..graphs.precision import TORCH_DTYPE
from .clip import QUESTION
from .ladder import Progress, Recording, compare_recordings, require_same_shape, run_torch
from .levels import Rule
from .metrics import Difference, compare_arrays, near_tie
from .recorded_stream import RecordedStream

if TYPE_CHECKING:
    from .heat import HeatMap


@dataclass(slots=True)
class Comparison:
    """The reference's side of a stream, and every difference found. `seen`: outputs that the stream itself returned."""

    bundle: Bundle
    loaded: LoadedModel
    found: list[Difference] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    num_equal_tokens: int = 0
    wrong_tokens: list[str] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    heat: tuple[HeatMap, ...] = ()

    @property
    def stage(self) -> str:
        return f"bundle {self.bundle.manifest.precision}"

    @torch.no_grad()
    def vision(self, recorded: RecordedStream, progress: Progress = lambda _: None) -> Recording:
        """Compare every frame; return what the reference said. The embeddings of the clip come from the whole clip."""
        frames, window = recorded.frames, self.bundle.manifest.limits.window
        if not frames.times:  # the first one ended the stream
            return []
        reference = run_torch(self.loaded.model, frames, window, self.bundle.manifest.graphs["temporal"], progress)
        num_frames = frames.num_consecutive
        pixels = torch.from_numpy(np.stack(frames.pixels[:num_frames]))[None]
        whole = self.loaded.model.encode_clip(pixels, window=window, total_frames=frames.total_frames)[0]
        expected = list(reference)
        for index in range(num_frames):
            expected[index] = expected[index] | {"compressor/frame_embeds": whole[index : index + 1].numpy()}
        self.found += compare_recordings(self.stage, recorded.vision, expected, frames.times)
        from .heat import worst_heat_maps  # a page is made from this check

        self.heat = worst_heat_maps(
            self.stage, recorded.vision, expected, pixels=frames.pixels, times=frames.times, config=self.loaded.config
        )
        return reference

    @torch.no_grad()
    def language(self, recorded: RecordedStream, reference: Recording) -> None:
        """Compare every LLM pass with one uncached pass, and every token with what both sides' logits say."""
        model, calls, tokens = self.loaded.model, recorded.language_calls, recorded.tokens
        embeds_of_frames = [frame["compressor/frame_embeds"] for frame in reference[: recorded.num_streamed]]
        frame_embeds = torch.from_numpy(np.concatenate(embeds_of_frames))
        prompt = self.loaded.prompt_ids(num_frames=len(frame_embeds), question=QUESTION)
        # The answer is embedded on its own: a random model may well say <IMG_CONTEXT> itself.
        answer = torch.tensor([*tokens, *recorded.forced], dtype=torch.long)
        text = torch.cat([prompt[prompt != self.loaded.token_id(IMAGE_CONTEXT)], answer])
        # A table lookup rounds nothing but the table.
        text_embeds = model.llm.embed_tokens(text).to(TORCH_DTYPE[self.bundle.manifest.precision])
        embeds = torch.cat(
            [self.loaded.prompt_embeds(prompt, frame_embeds), model.llm.embed_tokens(answer)[None]], dim=1
        )
        hidden, new = model.llm(embeds, torch.arange(embeds.shape[1])[None])
        seen = np.concatenate([call["inputs_embeds"] for call in calls["embed"]], axis=1)
        if not self._is_the_prompt(seen.shape[1], len(text)):
            return
        self._difference("embed", "inputs_embeds", "the whole text", seen, text_embeds[None])
        states = self.bundle.manifest.graphs["llm"].states
        rows = [row for pair in new for row in pair]
        start = 0
        for index, call in enumerate(calls["llm"]):
            stop = start + call[states[0].output].shape[1]
            self._difference("llm", "hidden", f"pass {index}", call["hidden"], hidden[:, stop - 1 : stop])
            for state, row in zip(states, rows, strict=True):
                self._difference("llm", state.output, f"pass {index}", call[state.output], row[:, start:stop])
            start = stop
        logits = model.llm.logits(hidden[0, len(prompt) - 1 :])
        for index, call in enumerate(calls["head"]):
            self._difference("head", "logits", f"token {index}", call["logits"], logits[index : index + 1])
        for index, token in enumerate(tokens):
            self._token(index, token, calls["head"][index]["logits"][0], logits[index].numpy())

    def _is_the_prompt(self, num_fed: int, num_expected: int) -> bool:
        """Whether the runtime fed as many tokens of text as the reference's prompt and answer have."""
        alike = num_fed == num_expected
        detail = f"{num_fed} tokens of text" + ("" if alike else f", the reference's prompt and answer {num_expected}")
        self.rules.append(Rule(level="K", name="prompt", passed=alike, detail=detail))
        return alike

    def _token(self, index: int, token: int, own: Array, reference: Array) -> None:
        """A greedy token must be the likeliest of its own logits, and of the reference's unless those nearly tie."""
        margin = float(reference.max() - reference[token])
        self.num_equal_tokens += margin == 0
        if token != int(own.argmax()):
            self.wrong_tokens.append(f"token {index}: {token} was said, but its logits prefer {int(own.argmax())}")
        elif margin > near_tie(reference, self.bundle.manifest.precision):
            self.wrong_tokens.append(f"token {index}: {token} was said, the reference prefers another by {margin:.2g}")

    def _difference(self, graph: str, tensor: str, where: str, got: Array, expected: torch.Tensor) -> None:
        want = expected.double().numpy()
        require_same_shape(got, want, f"{graph}/{tensor}", where)
        self.found.append(compare_arrays(got, want, stage=self.stage, graph=graph, tensor=tensor, where=where))
