"""Sizes beyond what 16 and 32 bits hold: grids of one axis, offsets of 64 bits."""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from benchmarks.gpu.cases import Shape, cases
from stan_infer.kernels import linear, temporal_attention
from stan_infer.kernels.tuned import Tile
from tests.kernels.inputs import DEVICE, Maker, error

FAR = 1_100_000_000  # columns between two rows: the third row lies beyond 2^31


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: filling gigabytes that are only reserved would need them as memory."""


def test_every_grid_has_one_axis(monkeypatch):
    """400 clips of B/16: B P is 78,400 and F H 57,600; other axes than the first end at 65,535."""
    seen: dict[str, list[tuple[int, ...]]] = {}

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **options: seen.setdefault(self.name, []).append(grid)

    for case in cases("sm90", torch.bfloat16, "meta", Shape(batch=400), full=False):
        for name, value in list(vars(case.module).items()):
            if name.endswith("_kernel") and isinstance(value, JITFunction | InterpretedFunction):
                monkeypatch.setattr(case.module, name, Recorder(name))
        case.run()
    assert len(seen) >= 11
    for name, grids in seen.items():
        assert all(len(grid) == 1 and 0 < grid[0] < 2**31 for grid in grids), name
    assert max(seen["_spatial_kernel"])[0] > 65_535 and max(seen["_temporal_kernel"])[0] > 65_535


@pytest.mark.skipif(DEVICE == "cuda", reason="13 GB of addresses, which a GPU would have to hold")
def test_rows_beyond_two_gigabytes():
    """Memory that is never touched costs nothing: three rows, far from each other."""
    far = torch.empty(2 * FAR + 96, dtype=torch.float16).as_strided((3, 96), (FAR, 1))
    new = Maker(torch.float16)
    near, w, b = new(3, 96), new(4, 96), new(4)
    far.copy_(near)
    args = (w, b, None, None, None, None, "", 1e-5, False, False, Tile(16, 16, 32, 4, 1))
    assert error(linear.launch(far, *args)[0], linear.launch(near, *args)[0]) == 0
    got = temporal_attention.launch(far, 3, 1, 2, 0.3, None)
    assert error(got, temporal_attention.launch(near, 3, 1, 2, 0.3, None)) == 0
