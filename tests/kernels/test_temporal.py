import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.kernels import temporal_attention as packed
from stan_infer.kernels import temporal_qkv_attention as fused
from stan_infer.kernels.tuned import Tile
from tests.grids import pairwise
from tests.kernels.inputs import (
    DTYPES,
    FRAMES,
    TOLERANCE,
    Maker,
    check_steps,
    double,
    error,
    in_steps,
    normed,
)


def check_packed(dtype, b, t, p, heads, head, tile=None, scale=0.3, size=1.0):
    qkv = Maker(dtype).rows(b * t * p, 3 * heads * head, scale=size)
    got = packed.launch(qkv, t, p, heads, scale, None, tile)
    wanted = packed.temporal_attention_reference(qkv.double(), t, p, heads, scale, None)
    assert error(got, wanted) < TOLERANCE[dtype]


@pairwise(dtype=DTYPES, t=FRAMES, b=[1, 3])
def test_packed(dtype, t, b):
    check_packed(dtype, b, t, 5, 2, 16)


@pytest.mark.parametrize("bm", [16, 32, 64, 128])
@pytest.mark.parametrize("t", [1, 4, 7, 12, 16])
def test_packed_tiles(bm, t):
    check_packed(torch.float32, 2, t, 7, 3, 16, Tile(bm, 64, 0, 4, 1))


@pytest.mark.parametrize("head", [16, 32, 64, 128])
def test_packed_heads(head):
    check_packed(torch.float32, 1, 5, 3, 2, head)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_large_scores(dtype):
    """Scores in the hundreds: an exponential without its maximum would overflow."""
    check_packed(dtype, 2, 6, 3, 2, 16, size=8.0, scale=1.0)


@settings(max_examples=15, deadline=None)
@given(b=st.integers(1, 3), t=st.integers(1, 64), p=st.integers(1, 6), h=st.integers(1, 3))
def test_packed_any_shape(b, t, p, h):
    check_packed(torch.float32, b, t, p, h, 16)


def check_fused(dtype, b, t, p, heads, head, tile=None, mean=0.0):
    new, d, rows = Maker(dtype), heads * head, b * t * p
    x = new.rows(rows + b, d)
    x += mean
    w, bias = new.rows(3 * d, d, scale=d**-0.5), new(3 * d)
    bias[d:] = float("nan")  # k's and v's are never read
    sums, stats = normed(x, w)
    got = fused.launch(x, w, bias, sums, stats.float(), b, t, p, heads, 0.3, 1e-5, None, tile)
    args = double(x, w, bias, sums, stats)
    wanted = fused.temporal_qkv_attention_reference(*args, b, t, p, heads, 0.3, 1e-5, None)
    assert error(got, wanted) < TOLERANCE[dtype]


