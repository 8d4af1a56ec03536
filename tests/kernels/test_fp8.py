import pytest
import torch
import triton
import triton.language as tl

from stan_infer.kernels.fp8_linear import fp8_linear, fp8_linear_reference, launch
from stan_infer.kernels.row_norm import (
    launch as norm_rows,
)
from stan_infer.kernels.row_norm import (
    launch_quantise,
    quantise,
    quantise_rows,
    row_norm_reference,
    row_sums_reference,
)
from stan_infer.kernels.tiles import round_e4m3
from stan_infer.kernels.tuned import Tile
from stan_infer.network.kernel_weights import in_e4m3
from tests.grids import pairwise
from tests.kernels.inputs import DEVICE, DTYPES, TOLERANCE, Maker, double, error

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="this GPU has no 8-bit floats",
)


@triton.jit
def _round_kernel(p_x, p_y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_y + o, round_e4m3(tl.load(p_x + o, o < n, other=0.0)), o < n)


def test_rounding_is_e4m3_to_the_bit():
    rng = torch.Generator(DEVICE).manual_seed(0)
    x = torch.cat([
        torch.randn(50_000, generator=rng) * 50,
        torch.randn(50_000, generator=rng) * 0.01,
        torch.arange(-448, 449).float(),
        torch.arange(-4096, 4097) / 2**16,  # around the smallest values, ties among them
    ]).clamp(-448, 448)  # fmt: skip
    y = torch.zeros_like(x)
    _round_kernel[(triton.cdiv(len(x), 4096),)](x, y, len(x), BLOCK=4096)
    assert torch.equal(y, x.to(torch.float8_e4m3fn).float())


def eight(dtype, m=37, n=70, k=96):
    """Rows and a weight in 8 bits with their scales, and a bias."""
    new = Maker(dtype)
    w, scale = in_e4m3(Maker(torch.float32, 1)(n, k))
    return quantise(new.rows(m, k, scale=3.0), 0.02), w, scale, 0.02, new(n)


@pairwise(
    dtype=DTYPES, activation=["", "silu", "gelu"], residual=[None, 40], parts=[False, True],
    persistent=[False, True],
)  # fmt: skip
def test_against_torch(dtype, activation, residual, parts, persistent):
    new, after = Maker(dtype), Maker(torch.float32, 7)(70)
    x, w, scale, s, b = eight(dtype)
    r = None if residual is None else new.rows(residual, 70)
    tile = Tile(32, 64, 32, 4, 1, persistent=persistent)
    got, own = launch(x, w, scale, s, b, r, after, activation, None, parts, tile)
    b64, r64 = double(b, r)
    wanted, _ = fp8_linear_reference(x, w, scale, s, b64, r64, after, activation, None, parts)
    # Tensor cores of sm_90 keep 14 bits of a tile's sum.
    limit = TOLERANCE[dtype] if DEVICE == "cpu" else max(TOLERANCE[dtype], 1e-3)
    assert error(got, wanted) < limit
    if parts:
        assert error(own, row_sums_reference(got.double(), after)) < 1e-5


def test_a_result_in_8_bits_is_rounded_once():
    """To the bit, but where fp32 sums in another order land on the other side of a tie."""
    x, w, scale, s, b = eight(torch.float32)
    got, _ = launch(x, w, scale, s, b, None, None, "silu", 0.05, False)
    wanted, _ = fp8_linear_reference(x, w, scale, s, b, None, None, "silu", 0.05, False)
    assert got.dtype == torch.float8_e4m3fn
    assert (got.float() != wanted.float()).double().mean() < 0.01
    assert error(got.float(), wanted.float()) < 0.08


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_producers_round_once(dtype):
    x, c = Maker(dtype).rows(9, 200, scale=2.0), Maker(torch.float32, 7)(200)
    assert torch.equal(launch_quantise(x, 0.01).float(), quantise(x, 0.01).float())
    got, wanted = norm_rows(x, c, 1e-5, 0.01), row_norm_reference(x, c, 1e-5, 0.01)
    assert (got.float() != wanted.float()).double().mean() < 0.01
    assert error(got.float(), wanted.float()) < 0.08


def test_what_does_not_fit_saturates():
    x = torch.full((1, 16), 1e6)
    assert quantise(x, 1.0).float().eq(448).all()
    assert launch_quantise(x, 1.0).float().eq(448).all()
    w, scale = in_e4m3(torch.ones(4, 16))
    args = (None, None, "")
    got, _ = launch(quantise(x, 1.0), w, scale, 1.0, torch.zeros(4), *args, None, False)
    torch.testing.assert_close(got, torch.full((1, 4), 448.0 * 16))
    got, _ = launch(quantise(x, 1.0), w, scale, 1.0, torch.zeros(4), *args, 1.0, False)
    assert got.float().eq(448).all()


def test_what_it_refuses():
    x, w, scale, s, b = eight(torch.float32)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x_scale"):
            launch(x, w, scale, bad, b, None, None, "", None, False)
        with pytest.raises(ValueError, match="scale"):
            launch_quantise(torch.ones(2, 3), bad)
    with pytest.raises(ValueError, match="weight is torch.float32"):
        launch(x, w.float(), scale, s, b, None, None, "", None, False)
    with pytest.raises(ValueError, match="x is torch.float32"):
        launch(x.float(), w, scale, s, b, None, None, "", None, False)
    with pytest.raises(ValueError, match="no residual and no sums"):
        launch(x, w, scale, s, b, None, None, "", 1.0, True)


def calls():
    """See test_linear."""
    x, w, scale, s, b = eight(torch.float32, 26, 96, 32)
    r = Maker(torch.float32)(27, 96)
    yield fp8_linear, (x, w, scale, s, b, r, None, "", None, True), 2 * 26 * 96 * 32
    yield quantise_rows, (r, 0.1), 0


def tiny_fp8_linear(m):
    x, w, scale, s, b = eight(torch.float32)
    r = Maker(torch.float32).rows(40, 70)
    got, own = m.launch(x, w, scale, s, b, r, None, "", None, True)
    yield from zip(
        (got, own),
        m.fp8_linear_reference(x, w, scale, s, *double(b, r), None, "", None, True),
        strict=True,
    )
    got, _ = m.launch(x, w, scale, s, b, None, None, "silu", 0.05, False)
    wanted, _ = m.fp8_linear_reference(x, w, scale, s, b, None, None, "silu", 0.05, False)
    yield (got.float() - wanted.float()).abs().amax() / 4000 + 1, torch.ones(())


# See test_mutants.
FAULTS = {
    "fp8_linear": [
        ("(weight_scale, x_scale, y_scale or 1.0)", "(weight_scale, 1.0, y_scale or 1.0)"),
        ("x_scale, y_scale or 1.0)", "x_scale, x_scale)"),
    ],
}
