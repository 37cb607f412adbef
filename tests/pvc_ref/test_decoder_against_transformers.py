"""The reference's decoder against transformers': logits, caches, masks, answers and sampling."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

import pvc_ref.model
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, Sampling
from pvc_ref.init import randomize
from pvc_ref.llm import DecoderLayer, causal_bias, rope_angles

from .test_against_transformers import DECODERS, VISION, seeded

pytestmark = pytest.mark.usefixtures("no_grad")


LOGITS_ATOL = 1e-5


@pytest.fixture(scope="module", params=DECODERS, ids=str)
def decoders(request: pytest.FixtureRequest) -> SimpleNamespace:
    """`ours` is a PVC whose decoder has the weights of `theirs`, a causal LM of transformers."""
    config = PVCConfig(vision=VISION, compressor=CompressorConfig(num_tokens=4), llm=DECODERS[request.param])
    ours = PVC(config).eval()
    draw_decoder_weights(ours, seed=11)
    return SimpleNamespace(ours=ours, theirs=causal_lm_like(ours), config=config.llm)


def test_decoder_logits_equal_transformers(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=19, seed=12)
    expected = decoders.theirs(inputs_embeds=embeds).logits
    actual, _ = our_logits(decoders, embeds, positions(19))
    torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_ATOL)  # worst 4.2e-6


def test_decoding_token_by_token_equals_transformers(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=12, seed=13)
    cache, past = DynamicCache(config=decoders.theirs.config), None
    for row in range(12):
        step = embeds[:, row : row + 1]
        expected = decoders.theirs(inputs_embeds=step, past_key_values=cache, use_cache=True).logits
        actual, past = our_logits(decoders, step, positions(1, start=row), past)
        torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_ATOL)  # worst 3.1e-6


def test_ingesting_rows_after_a_prefill_equals_transformers(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=16, seed=14)
    cache, past = DynamicCache(config=decoders.theirs.config), None
    for start, stop in ((0, 9), (9, 14), (14, 16)):
        rows = embeds[:, start:stop]
        expected = decoders.theirs(inputs_embeds=rows, past_key_values=cache, use_cache=True).logits
        actual, past = our_logits(decoders, rows, positions(stop - start, start=start), past)
        torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_ATOL)  # worst 4.3e-6


def test_new_keys_and_values_equal_the_cache_of_transformers(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=7, seed=15)
    cache = DynamicCache(config=decoders.theirs.config)
    decoders.theirs(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    _, new = our_logits(decoders, embeds, positions(7))
    for layer, (key, value) in zip(cache.layers, new, strict=True):
        torch.testing.assert_close(key, layer.keys.transpose(1, 2), rtol=0, atol=1e-5)  # worst 3.0e-6
        torch.testing.assert_close(value, layer.values.transpose(1, 2), rtol=0, atol=1e-5)  # worst 5.5e-7


def test_padding_in_front_is_masked_as_in_transformers(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=11, seed=16, batch=3)
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, :4] = 0
    mask[2, :7] = 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = decoders.theirs(inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids).logits
    actual, _ = our_logits(decoders, embeds, position_ids, attention_mask=mask)
    real = mask.bool()  # results of padding rows do not matter
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=LOGITS_ATOL)  # worst 3.5e-6
    unmasked, _ = our_logits(decoders, embeds, position_ids)
    assert (unmasked - actual)[real].abs().max() > 1e-2


def test_unused_rows_at_the_end_of_the_past_are_masked_as_in_transformers(decoders: SimpleNamespace) -> None:
    """A bucketed cache: 5 real rows, 3 with garbage, then 4 new ones that continue at position 5."""
    embeds = random_embeds(decoders, rows=12, seed=17)
    mask = torch.tensor([[1] * 5 + [0] * 3 + [1] * 4])
    new_positions = positions(4, start=5)
    cache = DynamicCache(config=decoders.theirs.config)
    decoders.theirs(inputs_embeds=embeds[:, :8], past_key_values=cache, use_cache=True)
    expected = decoders.theirs(
        inputs_embeds=embeds[:, 8:], attention_mask=mask, position_ids=new_positions, past_key_values=cache
    ).logits
    _, past = our_logits(decoders, embeds[:, :8], positions(8))
    actual, _ = our_logits(decoders, embeds[:, 8:], new_positions, past, attention_mask=mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=LOGITS_ATOL)  # worst 1.5e-6


@pytest.mark.parametrize("rows", [1, 6, 23], ids=lambda n: f"prompt={n}")
def test_greedy_answer_is_that_of_transformers_token_for_token(decoders: SimpleNamespace, rows: int) -> None:
    embeds = random_embeds(decoders, rows=rows, seed=18 + rows)
    mask = torch.ones(1, rows, dtype=torch.int64)
    expected = decoders.theirs.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
    )
    actual = decoders.ours.generate(embeds, max_new_tokens=32)
    assert actual == expected[0].tolist()
    assert len(actual) == 32 and len(set(actual)) > 8  # a decoder that repeats itself would be too easy


def test_answer_ends_before_the_stop_token(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=6, seed=24)
    answer = decoders.ours.generate(embeds, max_new_tokens=16)
    stop = answer[7]
    assert decoders.ours.generate(embeds, max_new_tokens=16, stop_ids=[stop]) == answer[: answer.index(stop)]


def test_decoder_layer_equals_transformers_in_float64() -> None:
    """transformers' RMSNorm and eager softmax compute in float32, so theirs uses torch's RMSNorm and SDPA here."""
    config = DECODERS["qwen2"]
    ours = randomize(DecoderLayer(config).double(), seed=19)
    theirs = Qwen2DecoderLayer(causal_lm_config(config, attn_implementation="sdpa"), layer_idx=0)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        setattr(theirs, norm, nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
    theirs.double().eval().load_state_dict({causal_lm_name(f".{name}")[1:]: w for name, w in ours.state_dict().items()})
    x = torch.randn(2, 9, config.hidden_size, generator=seeded(20), dtype=torch.float64)
    cos, sin = rope_angles(positions(9), config.attention_head_dim, config.rope_theta, x.dtype)
    actual, _ = ours(x, (cos, sin), None, causal_bias(x, 0, None))
    mask = torch.full((1, 1, 9, 9), -torch.inf, dtype=x.dtype).triu(1)
    expected = theirs(x, attention_mask=mask, position_embeddings=(cos.squeeze(2), sin.squeeze(2)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)  # worst 8.9e-16


def test_sampling_one_candidate_is_greedy(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=6, seed=21)
    greedy = decoders.ours.generate(embeds, max_new_tokens=16)
    assert decoders.ours.generate(embeds, max_new_tokens=16, sampling=Sampling(top_k=1, temperature=1.7)) == greedy


def test_the_seed_decides_the_sampled_answer(decoders: SimpleNamespace) -> None:
    embeds = random_embeds(decoders, rows=6, seed=22)
    first, again, other = (
        decoders.ours.generate(embeds, max_new_tokens=16, sampling=Sampling(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7),
        Sampling(top_k=5),
        Sampling(top_k=1000),
        Sampling(top_p=0.6),
        Sampling(top_p=0.01),
        Sampling(temperature=0.7, top_k=20, top_p=0.8),
        Sampling(temperature=2.0, top_k=10, top_p=0.95),
    ],
    ids=lambda s: f"temperature={s.temperature},top_k={s.top_k},top_p={s.top_p}",
)
def test_sampling_distribution_is_that_of_the_logits_processors_of_transformers(
    monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    generator = seeded(23)
    for _ in range(10):
        logits = 3.0 * torch.randn(60, generator=generator)
        expected = logits[None]
        if sampling.temperature != 1.0:
            expected = TemperatureLogitsWarper(sampling.temperature)(None, expected)
        if sampling.top_k is not None:
            expected = TopKLogitsWarper(sampling.top_k)(None, expected)
        if sampling.top_p < 1.0:
            expected = TopPLogitsWarper(sampling.top_p)(None, expected)
        expected = expected.softmax(-1)[0]
        actual = sampled_distribution(monkeypatch, logits, sampling)
        assert torch.equal(actual > 0, expected > 0)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)  # worst 1.8e-7


def test_drawn_tokens_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, -0.5, 2.0, 0.0, -1.0, 1.5])
    generator = seeded(25)
    draws = [pvc_ref.model.sample(logits, Sampling(temperature=1.5), generator) for _ in range(4000)]
    frequencies = torch.bincount(torch.tensor(draws), minlength=6) / 4000
    torch.testing.assert_close(frequencies, (logits / 1.5).softmax(-1), rtol=0, atol=0.03)  # worst 8.4e-3


def causal_lm_config(config: LLMConfig, *, attn_implementation: str = "eager") -> Qwen2Config | LlamaConfig:
    extra = {} if config.family == "qwen2" else {"head_dim": config.head_dim, "attention_bias": False}
    return (Qwen2Config if config.family == "qwen2" else LlamaConfig)(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.mlp_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        max_position_embeddings=config.max_positions,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attn_implementation,
        **extra,
    )


def causal_lm_like(ours: PVC) -> Qwen2ForCausalLM | LlamaForCausalLM:
    config = ours.config.llm
    theirs = (Qwen2ForCausalLM if config.family == "qwen2" else LlamaForCausalLM)(causal_lm_config(config)).eval()
    theirs.load_state_dict({causal_lm_name(name): weight for name, weight in ours.llm.state_dict().items()})
    return theirs


def causal_lm_name(name: str) -> str:
    for mine, other in (
        (".attn.", ".self_attn."),
        ("attn_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    ):
        name = name.replace(mine, other)
    return name if name.startswith(("lm_head", ".")) else f"model.{name}"


def draw_decoder_weights(model: PVC, *, seed: int) -> None:
    """Draw sharp attention over faint embeddings and a final norm of both signs: answers depend on the whole context.

    Not drawn by PVC.random, so that the errors measured above do not change when its gains are retuned.
    """
    gains = {"embed_tokens": 0.1, "q_proj": 2.0, "k_proj": 2.0, "_proj": 0.5}
    generator = seeded(seed)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                fan_in = 1 if "embed_tokens" in name else parameter.shape[1]
                gain = next((gain for part, gain in gains.items() if part in name), 1.0)
                parameter.copy_(gain * noise * fan_in**-0.5)
            else:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1.0 + 0.2 * noise)
        model.llm.norm.weight[::2].neg_()


def random_embeds(decoders: SimpleNamespace, *, rows: int, seed: int, batch: int = 1) -> Tensor:
    ids = torch.randint(0, decoders.config.vocab_size, (batch, rows), generator=seeded(seed))
    return decoders.ours.llm.embed_tokens(ids)


def positions(count: int, *, start: int = 0) -> Tensor:
    return torch.arange(start, start + count)[None]


def our_logits(
    decoders: SimpleNamespace,
    embeds: Tensor,
    position_ids: Tensor,
    past: Any = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Logits of the new rows, and the cache with the new rows appended."""
    hidden, new = decoders.ours.llm(embeds, position_ids, past, attention_mask)
    if past is not None:
        new = [
            (torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1))
            for (old_key, old_value), (key, value) in zip(past, new, strict=True)
        ]
    return decoders.ours.llm.logits(hidden), new


def sampled_distribution(monkeypatch: pytest.MonkeyPatch, logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probability of every token by making `sample` draw each of its candidates in turn."""
    distribution = torch.zeros_like(logits)
    for rank in range(len(logits)):
        drawn_from: list[Tensor] = []

        def draw(
            weights: Tensor,
            count: int,
            *,
            generator: Any = None,
            drawn_from: list[Tensor] = drawn_from,
            rank: int = rank,
        ) -> Tensor:
            drawn_from.append(weights / weights.sum())
            return torch.tensor([rank])

        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", draw)
            token = pvc_ref.model.sample(logits, sampling, None)
        distribution[token] = drawn_from[0][rank]
    return distribution
