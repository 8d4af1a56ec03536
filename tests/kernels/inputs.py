"""Inputs that show reads and writes outside a kernel's tensors, and how errors are measured.

All of it runs in Triton's interpreter, on the CPU. With TRITON_INTERPRET=0 the same tests bear the
mark `gpu`, and run there.
"""

import importlib
from pathlib import Path

import torch
from torch import Tensor

from stan_infer.kernels.row_norm import row_sums_reference
from stan_infer.kernels.tiles import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
FRAMES = (1, 2, 3, 5, 8, 12, 13, 16, 17, 33, 64)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Largest difference from fp64 on the same inputs, relative to the largest value. The interpreter
# cuts bf16 off where hardware rounds, so its steps are 2^-7.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}


GUARD = 1024.0  # stands behind what a kernel allocated (see conftest)
guards: list[Tensor] = []


class Maker:
    """Random tensors of one dtype, from a seed."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self._rng = dtype, torch.Generator("cpu").manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._rng, device="cpu")
        return (drawn * scale).to(DEVICE, self.dtype)

    def rows(self, r: int, c: int, scale: float = 1.0) -> Tensor:
        """Rows [r, c] inside a larger buffer of NaN: strides, and poison around them."""
        buffer = torch.full((r + 3, c + 16), float("nan"), dtype=self.dtype)
        buffer[1 : r + 1, :c] = self(r, c, scale=scale)
        return buffer[1 : r + 1, :c]


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest wanted value; infinite for a NaN in the result
    and for anything written behind it."""
    if not all((guard == GUARD).all() for guard in guards):
        return float("inf")
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    found = ((got.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
    return found if found == found else float("inf")


def in_steps(got: Tensor, wanted: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """For `error`: 8 bits against fp32 that they were made of, no error within half a step."""
    assert got.dtype == torch.float8_e4m3fn
    held = (wanted.double() / scale).clamp(-448, 448)
    step = (held.abs() / 16).clamp(min=2.0**-10)  # half the distance of two values
    return torch.relu((got.double() - held).abs() / step - 1.01) + 1, torch.ones_like(held)


def check_steps(got: Tensor, wanted: Tensor, scale: float, dtype: torch.dtype) -> None:
    """Check a result in 8 bits: of exact `wanted` the nearest, as far as inputs of dtype allow."""
    assert got.dtype == torch.float8_e4m3fn
    nearest = (wanted.float() / scale).clamp(-448, 448).to(got.dtype).float()
    few = {torch.float32: 0.02, torch.float16: 0.2, torch.bfloat16: 0.8}[dtype]
    assert (got.float() != nearest).double().mean() <= few
    beside = TOLERANCE[dtype] * wanted.abs().max() / scale
    assert ((got.float() - nearest).abs() <= nearest.abs() / 7 + 2.0**-8 + beside).all()


def double(*values):
    """The tensors among values in fp64."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def normed(x, w, offset=None):
    """What a norm before the linear needs: row sums of the weight, and of x."""
    c = torch.zeros(x.shape[1]) if offset is None else offset
    wide = w.double()
    sums = torch.stack([wide.sum(1), wide @ c.double()]).float()
    return sums, row_sums_reference(x.double(), c.double())


def kernel_tests() -> list:
    """Modules that test kernels: with `calls` for test_ops, and FAULTS for test_mutants."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    names = [f.stem for f in files if "def calls():" in f.read_text()]
    return [importlib.import_module(f"tests.kernels.{name}") for name in names]
