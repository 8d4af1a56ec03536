import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.kernels.linear import launch, linear, linear_reference
from stan_infer.kernels.tuned import Tile
from tests.grids import pairwise
from tests.kernels.inputs import DTYPES, TOLERANCE, Maker, double, error


def check(
    dtype, m, n, k, *, norm=True, activation="", residual=None, tile=None, mean=0.0, factor=1
):
    new = Maker(dtype)
    x, w, b = new.rows(m, k) + mean, new.rows(n, k, scale=k**-0.5), new(n)
    sums = w.double().sum(1).float() if norm else None
    r = None if residual is None else new.rows(residual, n)
    got = launch(x, w, b, sums, r, activation, 1e-5, False, tile)
    wanted = linear_reference(*double(x, w, b, sums, r), activation, 1e-5, False)
    assert got.dtype == dtype
    assert error(got, wanted) < factor * TOLERANCE[dtype]


@pairwise(
    dtype=DTYPES, norm=[False, True], activation=["", "silu", "gelu"], residual=[None, 37, 41]
)
def test_epilogues(dtype, norm, activation, residual):
    check(dtype, 37, 70, 96, norm=norm, activation=activation, residual=residual)


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 64, 32), (128, 32, 64)])
@pytest.mark.parametrize("m", [1, 15, 16, 17, 129])
def test_tiles_and_tails(tile, m):
    check(torch.float32, m, 33, 40, tile=Tile(*tile, 4, 1), residual=m + 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_far_from_zero_are_normed(dtype):
    """The mean is taken off after the linear: 8 standard deviations of it must cancel."""
    check(dtype, 20, 30, 64, mean=8.0, factor=4)


def test_an_outlier_channel_is_normed():
    new = Maker(torch.float16)
    x, w, b = new(20, 64), new(30, 64, scale=0.1), new(30)
    x[:, 5] *= 40
    sums = w.double().sum(1).float()
    got = launch(x, w, b, sums, None, "", 1e-5, False)
    wanted = linear_reference(*double(x, w, b, sums), None, "", 1e-5, False)
    assert error(got, wanted) < TOLERANCE[torch.float16]


def test_the_error_is_that_of_torch_in_the_same_dtype():
    """At most twice: the norm inside is not rounded before the linear, as torch's is."""
    new = Maker(torch.float16)
    x, w, b = new(64, 256), new(64, 256, scale=1 / 16), new(64)
    sums = w.double().sum(1).float()
    exact = linear_reference(*double(x, w, b, sums), None, "silu", 1e-5, False)
    z = torch.nn.functional.layer_norm(x, (256,))
    plain = torch.nn.functional.silu(torch.nn.functional.linear(z, w, b))
    ours = launch(x, w, b, sums, None, "silu", 1e-5, False)
    assert error(ours, exact) <= 2 * error(plain, exact)


def test_wide_output():
    new = Maker(torch.float16)
    x, w, b = new(5, 64), new(7, 64, scale=0.1), new(7)
    got = linear(x, w, b, None, None, "", 0.0, True)
    assert got.dtype == torch.float32
    assert error(got, linear_reference(*double(x, w, b), None, None, "", 0.0, True)) < 1e-5


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 70), more=st.integers(0, 5))
def test_any_shape(m, n, k, more):
    # With few columns the variance may be tiny, and single-pass sums lose it.
    check(torch.float32, m, n, k, norm=k >= 12, residual=m + more)


def test_what_it_refuses():
    new = Maker(torch.float32)
    x, w, b = new(4, 8), new(6, 8), new(6)
    with pytest.raises(ValueError, match="weight has 7 columns, 8 were expected"):
        linear(x, new(6, 7), b, None, None, "", 0.0, False)
    with pytest.raises(ValueError, match="residual has 3 rows, x has 4"):
        linear(x, w, b, None, new(3, 6), "", 0.0, False)
    with pytest.raises(ValueError, match="relu"):
        linear(x, w, b, None, None, "relu", 0.0, False)
    with pytest.raises(ValueError, match="float64"):
        linear(x.double(), w, b, None, None, "", 0.0, False)
    with pytest.raises(ValueError, match="neighbouring columns"):
        linear(new(8, 4).T, w, b, None, None, "", 0.0, False)
    with pytest.raises(ValueError, match="one dtype"):
        linear(x, w.half(), b, None, None, "", 0.0, False)


def calls():
    """The operation with arguments it takes, and the FLOPs of that call."""
    new = Maker(torch.float32)
    x, w, b = new(26, 32), new(96, 32), new(96)
    yield linear, (x, w, b, w.sum(1), None, "silu", 1e-5, True), 2 * 26 * 96 * 32


def tiny_linear(m):
    new = Maker(torch.float32)
    x, w, b, r = new.rows(19, 40), new.rows(24, 40, scale=0.2), new(24), new.rows(22, 24)
    sums = w.double().sum(1).float()
    got = m.launch(x, w, b, sums, r, "silu", 1e-5, False, Tile(16, 16, 16, 4, 1))
    yield got, m.linear_reference(*double(x, w, b, sums, r), "silu", 1e-5, False)


# See test_mutants.
FAULTS = {
    "linear": [
        ("m_k = o_k < k - i_k * BK", "m_k = o_k < k"),
        ("tl.where(m_m[:, None], acc, 0.0) + r", "acc + r"),
        ("squares += tl.sum(x32 * x32, 1)", "squares += tl.sum(x32, 1)"),
    ],
}
