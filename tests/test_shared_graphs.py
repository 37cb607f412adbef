"""What the tests share by content: nothing that computes something else may have the same digest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.precision import cast_model
from pvc_ref import PVC

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
