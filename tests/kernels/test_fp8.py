import pytest
import torch
import triton
import triton.language as tl

from stan_infer.kernels.fp8_linear import (
    _round_e4m3,
    fp8_linear,
    fp8_linear_reference,
    launch,
    quantise,
)
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
    tl.store(p_y + o, _round_e4m3(tl.load(p_x + o, o < n, other=0.0)), o < n)


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


@pairwise(dtype=DTYPES, activation=["", "silu", "gelu"], residual=[None, 40])
def test_against_torch(dtype, activation, residual):
    new = Maker(dtype)
    x, b = new.rows(37, 96, scale=3.0), new(70)
    w, scale = in_e4m3(Maker(torch.float32, 1)(70, 96))
    r = None if residual is None else new.rows(residual, 70)
    got = launch(x, w, scale, 0.02, b, r, activation)
    x64, b64, r64 = double(x, b, r)
    wanted = fp8_linear_reference(x64, w, scale, 0.02, b64, r64, activation)
    # Tensor cores of sm_90 keep 14 bits of a tile's sum.
    limit = TOLERANCE[dtype] if DEVICE == "cpu" else max(TOLERANCE[dtype], 1e-3)
    assert error(got, wanted) < limit


def test_what_does_not_fit_saturates():
    x = torch.full((1, 16), 1e6)
    assert quantise(x, torch.tensor(1.0)).float().eq(448).all()
    w, scale = in_e4m3(torch.ones(4, 16))
    got = launch(x, w, scale, 1.0, torch.zeros(4), None, "")
    torch.testing.assert_close(got, torch.full((1, 4), 448.0 * 16))


def test_what_it_refuses():
    w, scale = in_e4m3(torch.ones(4, 16))
    x, b = torch.ones(2, 16), torch.zeros(4)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x_scale"):
            launch(x, w, scale, bad, b, None, "")
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        launch(x, w.float(), scale, 1.0, b, None, "")


def calls():
    """See test_linear."""
    new = Maker(torch.float32)
    w8, scale = in_e4m3(new(96, 32))
    args = (new(26, 32), w8, scale, 0.01, new(96), new(27, 96), "")
    yield fp8_linear, args, 2 * 26 * 96 * 32
