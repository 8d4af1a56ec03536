from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.kernels.spatial_attention import launch, spatial_attention_reference
from stan_infer.kernels.tuned import Tile
from tests.grids import pairwise
from tests.kernels.inputs import DTYPES, FRAMES, TOLERANCE, Maker, double, error


def check(dtype, b, t, p, heads, head, shared, tile=None, size=1.0):
    rows = b * t * p + b if shared else b * t * (p + 1)
    qkv = Maker(dtype).rows(rows, 3 * heads * head, scale=size)
    counters = torch.zeros(b * heads, dtype=torch.int32)
    got = launch(qkv, counters, b, t, heads, 0.3, shared, tile)
    wanted = spatial_attention_reference(*double(qkv), b, t, heads, 0.3, shared)
    assert error(got, wanted) < TOLERANCE[dtype]
    assert not counters.any()  # ready for the next call


@pairwise(dtype=DTYPES, shared=[False, True], b_t=[(1, 1), (1, 4), (3, 2)], p=[1, 4, 9])
def test_frames_and_clips(dtype, shared, b_t, p):
    check(dtype, *b_t, p, 2, 16, shared)


@pytest.mark.parametrize("t", FRAMES)
def test_any_number_of_frames(t):
    check(torch.float32, 1, t, 3, 1, 16, True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("p", [49, 65, 196])
def test_more_patches_than_a_tile(shared, p):
    check(torch.float32, 1, 2, p, 1, 16, shared, Tile(64, 32, 0, 4, 1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(shared, dtype):
    check(dtype, 2, 2, 5, 2, 16, shared, size=10.0)


@pytest.mark.parametrize("head", [32, 64, 128])
def test_heads(head):
    check(torch.float32, 1, 2, 5, 2, head, True)


@settings(max_examples=12, deadline=None)
@given(
    b=st.integers(1, 3), t=st.integers(1, 5), p=st.integers(1, 40), h=st.integers(1, 2),
    shared=st.booleans(), bm=st.sampled_from([16, 32]), bn=st.sampled_from([16, 64]),
)  # fmt: skip
def test_any_shape(b, t, p, h, shared, bm, bn):
    check(torch.float32, b, t, p, h, 16, shared, Tile(bm, bn, 0, 4, 1))


def test_the_same_sum_every_time():
    new = Maker(torch.float32)
    qkv, counters = new(2 * 7 * 3 + 2, 96), torch.zeros(4, dtype=torch.int32)
    first = launch(qkv, counters, 2, 7, 2, 0.3, True)
    assert torch.equal(first, launch(qkv, counters, 2, 7, 2, 0.3, True))


def test_what_it_refuses():
    counters = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"need \[F P \+ B, 3 D\]"):
        launch(torch.zeros(8, 96), counters, 1, 2, 2, 1.0, True)
    with pytest.raises(ValueError, match=r"counters must be int32 \[2\]"):
        launch(torch.zeros(9, 96), counters, 1, 2, 2, 1.0, True)
