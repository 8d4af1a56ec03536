import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.kernels.spatial_attention import (
    launch,
    spatial_attention,
    spatial_attention_reference,
)
from stan_infer.kernels.tuned import Tile
from tests.grids import pairwise
from tests.kernels.inputs import (
    DEVICE,
    DTYPES,
    FRAMES,
    TOLERANCE,
    Maker,
    check_steps,
    double,
    error,
    in_steps,
)


def check(dtype, b, t, p, heads, head, shared, tile=None, size=1.0):
    rows = b * t * p + b if shared else b * t * (p + 1)
    qkv = Maker(dtype).rows(rows, 3 * heads * head, scale=size)
    counters = torch.zeros(b * heads, dtype=torch.int32)
    got = launch(qkv, counters, b, t, heads, 0.3, shared, None, tile)
    wanted = spatial_attention_reference(*double(qkv), counters, b, t, heads, 0.3, shared, None)
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
    first = launch(qkv, counters, 2, 7, 2, 0.3, True, None)
    assert torch.equal(first, launch(qkv, counters, 2, 7, 2, 0.3, True, None))


def test_what_it_refuses():
    counters = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"need \[F P \+ B, 3 D\]"):
        launch(torch.zeros(8, 96), counters, 1, 2, 2, 1.0, True, None)
    with pytest.raises(ValueError, match=r"counters must be int32 \[2\]"):
        launch(torch.zeros(9, 96), counters, 1, 2, 2, 1.0, True, None)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_in_8_bits_are_rounded_once(dtype, shared):
    """From fp32, not by way of the rows' dtype; the largest saturate."""
    qkv, counters = Maker(dtype).rows(2 * 3 * 5 + (2 if shared else 6), 96), torch.zeros(4).int()
    for scale in (0.01, 0.001):
        got = launch(qkv, counters, 2, 3, 2, 0.3, shared, scale)
        wanted = spatial_attention_reference(*double(qkv), counters, 2, 3, 2, 0.3, shared, None)
        check_steps(got, wanted, scale, dtype)
    with pytest.raises(ValueError, match="y_scale"):
        launch(qkv, counters, 2, 3, 2, 0.3, shared, -1.0)


def calls():
    """See test_linear."""
    new, (b, t, p, h, d) = Maker(torch.float32), (2, 3, 4, 2, 32)
    counters = torch.zeros(b * h, dtype=torch.int32, device=DEVICE)
    for shared, rows in ((True, b * t * p + b), (False, b * t * (p + 1))):
        args = (new(rows, 3 * d), counters, b, t, h, 0.3, shared, None)
        yield spatial_attention, args, 4 * b * t * (p + 1) ** 2 * d


def tiny_spatial_attention(m):
    new, (b, t, h) = Maker(torch.float32), (2, 3, 2)
    counters = torch.zeros(b * h, dtype=torch.int32)
    for shared, rows in ((True, b * t * 21 + b), (False, b * t * 22), (True, b * t * 21 + b)):
        qkv = new.rows(rows, 96)
        args, tile = (counters, b, t, h, 0.3, shared), Tile(16, 16, 0, 4, 1)
        got = m.launch(qkv, *args, None, tile)
        yield got, m.spatial_attention_reference(qkv.double(), *args, None)
        yield in_steps(m.launch(qkv, *args, 0.004, tile), got, 0.004)


# See test_mutants.
FAULTS = {
    "spatial_attention": [
        ("norm = tl.full((BM,), 1.0,", "norm = tl.full((BM,), 0.0,"),
        ('tl.where(m_n[None, :], s, float("-inf"))', "s"),
        ("norm * fade + tl.sum(e, 1)", "norm + tl.sum(e, 1)"),
        ("if done == T - 1:", "if done == T:"),
        ("mean / T", "mean"),
        ("y_scale or 1.0", "1.0"),
        ("as_stored(out, p_y, y_scale", "as_stored(out, p_y, scale"),
        ("tl.store(p_count + i_bh, 0)", "pass"),
    ],
}