@pairwise(dtype=DTYPES, t=FRAMES, b=[1, 3])
def test_fused(dtype, t, b):
    check_fused(dtype, b, t, 5, 2, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_norm_of_rows_far_from_zero(dtype):
    check_fused(dtype, 2, 6, 4, 2, 32, mean=2.0)


@pytest.mark.parametrize("tile", [(64, 64, 16), (64, 64, 64), (128, 64, 32)])
@pytest.mark.parametrize("t", [3, 12, 16])
def test_fused_tiles(tile, t):
    check_fused(torch.float32, 2, t, 9, 2, 16, tile=Tile(*tile, 4, 1))


@settings(max_examples=12, deadline=None)
@given(b=st.integers(1, 3), t=st.integers(1, 64), p=st.integers(1, 5), h=st.integers(1, 3))
def test_fused_any_shape(b, t, p, h):
    check_fused(torch.float32, b, t, p, h, 16)


@pytest.mark.parametrize("t", [0, 65])
def test_frames_beyond_the_table_are_refused(t):
    with pytest.raises(ValueError, match="1 to 64"):
        packed.launch(torch.zeros(65, 96), t, 1, 2, 1.0, None)


def test_what_they_refuse():
    with pytest.raises(ValueError, match=r"need \[B T P, 3 D\]"):
        packed.launch(torch.zeros(7, 96), 2, 2, 2, 1.0, None)
    with pytest.raises(ValueError, match="heads of 16, 32, 64 or 128"):
        packed.launch(torch.zeros(4, 90), 2, 2, 2, 1.0, None)
    x, w, bias = torch.zeros(7, 32), torch.zeros(96, 32), torch.zeros(96)
    sums, stats = torch.zeros(2, 96), torch.zeros(8, 2, 1)
    with pytest.raises(ValueError, match="needs 8"):
        fused.launch(x, w, bias, sums, stats, 2, 2, 2, 2, 1.0, 1e-5, None)
    x = torch.zeros(8, 32)
    with pytest.raises(ValueError, match=r"need \[8, 2, 1\]"):
        fused.launch(x, w, bias, sums, stats[:7], 2, 2, 2, 2, 1.0, 1e-5, None)
    with pytest.raises(ValueError, match=r"\[2, 96\]"):
        fused.launch(x, w, bias, sums[0], stats, 2, 2, 2, 2, 1.0, 1e-5, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_in_8_bits_are_rounded_once(dtype):
    """From fp32, not by way of the rows' dtype; the largest saturate."""
    new, (b, t, p, h, d) = Maker(dtype), (2, 5, 3, 2, 32)
    qkv = new.rows(b * t * p, 3 * d)
    for scale in (0.01, 0.001):
        got = packed.launch(qkv, t, p, h, 0.3, scale)
        wanted = packed.temporal_attention_reference(*double(qkv), t, p, h, 0.3, None)
        check_steps(got, wanted, scale, dtype)
        x, w, bias = new.rows(b * t * p + b, d), new.rows(3 * d, d, scale=0.2), new(3 * d)
        sums, stats = normed(x, w)
        args = (b, t, p, h, 0.3, 1e-5)
        got = fused.launch(x, w, bias, sums, stats.float(), *args, scale)
        every = double(x, w, bias, sums, stats)
        wanted = fused.temporal_qkv_attention_reference(*every, *args, None)
        check_steps(got, wanted, scale, dtype)
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match="y_scale"):
            packed.launch(qkv, t, p, h, 0.3, bad)


def calls():
    """See test_linear."""
    new, (b, t, p, h, d) = Maker(torch.float32), (2, 3, 4, 2, 32)
    rows = b * t * p
    attend = 4 * rows * t * d
    yield packed.temporal_attention, (new(rows, 3 * d), t, p, h, 0.3, None), attend
    x, w, bias = new(rows + b, d), new(3 * d, d), new(3 * d)
    sums, stats = normed(x, w)
    args = (x, w, bias, sums, stats.float(), b, t, p, h, 0.3, 1e-5, None)
    yield fused.temporal_qkv_attention, args, 6 * rows * d * d + attend


def tiny_temporal_attention(m):
    new, (b, t, p, h) = Maker(torch.float32), (2, 5, 3, 3)
    qkv = new.rows(b * t * p, 144)
    tile = Tile(64, 64, 0, 4, 1)  # 12 sequences a tile, of 18
    got = m.launch(qkv, t, p, h, 0.3, None, tile)
    yield got, m.temporal_attention_reference(qkv.double(), t, p, h, 0.3, None)
    yield in_steps(m.launch(qkv, t, p, h, 0.3, 0.004, tile), got, 0.004)


def tiny_temporal_qkv_attention(m):
    new, (b, t, p, h) = Maker(torch.float32), (2, 5, 3, 2)
    x, w, bias = new.rows(b * t * p + b, 32), new.rows(96, 32, scale=0.2), new(96)
    x += 1
    sums, stats = normed(x, w)
    tile = Tile(64, 64, 64, 4, 1)  # deeper than D = 32: the tail of the sum is masked
    args = (b, t, p, h, 0.3, 1e-5)
    got = m.launch(x, w, bias, sums, stats.float(), *args, None, tile)
    yield got, m.temporal_qkv_attention_reference(*double(x, w, bias, sums, stats), *args, None)
    own = m.launch(x, w, bias, sums, stats.float(), *args, 0.004, tile)
    yield in_steps(own, got, 0.004)


# See test_mutants.
FAULTS = {
    "temporal_attention": [
        ("ok = (g < G) & (s < sequences)", "ok = g < G"),
        ("place = s // H", "place = s // T"),
        ("o + 2 * H * DH", "o + H * DH"),
        ("place // patches * T + r % T", "place // patches + r % T"),
        ("scale * LOG2_E", "scale"),
        ("y_scale or 1.0", "1.0"),
    ],
    "temporal_qkv_attention": [
        ("tl.where(r < G * T, g, G)", "tl.where(r < G * T, 0, G)"),
        ("g = r % G\n", "g = r // T\n"),
        ("acc - mean[:, None] * s[None, :]", "acc"),
        ("m_k = o_k < d - i_k * BK", "m_k = o_k < d + 1"),
        ("norm_of_parts(p_st, i_row, ok,", "norm_of_parts(p_st, s, ok,"),
        ("y_scale or 1.0", "scale"),
    ],
}
