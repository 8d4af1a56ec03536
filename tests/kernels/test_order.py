"""Programs of a grid in any order, and a launch after a launch: the same bits."""

import random

import pytest
import torch
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import interpreter_builder

from stan_infer.kernels.linear import launch
from stan_infer.kernels.tiles import INTERPRETED
from stan_infer.kernels.tuned import Tile
from tests.kernels.inputs import Maker, kernel_tests, normed

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU has an order of its own")
CALLS = [call for module in kernel_tests() for call in module.calls()]
IDS = [f"{i}-{op._opoverload.name().split('::')[1]}" for i, (op, _, _) in enumerate(CALLS)]


@pytest.fixture
def shuffled(monkeypatch):
    """Run the programs of every grid in an order of chance from now on; counts the grids."""
    place, size, seen = interpreter_builder.set_grid_idx, interpreter_builder.set_grid_dim, []

    def begin(x, y, z):
        order = list(range(x))
        random.Random(len(seen)).shuffle(order)
        seen.append(order)
        size(x, y, z)

    def start():
        monkeypatch.setattr(interpreter_builder, "set_grid_dim", begin)
        monkeypatch.setattr(
            interpreter_builder, "set_grid_idx", lambda x, y, z: place(seen[-1][x], y, z)
        )
        return seen

    return start


def same(one, other):
    """The same bits, of NaN as well."""
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(("op", "args", "flops"), CALLS, ids=IDS)
def test_any_order_gives_the_same_bits(op, args, flops, shuffled):
    first = op(*args)
    same(op(*args), first)
    seen = shuffled()
    same(op(*args), first)
    assert seen


@pytest.mark.parametrize("persistent", [False, True])
def test_many_tiles_in_any_order(persistent, shuffled):
    new = Maker(torch.float16)
    x, w, b, r = new(70, 48), new(200, 48), new(200), new(75, 200)
    sums, stats = normed(x, w)
    tile = Tile(16, 64, 16, 4, 1, persistent=persistent)
    args = (x, w, b, sums, stats.float(), r, None, "silu", 1e-5, False, True, tile)
    first = launch(*args)
    assert len(shuffled()) == 0
    same(launch(*args), first)
