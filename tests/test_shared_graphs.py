"""The digests by which tests share graphs: a module that computes something else has another digest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pvc_export.graphs import modules
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.precision import cast_model
from pvc_ref import PVC, temporal
from pvc_ref.temporal import TemporalAttention

from .conftest import digest_of


def one_weight(model: PVC) -> PVC:
    with torch.no_grad():
        model.trunk.layers[0].mlp.fc1.weight[0, 0] += 1e-6
    return model


def an_epsilon(model: PVC) -> PVC:
    model.trunk.layers[0].norm1.eps *= 2
    return model


def an_island(model: PVC) -> PVC:
    return cast_model(model, "fp16", ("trunk.layers.0.mlp",))


def test_an_equal_module_has_the_same_digest(small: LoadedModel) -> None:
    assert digest_of(small.model) == digest_of(copy.deepcopy(small.model))
    assert digest_of(cast_model(small.model, "fp16")) == digest_of(cast_model(small.model, "fp16"))


@pytest.mark.parametrize("change", [one_weight, an_epsilon, an_island], ids=lambda f: f.__name__)
def test_a_module_that_computes_something_else_has_another_digest(
    change: Callable[[PVC], PVC], small: LoadedModel
) -> None:
    plain = copy.deepcopy(small.model)
    before = digest_of(cast_model(plain, "fp16") if change is an_island else plain)
    assert digest_of(change(plain)) != before


def test_code_that_is_another_gives_another_digest(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that breaks the export must not share its graphs with other tests."""
    digests = [digest_of(small.model)]
    forward = TemporalAttention.forward
    for factor in (1.001, 1.002):

        def scaled(self: TemporalAttention, x: torch.Tensor, *past: Any, factor: float = factor) -> Any:
            return forward(self, factor * x, *past)

        with monkeypatch.context() as patch:
            patch.setattr(TemporalAttention, "forward", scaled)
            digests.append(digest_of(small.model))
    with monkeypatch.context() as patch:
        patch.setattr(modules, "graph_module", lambda *_: None)
        digests.append(digest_of(small.model))
    with monkeypatch.context() as patch:
        patch.setattr(temporal, "SINUSOID_PERIOD", 1000.0)
        digests.append(digest_of(small.model))
    assert len(set(digests)) == 5 and digest_of(small.model) == digests[0]
