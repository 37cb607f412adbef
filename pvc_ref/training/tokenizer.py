"""Tokenizer of the bundled model: a token for every word of the shapes world, and bytes for everything else.

Any question can be typed: an unknown word is encoded in bytes. Digits and capital letters of codes stay single tokens,
because the text from which the merges are learned contains no codes.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..prompt import TEMPLATES, special_tokens
from ..shapes.questions import vocabulary


def shapes_tokenizer(vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on every sentence of the world. Deterministic; at most vocab_size tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special_tokens(),
        show_progress=False,
    )
    frame = f"system\n{TEMPLATES['tiny'].system}\nuser\nassistant\nFrame1: \nImage-1: \n"
    tokenizer.train_from_iterator([frame, *vocabulary()], trainer)
    return tokenizer
