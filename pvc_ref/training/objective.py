"""Training loss: cross-entropy of the answers, and of labels for every patch and every frame token.

The paper starts from a trained InternViT. Here everything starts from random weights, so linear heads on the patch
features and on the frame tokens teach the ViT and the compressor what is where. The heads are not part of the model.
A clip's frames are prefilled once; its questions are a batch that shares those keys and values.
Dimension key:  B clips   T frames   P patches   M tokens per frame   Q questions per clip   L tokens   E LLM width
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..compressor import pixel_shuffle
from ..config import PVCConfig
from ..model import PVC
from ..prompt import IMAGE_CONTEXT
from ..shapes.draw import IGNORED, MOTIONS
from ..shapes.world import CHARACTERS, COLORS, SHAPES
from ..temporal import window_bias
from .batches import Batch

CLASSES = {"color": 1 + len(COLORS), "shape": 1 + len(SHAPES), "motion": len(MOTIONS), "character": 1 + len(CHARACTERS)}
LABEL_WEIGHTS = {"color": 1.0, "shape": 1.0, "motion": 1.0, "character": 3.0}  # characters are learned last
NOTHING_WEIGHT = 0.15  # most patches are empty
PATCH_WEIGHT, TOKEN_WEIGHT = 0.5, 0.5
LOUDNESS_WEIGHT = 0.01
"""Weight of the frame tokens' mean square. Nothing else keeps them small, since the LLM normalises its input. When they
are large, what its layers add to them is lost in rounding, so the LLM cannot use them (docs/log.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Loss of one batch and the values to log.

    right, asked  questions per topic: answered word for word (teacher-forced), and all
    token_std     standard deviation of the frame tokens, which must not diverge
    """

    loss: Tensor
    answer_loss: float
    patch_loss: float
    token_loss: float
    token_std: float
    right: Counter[str]
    asked: Counter[str]


class LabelHeads(nn.Module):
    """One linear layer on a patch's features, and one on a normalised frame token for all patches in that token."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        self.patches_per_token = config.vision.num_patches // config.compressor.num_tokens
        self.rows, self.columns = config.compressor.token_grid
        self.order = config.compressor.shuffle
        total = sum(CLASSES.values())
        self.patch = nn.Linear(config.vision.hidden_size, total)
        self.token = nn.Linear(config.llm.hidden_size, self.patches_per_token * total)

    def patch_loss(self, features: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """features (F, P, C), labels (F, P) each."""
        return _label_loss(self.patch(features), labels)

    def token_loss(self, tokens: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """tokens (F, M, E), labels (F, P) each. Without the norm, large tokens make this loss diverge."""
        logits = self.token(F.layer_norm(tokens, tokens.shape[-1:])).unflatten(-1, (self.patches_per_token, -1))
        shuffled = {
            name: pixel_shuffle(label[..., None], rows=self.rows, columns=self.columns, order=self.order)
            for name, label in labels.items()
        }
        return _label_loss(logits, shuffled)


def _label_loss(logits: Tensor, labels: dict[str, Tensor]) -> Tensor:
    losses = []
    for part, (name, size) in zip(logits.split(list(CLASSES.values()), dim=-1), CLASSES.items(), strict=True):
        if bool((labels[name] != IGNORED).any()):
            weight = torch.ones(size, device=logits.device)
            weight[0] = NOTHING_WEIGHT
            loss = F.cross_entropy(part.flatten(0, -2).float(), labels[name].flatten(), weight)
            losses.append(LABEL_WEIGHTS[name] * loss)
    return torch.stack(losses).sum() if losses else logits.new_zeros(())


def compute(model: PVC, heads: LabelHeads, batch: Batch, context_id: int, *, use_token_labels: bool = True) -> Outcome:
    """Run the forward pass and compute the loss of one batch."""
    features, tokens = encode(model, batch)
    labels = {name: label.repeat_interleave(batch.repeats, dim=1).flatten(0, 1) for name, label in batch.labels.items()}
    patch_loss = heads.patch_loss(features.flatten(0, 1), labels)
    token_loss = heads.token_loss(tokens.flatten(0, 1), labels) if use_token_labels else tokens.new_zeros(())
    logits = answer_logits(model, batch, tokens, context_id)
    answer_loss = F.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten(), ignore_index=IGNORED)
    wanted = batch.targets != IGNORED
    right_rows = ((logits.argmax(-1) == batch.targets) | ~wanted).all(-1)
    right, asked = Counter[str](), Counter[str]()
    for topics, row in zip(batch.topics, right_rows.tolist(), strict=True):
        asked.update(filter(None, topics))
        right.update(topic for topic, is_right in zip(topics, row, strict=True) if topic and is_right)
    return Outcome(
        loss=answer_loss
        + PATCH_WEIGHT * patch_loss
        + TOKEN_WEIGHT * token_loss
        + LOUDNESS_WEIGHT * tokens.square().mean(),
        answer_loss=answer_loss.item(),
        patch_loss=patch_loss.item(),
        token_loss=token_loss.item(),
        token_std=tokens.detach().std().item(),
        right=right,
        asked=asked,
    )


def encode(model: PVC, batch: Batch, *, first_time: int = 0) -> tuple[Tensor, Tensor]:
    """Features (B, T * R, P, C) and frame tokens (B, T * R, M, E), as PVC.encode_clip makes them.

    `first_time` is the time of the first frame, for a stream that has run for a while.
    The trunk does not depend on time, so it runs only once for a repeated image.
    """
    size, num_frames = batch.frames.shape[:2]
    x = model.trunk(batch.frames.flatten(0, 1)).unflatten(0, (size, num_frames))
    x = x.repeat_interleave(batch.repeats, dim=1)
    total = x.shape[1]
    times = model.frame_times(first_time, total, total_frames=None, device=x.device).expand(size, -1)
    features, _ = model.temporal(x, times, None, window_bias(total, batch.window, like=x))
    tokens = model.compressor(features.flatten(0, 1), times.flatten())
    return features, tokens.unflatten(0, (size, total))


def answer_logits(model: PVC, batch: Batch, tokens: Tensor, context_id: int) -> Tensor:
    """Compute logits (B, Q, L, V) of every question and answer, each after its clip's prompt."""
    seen = tokens[:, -1:] if batch.last_only else tokens
    embeds = model.llm.embed_tokens(batch.prefix)[None].expand(len(seen), -1, -1)
    slots = (batch.prefix == context_id)[None, :, None].expand_as(embeds)
    embeds = embeds.masked_scatter(slots, seen.flatten(1, 2))
    return shared_prefix_logits(model, embeds, batch.questions)


def shared_prefix_logits(model: PVC, prefix: Tensor, ids: Tensor) -> Tensor:
    """prefix (B, Lp, E), ids (B, Q, L) -> logits (B, Q, L, V): each row of ids directly follows its prefix.

    The prefix is prefilled once, and its keys and values are shared. Rows may be padded at the end.
    """
    num_rows, length = ids.shape[1:]
    positions = torch.arange(prefix.shape[1] + length, device=prefix.device)[None]
    _, past = model.llm(prefix, positions[:, : prefix.shape[1]], None)
    shared = [(key.repeat_interleave(num_rows, dim=0), value.repeat_interleave(num_rows, dim=0)) for key, value in past]
    hidden, _ = model.llm(model.llm.embed_tokens(ids.flatten(0, 1)), positions[:, prefix.shape[1] :], shared)
    return model.llm.logits(hidden).unflatten(0, ids.shape[:2])


def context_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of the placeholder for a frame token in a prompt."""
    token_id = tokenizer.token_to_id(IMAGE_CONTEXT)
    assert isinstance(token_id, int)
    return token_id
