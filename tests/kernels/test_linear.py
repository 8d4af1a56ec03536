import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.kernels.linear import launch, linear, linear_reference
from stan_infer.kernels.row_norm import quantise, row_sums, row_sums_reference
from stan_infer.kernels.tuned import Tile
from stan_infer.network.kernel_weights import in_e4m3
from tests.grids import pairwise
from tests.kernels.inputs import DTYPES, TOLERANCE, Maker, double, error, normed

linear_file = importlib.import_module("stan_infer.kernels.linear")


def check(
    dtype, m, n, k, *, norm=True, activation="", residual=None, tile=None, mean=0.0, factor=1,
    offset=False, parts=False,
):  # fmt: skip
    new, wide = Maker(dtype), Maker(torch.float32, 7)
    x, w, b = new.rows(m, k) + mean, new.rows(n, k, scale=k**-0.5), new(n)
    c, after = (wide(k), wide(n)) if offset else (None, None)
    sums, exact = normed(x, w, c) if norm else (None, None)
    r = None if residual is None else new.rows(residual, n)
    stats = exact.float() if norm else None
    got, own = launch(x, w, b, sums, stats, r, after, activation, 1e-5, False, parts, tile)
    wanted, _ = linear_reference(
        *double(x, w, b, sums, exact, r, after), activation, 1e-5, False, parts
    )
    assert got.dtype == dtype
    assert error(got, wanted) < factor * TOLERANCE[dtype]
    if norm and not parts:  # the formula against torch's own norm
        z = torch.nn.functional.layer_norm(x.double() + (0 if c is None else c), (k,))
        y = torch.nn.functional.linear(z, w.double(), b.double())
        plain = linear_reference(*double(x, w, b, sums, exact), None, None, "", 1e-5, False, False)
        assert error(plain[0], y) < 1e-4
    if parts:
        assert error(own, row_sums_reference(got.double(), after)) < 1e-5
    else:
        assert own.numel() == 0


@pairwise(
    dtype=DTYPES, norm=[False, True], activation=["", "silu", "gelu"], residual=[None, 37, 41]
)
def test_epilogues(dtype, norm, activation, residual):
    check(dtype, 37, 70, 96, norm=norm, activation=activation, residual=residual)


@pairwise(
    dtype=DTYPES, residual=[None, 37, 41], offset=[False, True], n=[64, 70, 200],
    tile=[(32, 64, 32), (32, 128, 32), (16, 256, 32)], persistent=[False, True],
)  # fmt: skip
def test_sums_of_the_result(dtype, residual, offset, n, tile, persistent):
    """Beside the result, for the norm that reads it; wide tiles end in several parts."""
    tile = Tile(*tile, 4, 1, persistent=persistent)
    check(dtype, 37, n, 96, residual=residual, offset=offset, parts=True, tile=tile)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 64, 32), (128, 32, 64), (16, 256, 32)])
@pytest.mark.parametrize("m", [1, 15, 16, 17, 129])
def test_tiles_and_tails(tile, m, persistent):
    tile = Tile(*tile, 4, 1, persistent=persistent)
    check(torch.float32, m, 33, 40, tile=tile, residual=m + 1)


@pytest.mark.parametrize("persistent", [False, True])
def test_what_a_stream_carries_apart_is_normed_with_it(persistent):
    check(torch.float32, 20, 30, 64, offset=True, tile=Tile(16, 32, 32, 4, 1, 0, 1, persistent))


def test_a_processor_with_several_tiles(monkeypatch):
    """Two programs for twelve tiles, which differ in their number of rows."""
    monkeypatch.setattr(linear_file, "processors", lambda device: 2)
    check(torch.float32, 37, 200, 40, tile=Tile(16, 64, 16, 4, 1, persistent=True), parts=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_far_from_zero_are_normed(dtype):
    """The mean is taken off after the linear: 8 standard deviations of it must cancel."""
    check(dtype, 20, 30, 64, mean=8.0, factor=4)


def test_an_outlier_channel_is_normed():
    new = Maker(torch.float16)
    x, w, b = new(20, 64), new(30, 64, scale=0.1), new(30)
    x[:, 5] *= 40
    sums, stats = normed(x, w)
    got, _ = launch(x, w, b, sums, stats.float(), None, None, "", 1e-5, False, False)
    args = double(x, w, b, sums, stats)
    wanted, _ = linear_reference(*args, None, None, "", 1e-5, False, False)
    assert error(got, wanted) < TOLERANCE[torch.float16]


def test_the_error_is_that_of_torch_in_the_same_dtype():
    """At most twice: the norm inside is not rounded before the linear, as torch's is."""
    new = Maker(torch.float16)
    x, w, b = new(64, 256), new(64, 256, scale=1 / 16), new(64)
    sums, stats = normed(x, w)
    args = double(x, w, b, sums, stats)
    exact, _ = linear_reference(*args, None, None, "silu", 1e-5, False, False)
    z = torch.nn.functional.layer_norm(x, (256,))
    plain = torch.nn.functional.silu(torch.nn.functional.linear(z, w, b))
    stats = row_sums(x, None)
    ours, _ = launch(x, w, b, sums, stats, None, None, "silu", 1e-5, False, False)
    assert error(ours, exact) <= 2 * error(plain, exact)


def test_wide_output():
    new = Maker(torch.float16)
    x, w, b = new(5, 64), new(7, 64, scale=0.1), new(7)
    rest = (None, None, None, None, "", 0.0, True, False)
    got, _ = linear(x, w, b, *rest)
    assert got.dtype == torch.float32
    assert error(got, linear_reference(*double(x, w, b), *rest)[0]) < 1e-5


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 70), more=st.integers(0, 5))
def test_any_shape(m, n, k, more):
    # With few columns the variance may be tiny, and single-pass sums lose it.
    check(torch.float32, m, n, k, norm=k >= 12, residual=m + more)


