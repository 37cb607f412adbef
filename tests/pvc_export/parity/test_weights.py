"""The digest behind 'bit-equal weights': blind to order, and to nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc_export.parity.weights import BLOCK, digest


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@given(seed=st.integers(0, 1000), position=st.integers(0, 119), bit=st.integers(0, 15))
def test_one_flipped_bit_changes_the_digest(dtype: type, seed: int, position: int, bit: int) -> None:
    values = np.random.default_rng(seed).normal(size=120).astype(dtype)
    flipped = values.copy()
    flipped.view(f"u{values.itemsize}")[position] ^= 1 << bit
    assert digest(values) != digest(flipped)


@given(seed=st.integers(0, 1000))
def test_transposing_and_reordering_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(8, 15)).astype(np.float32)
    assert digest(values) == digest(np.ascontiguousarray(values.T)) == digest(rng.permutation(values.ravel()))


def test_dtype_and_size_are_part_of_the_digest() -> None:
    zeros = np.zeros(4, np.float32)
    assert digest(zeros) != digest(zeros[:3]) and digest(zeros) != digest(zeros.astype(np.float16))


def test_two_changes_that_cancel_in_a_sum_do_not_cancel_in_the_digest() -> None:
    values = np.arange(1, 9, dtype=np.float32)
    moved = values.copy()
    moved[0] += 1
    moved[1] -= 1
    moved[2] += 3
    assert digest(values) != digest(moved)


def test_large_arrays_are_digested_in_blocks_with_the_same_result() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, BLOCK + 5).astype(np.uint16).view(np.float16)
    parts = [digest(values[:7]), digest(values[7:])]
    assert digest(values)[2] == sum(part[2] for part in parts) % 2**64