def test_what_it_refuses():
    new = Maker(torch.float32)
    x, w, b = new(4, 8), new(6, 8), new(6)

    def call(x=x, w=w, sums=None, stats=None, r=None, after=None, act="", parts=False, tile=None):
        launch(x, w, b, sums, stats, r, after, act, 0.0, False, parts, tile)

    with pytest.raises(ValueError, match="weight has 7 columns, 8 were expected"):
        call(w=new(6, 7))
    with pytest.raises(ValueError, match="residual has 3 rows, x has 4"):
        call(r=new(3, 6))
    with pytest.raises(ValueError, match="relu"):
        call(act="relu")
    with pytest.raises(ValueError, match="float64"):
        call(x=x.double())
    with pytest.raises(ValueError, match="neighbouring columns"):
        call(x=new(8, 4).T)
    with pytest.raises(ValueError, match="one dtype"):
        call(w=w.half())
    with pytest.raises(ValueError, match="needs the sums of x's rows"):
        call(sums=new(2, 6))
    with pytest.raises(ValueError, match=r"need \[4, 2, 1\]"):
        call(sums=new(2, 6), stats=new(3, 2, 1))
    with pytest.raises(ValueError, match=r"need float32 \[6\]"):
        call(after=new(8))
    with pytest.raises(ValueError, match="cannot write the sums of 64"):
        call(parts=True, tile=Tile(16, 32, 16, 4, 1))


def calls():
    """The operation with arguments it takes, and the FLOPs of that call."""
    new = Maker(torch.float32)
    x, w, b, r = new(26, 32), new(96, 32), new(96), new(27, 96)
    sums, stats = normed(x, w)
    norm = (sums, stats.float())
    yield linear, (x, w, b, *norm, None, None, "silu", 1e-5, True, False), 2 * 26 * 96 * 32
    yield linear, (x, w, b, None, None, r, new(96), "", 0.0, False, True), 2 * 26 * 96 * 32


def tiny_linear(m):
    new, wide = Maker(torch.float32), Maker(torch.float32, 7)
    x, w, b, r = new.rows(19, 40), new.rows(130, 40, scale=0.2), new(130), new.rows(22, 130)
    after = wide(130)
    sums, stats = normed(x, w, wide(40))
    for tile in (Tile(16, 64, 16, 4, 1), Tile(16, 256, 16, 4, 1, persistent=True)):
        args = (x, w, b, sums, stats.float(), r, after, "silu", 1e-5, False, True)
        got, own = m.launch(*args, tile)
        exact = double(x, w, b, sums, stats, r, after)
        wanted, parts = m.linear_reference(*exact, "silu", 1e-5, False, True)
        yield got, wanted
        yield own, parts
    w8, scale = in_e4m3(w)
    x8 = quantise(x, 0.02)
    scales = (scale, 0.02, 1.0)
    args = (x8, w8, b, (None, None, 0.0), None, None, "", torch.float32, False, None, scales)
    got, _ = m.run(*args)
    yield got, (x8.double() @ w8.double().T) * scale.double() * 0.02 + b.double()


# See test_mutants.
FAULTS = {
    "linear": [
        ("m_k = o_k < k - i_k * BK", "m_k = o_k < k"),
        ("tl.where(m_m[:, None], acc, 0.0) + r", "acc + r"),
        ("acc + t[None, :] - mean", "acc - mean"),
        ("p_s + n + o_n", "p_s + o_n"),
        ("z += tl.load(p_a", "z -= tl.load(p_a"),
        ("tl.store(p + PARTS, tl.sum(z * z, 2), m_p)", "tl.store(p + PARTS, tl.sum(z, 2), m_p)"),
        ("o_p = first // SPAN", "o_p = 0"),
        ("first + BN // 2, m, n, k,", "first, m, n, k,"),
        ("d_w.load([i_n * BN, i_k * BK])", "d_w.load([i_n * BN, 0])"),
        ("d_x.load([i_m * BM, i_k * BK])", "d_x.load([0, i_k * BK])"),
        ("tl.load(p_ws + o_n, m_n, other=0.0) * x_scale", "tl.load(p_ws + o_n, m_n, other=0.0)"),
        ("tiles, tl.num_programs(0)", "tiles, 1 + tl.num_programs(0)"),
    ],
}
